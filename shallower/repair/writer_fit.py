"""Fit of one residual writer, so that the stream behind it becomes a target: by least squares, in closed form.

    min_D  E w ‖ target - reached - s D x ‖²  +  λ ‖ D ‖²        w = 1 / ‖ target ‖²

x is what enters the writer where that is one plain product, the normed stream where a norm stands behind it (D is then
diagonal), and else its output, which D maps. s is the constant that the output is multiplied with on its way.
"""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ..anatomy.patch import Edit, Patch
from ..anatomy.stack import Stack
from ..anatomy.writers import Writer
from .capture import features_of
from .ridge import Diagonal, Normal, map_of

STRENGTH = 0.3  # λ, relative to the mean diagonal of the sums
TINY = 1e-6  # the shortest stream divided by
Rows = Float[Tensor, "token width"]
Features = Float[Tensor, "token feature"]


def rows_of(stack: Stack, stream: Tensor) -> Rows:
    """The stream as one row per token."""
    return stack.tokens_first(stream).flatten(0, 1)


def fitted_features(
    stack: Stack, layer: nn.Module, writer: Writer, given: Tensor, shape: torch.Size
) -> Features | None:
    """What a change of the writer multiplies, for what enters its module; None where that is not to be had.

    Args:
        shape: of the stream.
    """
    if writer.gain:
        return rows_of(stack, writer.normed(layer, given).view(shape))
    return features_of(given, stack) if writer.features else None


class WriterFit:
    """Sums over batches of rows, and the change that they give."""

    def __init__(self, writer: Writer):
        self.writer = writer
        self.sums = Diagonal() if writer.gain else Normal()

    def add(self, features: Features | None, output: Rows, reached: Rows, target: Rows) -> None:
        """Add a batch.

        Args:
            features: see ``fitted_features``.
            output: what the writer adds to the stream.
            reached: the stream behind it.
        """
        scale = self.writer.scale
        given = features if features is not None else output / scale
        weight = target.float().norm(dim=-1, keepdim=True).clamp_min(TINY).reciprocal()
        self.sums.add(given * weight, (target - reached) * weight / scale)

    def all_sum(self) -> "WriterFit":
        """The same over all processes."""
        self.sums.all_sum()
        return self

    def patch(self, strength: float, weights: list[tuple[str, int]], module: nn.Module) -> Patch:
        """The change, by the names of these weights in the model, with an axis each."""
        if not self.writer.features and not self.writer.gain:
            value = map_of(self.sums, strength)
            return {name: Edit("map", value, axis) for name, axis in weights}
        change = self.sums.solve(strength).T.float() if self.writer.features else self.sums.solve(strength).float()
        for name, axis in weights:
            if self.writer.gain or module.get_parameter(name).dim() == 2:
                return {name: Edit("add", change if axis == 0 else change.T.contiguous())}
        raise AssertionError(f"{self.writer.module} has no matrix")
