"""Batch of a paired walk at one layer, and the changes that belong to a layer."""

from dataclasses import dataclass

from torch import Tensor

from ..anatomy.model import Model
from ..anatomy.patch import Patch


@dataclass(frozen=True)
class PairedBatch:
    """One batch at one retained layer: rows are tokens, columns features of the stream.

    Attributes:
        after: the pruned stream that leaves the layer.
        same: the dense stream that leaves it.
        wanted: the dense stream that enters what is retained next; ``same`` where nothing removed follows.
        output: what the writer that is looked at adds to the pruned stream; None where none is looked at.
        features: what enters that writer, where it is one plain product; what its gain multiplies, where a norm stands
            behind it; else None.
        reached: the pruned stream behind that writer; ``after`` for the layer's last one.
        target: the dense stream that should be there; ``wanted`` for the layer's last one.
    """

    after: Tensor
    same: Tensor
    wanted: Tensor
    output: Tensor | None
    features: Tensor | None
    reached: Tensor
    target: Tensor


def part_of_layer(model: Model, patch: Patch, index: int) -> Patch:
    """The changes of one layer's weights."""
    return {name: edit for name, edit in patch.items() if layer_of(name, model.stack.name) == index}


def layer_of(name: str, stack: str) -> int:
    """The layer that a parameter within the stack of this name belongs to."""
    return int(name.removeprefix(f"{stack}.").partition(".")[0])
