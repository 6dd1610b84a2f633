"""Drift, the distance of the pruned stream from the dense one behind every retained layer."""

import torch
from jaxtyping import Int
from torch import Tensor

from ..anatomy.model import Model
from ..anatomy.patch import Patch
from ..artifacts import Removal, StreamDrift
from ..runtime import distributed
from .batch import PairedBatch, part_of_layer
from .paired import PairedWalk


def drift(model: Model, tokens: Int[Tensor, "sample position"], removal: Removal, patch: Patch) -> list[StreamDrift]:
    """The drift behind every retained layer of the pruned model with these changes."""
    drifts = []
    for step in PairedWalk(model, tokens, removal):
        step.take(part_of_layer(model, patch, step.index))
        sums = DriftSums()
        for batch in step.batches():
            sums.add(batch)
        sums.all_sum()
        drifts.append(sums.of(step.index))
    return drifts


class DriftSums:
    """Sums of streams in float64, from which the drift behind one layer is read."""

    def __init__(self):
        self.count = 0
        self.distance = 0.0
        self.length = 0.0
        self.pruned: Tensor | float = 0.0
        self.same: Tensor | float = 0.0

    def add(self, batch: PairedBatch) -> None:
        pruned, same = batch.after.double(), batch.same.double()
        self.count += len(pruned)
        self.pruned = self.pruned + pruned.sum(0)
        self.same = self.same + same.sum(0)
        self.distance += float((pruned - same).square().sum())
        self.length += float(same.square().sum())

    def all_sum(self) -> "DriftSums":
        """These sums over all processes."""
        numbers = torch.tensor([self.count, self.distance, self.length], dtype=torch.float64)
        self.count, self.distance, self.length = distributed.all_sum(numbers).tolist()
        for sums in (self.pruned, self.same):
            distributed.all_sum(sums)
        return self

    def of(self, layer: int) -> StreamDrift:
        shift = float((self.pruned - self.same).norm()) / self.count
        size = float(self.same.norm()) / self.count
        return StreamDrift(layer, shift, shift / max(size, 1e-300), (self.distance / max(self.length, 1e-300)) ** 0.5)
