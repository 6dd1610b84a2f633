"""Removal of units: what goes from a model, as plan, walk, proof, evaluation, repair and report hand it along."""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

from ..runtime.format import layers as numbers_text

ATTENTION, MLP = "attention", "mlp"  # parts of a layer: what mixes positions, and what does not
WHOLE, GONE = "0", "1"  # states of a layer: as it is, and nothing of it left


class Unit(NamedTuple):
    """Unit that can go: a whole layer, or a part of one. Ordered, and named by its text: ``12``, ``12.mlp``,
    ``12.mlp:340``.
    """

    layer: int
    part: str = ""
    group: int = -1

    def __str__(self) -> str:
        return f"{self.layer}{'.' * bool(self.part)}{self.part}{f':{self.group}' if self.group >= 0 else ''}"


@dataclass(frozen=True)
class Removal:
    """Set of units that go, in the model's own numbering.

    Attributes:
        units: in order, each once; a layer of which nothing is left is there as a whole layer.
    """

    units: tuple[Unit, ...] = ()

    @classmethod
    def of_layers(cls, layers: Iterable[int]) -> "Removal":
        """The removal of whole layers."""
        return cls.of(map(Unit, layers))

    @classmethod
    def of(cls, units: Iterable[Unit]) -> "Removal":
        """The removal of units in any order; parts of layers that go anyway are left out."""
        every = set(units)
        return cls(tuple(sorted(unit for unit in every if not unit.part or Unit(unit.layer) not in every)))

    @property
    def kind(self) -> str:
        """What the units are: ``layer``, or ``part`` where there are parts of layers among them."""
        return "part" if any(unit.part for unit in self.units) else "layer"

    @cached_property
    def layers(self) -> tuple[int, ...]:
        """The layers of which nothing is left, in order."""
        return tuple(unit.layer for unit in self.units if not unit.part)

    def parts(self, layer: int) -> tuple[str, ...]:
        """The parts that a layer loses, which keeps others."""
        return tuple(unit.part for unit in self.units if unit.layer == layer and unit.part)

    def gone(self, layer: int) -> bool:
        """Whether nothing of the layer is left."""
        return layer in self.layers

    def stays(self, layers: int) -> list[int]:
        """Those of so many layers of which something is left."""
        return [index for index in range(layers) if not self.gone(index)]

    def plus(self, *units: Unit) -> "Removal":
        """The removal of these units too."""
        return Removal.of((*self.units, *units))

    def __len__(self) -> int:
        return len(self.units)

    def __repr__(self) -> str:
        return f"<Removal of {self.kind}s {self}>" if self else "<Removal of nothing>"

    def __str__(self) -> str:
        return numbers_text(self.layers) if self.kind == "layer" else ", ".join(map(str, self.units))


NOTHING = Removal()
