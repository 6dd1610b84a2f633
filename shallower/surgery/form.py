"""Form of the files of a pruned model: what is lost and added beside the layers that go."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch

from ..anatomy.loading import FLOATS
from ..anatomy.model import Model
from ..anatomy.names import TensorName
from ..artifacts.removal import Removal
from ..storage.index import ITEM_BYTES
from ..storage.writer import Content


@dataclass(frozen=True)
class Form:
    """What becomes of the files of a family.

    Attributes:
        name: ``plain``, ``host``, ``custom`` or ``deci``.
        changes: what is worth telling of it.
        lost: tensors of the dense model that are not written.
        added: tensors that the dense model has not, by their names in the written one.
        config: makes the content of ``config.json`` from that of the family's.
        files: further files by name.
        renamed: name that a tensor would have in the written model -> the name that it has in this form.
    """

    name: str = "plain"
    changes: tuple[str, ...] = ()
    lost: frozenset[str] = frozenset()
    added: dict[str, Content] = field(default_factory=dict)
    config: Callable[[dict[str, Any]], dict[str, Any]] = dict
    files: dict[str, str] = field(default_factory=dict)
    renamed: dict[str, str] = field(default_factory=dict)

    @property
    def zeros(self) -> int | None:
        """Numbers that were added, all of them zeros; None for none."""
        return sum(int(torch.Size(content.shape).numel()) for content in self.added.values()) or None


def lost_tensors(model: Model, removal: Removal, part: str = "") -> frozenset[str]:
    """Names in the files of what serves nothing but parts that go: weights, and buffers of their modules.

    Args:
        part: one kind of part alone.
    """
    stack, weights, modules = model.outline.name, set(), []
    for index, layer in enumerate(model.parts_for(removal)):
        for each in removal.parts(index):
            if part in ("", each):
                weights |= {f"{stack}.{index}.{name}" for name in layer.parts[each].parameters}
                modules += [f"{stack}.{index}.{name}." for name in layer.parts[each].modules]
    names = model.checkpoint.names.memory.items()
    return frozenset(disk for disk, name in names if name in weights or name.startswith(tuple(modules)))


@dataclass(frozen=True)
class Place:
    """Where the tensors of one layer are written, and how they are stored."""

    prefix: str
    dtype: str

    @classmethod
    def of(cls, model: Model, layer: int, new: int, save_dtype: torch.dtype | None) -> "Place":
        """The place of a layer of the dense model that gets a new number."""
        places: dict[str, TensorName] = model.solver.places()
        name, place = next((name, place) for name, place in sorted(places.items()) if place.layer == layer)
        stored = next((kind for kind, dtype in FLOATS.items() if dtype == save_dtype), None)
        return cls(place.name(new).removesuffix(place.tail), stored or model.checkpoint.tensors[name].dtype)

    def name(self, within: str) -> str:
        """A tensor's name in the files, by that in the layer."""
        return f"{self.prefix}.{within}"

    def zeros(self, shapes: dict[str, tuple[int, ...]]) -> dict[str, Content]:
        """Tensors of zeros by their names in the files, of the shapes by their names in the layer."""
        return {self.name(name): _zeros(self.dtype, shape) for name, shape in shapes.items()}

    def values(self, tensors: dict[str, torch.Tensor]) -> dict[str, Content]:
        """Tensors by their names in the files, given by their names in the layer."""
        return {self.name(name): _values(self.dtype, value) for name, value in tensors.items()}


def _values(dtype: str, value: torch.Tensor) -> Content:
    raw = value.detach().cpu().to(FLOATS[dtype]).contiguous().view(torch.uint8).numpy().tobytes()
    return Content(dtype, tuple(value.shape), len(raw), lambda: iter([raw]))


def _zeros(dtype: str, shape: tuple[int, ...]) -> Content:
    count = int(torch.Size(shape).numel()) * ITEM_BYTES[dtype]
    return Content(dtype, shape, count, lambda: iter([bytes(count)]))
