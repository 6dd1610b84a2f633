"""Named totals and counts. All statistics are sums, so merging batches, ranks or resumed runs is adding."""

import torch
from torch import Tensor

LARGE = 1 << 20  # elements; larger totals stay float32, smaller ones are float64


class Sums(dict[str, Tensor]):
    """Name -> total. ``+=`` merges; both sides must hold the same names."""

    @classmethod
    def of(cls, measured: dict) -> "Sums":
        """Totals of one measurement: numbers and tensors, in float64 unless as large as a weight matrix."""
        total = cls()
        for name, value in measured.items():
            tensor = torch.as_tensor(value).detach()
            total[name] = tensor.to(torch.float32 if tensor.numel() > LARGE else torch.float64)
        return total

    def __iadd__(self, other: "Sums") -> "Sums":  # type: ignore[override,misc]
        if self and self.keys() != other.keys():
            raise AssertionError(f"a measurement named {sorted(other)} where {sorted(self)} were named before")
        for name, value in other.items():
            if name in self:
                self[name] += value
            else:
                self[name] = value.clone()
        return self
