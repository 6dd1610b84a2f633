"""Removal of units: what goes from a model, as plan, walk, proof, evaluation, repair and report hand it along."""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

from ..runtime.format import layers as numbers_text

ATTENTION, MLP = "attention", "mlp"  # parts of a layer: what mixes positions, and what does not
PARTS = (ATTENTION, MLP)
UNIT = re.compile(rf"(\d{{1,6}})(?:\.({'|'.join(PARTS)}))?")
WHOLE, GONE = "0", "1"  # states of a layer: as it is, and nothing of it left


class Unit(NamedTuple):
    """Unit that can go: a whole layer, or a part of one. Ordered, and named by its text: ``12``, ``12.mlp``,
    ``12.mlp:340``.
    """

    layer: int
    part: str = ""
    group: int = -1

    @classmethod
    def parse(cls, text: str) -> "Unit":
        """The unit of that name.

        Raises:
            ValueError: it names none.
        """
        match = UNIT.fullmatch(text)
        if not match:
            raise ValueError(f"{text!r} is no unit; write 12, 12.{ATTENTION} or 12.{MLP}")
        return cls(int(match[1]), match[2] or "")

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

    @classmethod
    def told(cls, layers: Iterable[int], units: Iterable[str] = ()) -> "Removal":
        """The removal that a record tells by its layers and, where parts are among them, by the names of its units."""
        return cls.of_layers(layers).plus(*map(Unit.parse, units))

    def folded(self, parts: Sequence[Iterable[str]]) -> "Removal":
        """The same, where a layer that loses all of its parts goes as a whole layer.

        Args:
            parts: names of the parts of every layer; none where it is not known.
        """
        emptied = (index for index, names in enumerate(parts) if names and set(names) <= {*self.parts(index)})
        return self.plus(*map(Unit, emptied))

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

    @property
    def words(self) -> str:
        """What goes, in words: layers by their numbers, or units by their names."""
        return f"layers {self}" if self.kind == "layer" else str(self)

    def __len__(self) -> int:
        return len(self.units)

    def __repr__(self) -> str:
        return f"<Removal of {self.kind}s {self}>" if self else "<Removal of nothing>"

    def __str__(self) -> str:
        return numbers_text(self.layers) if self.kind == "layer" else ", ".join(map(str, self.units))


NOTHING = Removal()


def units_of(names: Iterable[str], layers: int) -> list[Unit]:
    """The units of these names.

    Raises:
        ValueError: one names no unit of so many layers.
    """
    names = list(names)
    named = [Unit.parse(name) for name in names]
    if other := next((name for name, unit in zip(names, named, strict=True) if str(unit) != name), None):
        raise ValueError(f"units name {other}, which is {Unit.parse(other)}")
    if beyond := [unit for unit in named if unit.layer >= layers]:
        raise ValueError(f"units name {beyond[0]} of {layers} layers")
    return named


def check_units(units: dict[str, int], removed: Iterable[int], layers: int) -> None:
    """Raise a ValueError where units do not fit the layers that go: each one named once, of a layer that is there, and
    whole layers among the removed ones.
    """
    named = units_of(units, layers)
    removed = set(removed)
    if any(not unit.part and unit.layer not in removed for unit in named):
        raise ValueError("whole layers among the units must be removed layers")
    if units and not removed <= {unit.layer for unit in named}:
        raise ValueError("removed names layers of which no unit goes")


def listed(removal: Removal) -> list[int | str]:
    """What goes, in order: numbers of layers and names of other units."""
    return [str(unit) if unit.part else unit.layer for unit in removal.units]


def parameters_gone(units: dict[str, int], removed: Sequence[int], layer_parameters: Sequence[int]) -> int:
    """Parameters that go with some layers and, beside them, with units of other layers."""
    parts = sum(count for name, count in units.items() if Unit.parse(name).layer not in removed)
    return sum(layer_parameters[index] for index in removed) + parts
