"""Removal of units: what goes from a model, as plan, walk, proof, evaluation, repair and report hand it along."""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

from ..runtime.format import layers as numbers_text

ATTENTION, MLP = "attention", "mlp"  # parts of a layer: what mixes positions, and what does not
PARTS = (ATTENTION, MLP)
GROUPS_MOST = 1 << 20  # groups of one part that a name may hold
UNIT = re.compile(rf"(\d{{1,6}})(?:\.({'|'.join(PARTS)})(?::(\d[\d+-]*))?)?")
WHOLE, GONE = "0", "1"  # states of a layer: as it is, and nothing of it left


class Unit(NamedTuple):
    """Unit that can go: a whole layer, a part of one, or groups of a part. Ordered, and named by its text: ``12``,
    ``12.mlp``, ``12.mlp:340``, ``12.mlp:0-5+9``.

    A group of an MLP is a neuron; one of an attention is a KV head with the query heads that read it.
    """

    layer: int
    part: str = ""
    groups: tuple[int, ...] = ()

    @classmethod
    def parse(cls, text: str) -> "Unit":
        """The unit of that name.

        Raises:
            ValueError: it names none.
        """
        match = UNIT.fullmatch(text)
        if not match:
            raise ValueError(f"{text!r} is no unit; write 12, 12.{ATTENTION}, 12.{MLP} or 12.{MLP}:0-5+9")
        return cls(int(match[1]), match[2] or "", groups_named(match[3] or ""))

    def __str__(self) -> str:
        return f"{self.layer}{'.' * bool(self.part)}{self.part}{':' * bool(self.groups)}{groups_text(self.groups)}"

    def singles(self) -> list["Unit"]:
        """Its groups one by one, or itself."""
        return [self._replace(groups=(group,)) for group in self.groups] or [self]

    @property
    def whole(self) -> "Unit":
        """The whole part, or the layer."""
        return Unit(self.layer, self.part)


def groups_text(groups: Sequence[int]) -> str:
    """Numbers of groups, ascending, in short: ``0-5+9``."""
    runs: list[list[int]] = []
    for group in groups:
        if runs and runs[-1][1] == group - 1:
            runs[-1][1] = group
        else:
            runs.append([group, group])
    return "+".join(f"{first}" if first == last else f"{first}-{last}" for first, last in runs)


def groups_named(text: str) -> tuple[int, ...]:
    """The numbers that ``groups_text`` writes.

    Raises:
        ValueError: they are none, or not ascending.
    """
    groups: list[int] = []
    for run in text.split("+") if text else ():
        match = re.fullmatch(r"(\d{1,7})(?:-(\d{1,7}))?", run)
        first, last = (int(match[1]), int(match[2] or match[1])) if match else (1, 0)
        if not (groups[-1] if groups else -1) < first <= last < GROUPS_MOST:
            raise ValueError(f"{text!r} names no groups; write them ascending, such as 0-5+9")
        groups += range(first, last + 1)
    return tuple(groups)


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
        """The removal of units in any order; groups of one part are told as one unit, and what goes anyway with a
        layer or a part is left out.
        """
        groups: dict[Unit, set[int]] = {}
        for unit in units:
            groups.setdefault(unit.whole, set()).update(unit.groups or {-1})
        whole = {unit for unit, numbers in groups.items() if -1 in numbers}
        stays = (unit for unit in groups if not unit.part or Unit(unit.layer) not in whole)
        every = (unit if unit in whole else unit._replace(groups=tuple(sorted(groups[unit]))) for unit in stays)
        return cls(tuple(sorted(every)))

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
        """What the units are: ``layer``, ``part`` where there are parts of layers among them, or ``group`` where
        there are groups of parts.
        """
        return "group" if self.narrows else "part" if any(unit.part for unit in self.units) else "layer"

    @cached_property
    def narrows(self) -> bool:
        """Whether groups of parts are among the units."""
        return any(unit.groups for unit in self.units)

    @cached_property
    def layers(self) -> tuple[int, ...]:
        """The layers of which nothing is left, in order."""
        return tuple(unit.layer for unit in self.units if not unit.part)

    def parts(self, layer: int) -> tuple[str, ...]:
        """The parts that a layer loses, which keeps others."""
        return tuple(unit.part for unit in self._by_layer.get(layer, ()) if unit.part and not unit.groups)

    def groups(self, layer: int) -> dict[str, tuple[int, ...]]:
        """Part -> the groups that it loses, of a layer that keeps others of them."""
        return {unit.part: unit.groups for unit in self._by_layer.get(layer, ()) if unit.groups}

    def lessens(self, layer: int) -> bool:
        """Whether a layer that stays loses something."""
        return any(unit.part for unit in self._by_layer.get(layer, ()))

    def holds(self, unit: Unit) -> bool:
        """Whether a unit goes, be it with more of its part or layer."""
        of_part = [one for one in self._by_layer.get(unit.layer, ()) if one.part in ("", unit.part)]
        return any(not one.groups or (unit.groups and {*unit.groups} <= {*one.groups}) for one in of_part)

    @cached_property
    def _by_layer(self) -> dict[int, list[Unit]]:
        by_layer: dict[int, list[Unit]] = {}
        for unit in self.units:
            by_layer.setdefault(unit.layer, []).append(unit)
        return by_layer

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
        if self.kind == "layer":
            return numbers_text(self.layers)
        narrowed = [unit for unit in self.units if unit.groups]
        if len(narrowed) <= TOLD:
            return ", ".join(map(_short, self.units))
        whole = [str(unit) for unit in self.units if not unit.groups]
        return ", ".join([*whole, *(_together(narrowed, part) for part in PARTS if _of_part(narrowed, part))])


NOTHING = Removal()
SHOWN = 8  # groups that are named one by one
TOLD = 4  # parts that lose groups and are named one by one
GROUP_WORDS = {ATTENTION: ("KV group", "attention"), MLP: ("neuron", "MLP")}


def _short(unit: Unit) -> str:
    many = len(unit.groups) > SHOWN
    return f"{len(unit.groups)} groups of {unit.whole}" if many else str(unit)


def _of_part(units: Iterable[Unit], part: str) -> list[int]:
    """How many groups each of some units of one part has."""
    return [len(unit.groups) for unit in units if unit.part == part]


def _together(units: Iterable[Unit], part: str) -> str:
    """How many groups of a part go, of all layers together."""
    counts = _of_part(units, part)
    group, whole = GROUP_WORDS[part]
    least, most = min(counts), max(counts)
    many = f"{most:,} {group}{'s' * (most > 1)} of each" if least == most else f"{least:,} to {most:,} {group}s"
    if len(counts) == 1:
        return f"{most:,} {group}{'s' * (most > 1)} of one {whole}"
    return f"{many} of {len(counts)} {whole}s"


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
