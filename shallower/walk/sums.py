"""Sums: named totals and counts. All statistics are sums, so merging batches, ranks or resumed runs is adding."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ..runtime import distributed
from ..runtime.memory import by_device

SUM_BLOCK = {
    "cpu": 1 << 20,
    "cuda": 1 << 26,
}  # elements that are looked at together: few launches on a GPU, what a cache holds on a CPU
LARGE_SUM = 1 << 16  # elements; larger matrices stay where they are in float32, all else is float64 on the CPU


def is_large(total: Tensor) -> bool:
    """Whether it is as large as a weight matrix; what holds a number per feature never is."""
    return total.dim() > 1 and total.numel() > LARGE_SUM


def absolute_sum(value: Tensor) -> Tensor:
    """Σ |x| over all elements in float64, a block at a time."""
    return _total(value, lambda block: block.abs().sum(dtype=torch.float64))  # exact before it is made wider


def square_sum(value: Tensor) -> Tensor:
    """Σ x² over all elements in float64, a block at a time."""
    return _total(value, lambda block: block.double().square().sum())


def _total(value: Tensor, sum_of: Callable[[Tensor], Tensor]) -> Tensor:
    """A matrix of a large layer has no room for a double of itself."""
    total = torch.zeros((), dtype=torch.float64, device=value.device)
    for block in value.flatten().split(by_device(SUM_BLOCK, value.device.type)):
        total += sum_of(block)
    return total.cpu()


class Halves(NamedTuple):
    """Totals over all samples, and over either half of them; no halves where they were not kept apart."""

    total: "Sums"
    parts: tuple["Sums", ...] = ()

    @classmethod
    def of(cls, parts: Sequence["Sums"]) -> "Halves":
        """From the sums of the two halves, or of all samples alone."""
        total = Sums()
        for part in parts:
            total += part
        return cls(total, tuple(parts) if len(parts) > 1 else ())


class Sums(dict[str, Tensor]):
    """Name -> total. ``+=`` merges; both sides must hold the same names."""

    @classmethod
    def of(cls, measurement: dict) -> "Sums":
        """Totals of one measurement: numbers and tensors, in float64 unless as large as a weight matrix."""
        total = cls()
        for name, value in measurement.items():
            tensor = value.detach() if isinstance(value, Tensor) else torch.tensor(value, dtype=torch.float64)
            total[name] = tensor.float() if is_large(tensor) else tensor.to("cpu", torch.float64)
        return total

    def __iadd__(self, other: "Sums") -> "Sums":  # type: ignore[override,misc]
        if self and self.keys() != other.keys():
            raise AssertionError(f"a measurement named {sorted(other)} where {sorted(self)} were named before")
        for name, value in other.items():
            self[name] = (
                self[name] + value if name in self else value
            )  # not in place: the first value may be somebody's own
        return self

    def all_sum(self) -> "Sums":
        """These totals over all processes."""
        for name in sorted(self):
            self[name] = distributed.all_sum(self[name])
        return self
