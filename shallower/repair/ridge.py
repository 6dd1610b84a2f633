"""Ridge regression from sums, so that no more than one batch of rows is in memory."""

import torch
from jaxtyping import Float
from torch import Tensor

from ..runtime import distributed
from ..runtime.memory import by_device

RIDGE_ROWS = {"cpu": 2048, "cuda": 16384}  # of one product; each costs a pass over the sums
GRID = (0.001, 0.01, 0.1, 1.0)  # regularisation, relative to the mean diagonal
FLOOR = 1e-6


class Normal:
    """Sums XᵀX and XᵀR over rows in float64, the products of each block of rows in the precision of the rows.

    Solves min_D E ‖ R - X D ‖² + λ ‖D‖²_F, with λ relative to the mean diagonal of E[XᵀX].
    """

    def __init__(self, left: Tensor | None = None, right: Tensor | None = None) -> None:
        self.left = left
        self.right = right

    def add(self, x: Float[Tensor, "row feature"], rest: Float[Tensor, "row output"]) -> None:
        """Add rows: what the correction may use, and what it should make of it."""
        if self.left is None:
            self.left = torch.zeros(x.shape[1], x.shape[1], dtype=torch.float64, device=x.device)
            self.right = torch.zeros(x.shape[1], rest.shape[1], dtype=torch.float64, device=x.device)
        rows = by_device(RIDGE_ROWS, x.device.type)
        for some, wanted in zip(x.float().split(rows), rest.float().split(rows), strict=True):
            self.left += some.T @ some
            self.right += some.T @ wanted

    def all_sum(self) -> "Normal":
        """These sums over all processes."""
        for sums in (self.left, self.right):
            distributed.all_sum(sums)
        return self

    def solve(self, strength: float) -> Float[Tensor, "feature output"]:
        """D; where X is zero everywhere, or too few rows determine it, the regularisation keeps it small and finite.

        Of several processes, which must have the same sums, the first solves.
        """
        change = self._solved(strength) if distributed.rank() == 0 else torch.empty_like(self.right)
        return distributed.from_first(change)

    def _solved(self, strength: float) -> Float[Tensor, "feature output"]:
        size = self.left.diagonal().mean()
        if not size > 0:
            return torch.zeros_like(self.right)
        diagonal = self.left.diagonal().clone()
        self.left.diagonal().add_(
            max(strength, FLOOR) * size
        )  # in place: a copy of the sums of one wide writer takes a GB
        try:
            factor = torch.linalg.cholesky(self.left)
        finally:
            self.left.diagonal().copy_(diagonal)
        half = torch.linalg.solve_triangular(factor, self.right, upper=False)  # cholesky_solve would copy the factor
        return torch.linalg.solve_triangular(factor.mT, half, upper=True)


class Diagonal:
    """The same for one factor per feature, D diagonal: sums of squares and products of each feature alone."""

    def __init__(self) -> None:
        self.left: Tensor | float = 0.0
        self.right: Tensor | float = 0.0

    def add(self, x: Float[Tensor, "row feature"], rest: Float[Tensor, "row feature"]) -> None:
        """Add rows: what each factor multiplies, and what it should make of it."""
        x = x.double()
        self.left = self.left + x.square().sum(0)
        self.right = self.right + (x * rest.double()).sum(0)

    def all_sum(self) -> "Diagonal":
        """These sums over all processes."""
        for sums in (self.left, self.right):
            distributed.all_sum(sums)
        return self

    def solve(self, strength: float) -> Float[Tensor, " feature"]:
        """The diagonal of D."""
        size = self.left.mean()
        return self.right / (self.left + max(strength, FLOOR) * size) if size > 0 else torch.zeros_like(self.right)


def map_of(normal: Normal, strength: float) -> Float[Tensor, "feature feature"]:
    """P = I + Dᵀ, float32: Pᵀ = (MᵀM/T + λI)⁻¹ (MᵀY/T + λI) with Y = M + R."""
    change = normal.solve(strength).T
    return (change + torch.eye(len(change), dtype=change.dtype, device=change.device)).float()
