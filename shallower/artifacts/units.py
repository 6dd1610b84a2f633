"""Units of a model: all that can be removed of one kind, in order, with the parameters of each.

Scores, searches and budgets know a unit by its number in this listing, which for whole layers is the layer's.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

from ..errors import UserError
from .removal import ATTENTION, MLP, Removal, Unit

LAYER, SUBLAYER = "layer", "sublayer"  # whole layers; attention and MLP, each alone
WIDTH = "width"  # KV groups of attentions and neurons of MLPs
LAYER_WIDTH = "layer+width"  # whole layers, and groups of those that stay
NARROW = (WIDTH, LAYER_WIDTH)  # kinds that hold groups of parts
UNIT_KINDS = (LAYER, ATTENTION, MLP, SUBLAYER, WIDTH, LAYER_WIDTH)


def check_units_kind(kind: str, *, plans: bool = True) -> None:
    """Raise a UserError if there are no units of that kind.

    Args:
        plans: something is planned; what only a plan can weigh against each other is none elsewhere.
    """
    allowed = UNIT_KINDS if plans else UNIT_KINDS[:-1]
    if kind not in allowed:
        raise UserError(f"allowed are {', '.join(allowed)}", units=kind)


class SizedUnit(NamedTuple):
    """A unit and the parameters that go with it."""

    unit: Unit
    parameters: int


@dataclass(frozen=True)
class Units:
    """Units of one kind.

    Attributes:
        kind: ``layer``, ``attention``, ``mlp``, ``sublayer``, ``width`` or ``layer+width``.
        listing: in order. A layer that is one part alone stands there as a whole layer.
        layer_parameters: of every layer as a whole.
    """

    kind: str
    listing: tuple[SizedUnit, ...]
    layer_parameters: tuple[int, ...]

    @classmethod
    def of_layers(cls, layer_parameters: Sequence[int]) -> "Units":
        """Every layer."""
        listing = (SizedUnit(Unit(index), count) for index, count in enumerate(layer_parameters))
        return cls(LAYER, tuple(listing), tuple(layer_parameters))

    @classmethod
    def named(cls, sizes: dict[str, int], layer_parameters: Sequence[int]) -> "Units":
        """Those that a record names, with their parameters; every layer where it names none."""
        if not sizes:
            return cls.of_layers(layer_parameters)
        listing = tuple(one for name, count in sizes.items() for one in _single(Unit.parse(name), count))
        kinds = {unit.part for unit, _ in listing if unit.part}
        if any(unit.groups for unit, _ in listing):
            kinds = {WIDTH if all(unit.groups for unit, _ in listing) else LAYER_WIDTH}
        return cls(kinds.pop() if len(kinds) == 1 else SUBLAYER, listing, tuple(layer_parameters))

    def __len__(self) -> int:
        return len(self.listing)

    @property
    def whole(self) -> bool:
        """Whether these are whole layers."""
        return self.kind == LAYER

    @property
    def layers(self) -> int:
        """Number of layers of the model."""
        return len(self.layer_parameters)

    @property
    def word(self) -> str:
        """What one of them is called."""
        return LAYER if self.whole else "unit"

    @cached_property
    def numbers(self) -> dict[Unit, int]:
        """Unit -> its number."""
        return {one.unit: number for number, one in enumerate(self.listing)}

    @cached_property
    def parts(self) -> dict[int, set[str]]:
        """Layer -> its parts, of layers all of whose parts are listed."""
        by_layer: dict[int, set[str]] = {}
        for unit, _ in self.listing:
            by_layer.setdefault(unit.layer, set()).add(unit.part)
        return {index: names for index, names in by_layer.items() if names == {ATTENTION, MLP}}

    def name(self, number: int) -> str:
        """The name of a unit."""
        return str(self.listing[number].unit)

    def removal(self, numbers: Iterable[int]) -> Removal:
        """The removal of these units; a layer of which nothing is left goes as a whole layer."""
        return Removal.of(self.listing[number].unit for number in numbers).folded(
            [self.parts.get(index, ()) for index in range(self.layers)]
        )

    def most(self, allowed: Sequence[int]) -> int:
        """How many of some units may go: all, or all but one where nothing would be left of the model."""
        if self.narrow:  # one group of every part stays
            return len(allowed) - len({self.listing[number].unit.whole for number in allowed})
        return len(allowed) - (len(self.removal(allowed).layers) == self.layers)

    def stays(self, removal: Removal) -> list[int]:
        """Numbers of the units of which a removal leaves something."""
        lost = {single for unit in removal.units for single, _ in _single(unit, 0)}
        return [
            number
            for number, (unit, _) in enumerate(self.listing)
            if not removal.gone(unit.layer) and unit not in lost and unit.whole not in lost
        ]

    def sizes(self, numbers: Iterable[int]) -> dict[str, int]:
        """Name -> parameters of some units, in the order given; nothing for whole layers, whose records count them.

        Groups of a part are told together.
        """
        if self.whole:
            return {}
        groups: dict[Unit, list[int]] = {}
        counts: dict[Unit, int] = {}
        for unit, count in (self.listing[number] for number in numbers):
            groups.setdefault(unit.whole, []).extend(unit.groups)
            counts[unit.whole] = counts.get(unit.whole, 0) + count
        return {str(unit._replace(groups=tuple(sorted(groups[unit])))): count for unit, count in counts.items()}

    @property
    def narrow(self) -> bool:
        """Whether these are groups of parts."""
        return self.kind in NARROW

    @cached_property
    def by_part(self) -> dict[Unit, list[int]]:
        """Whole part -> numbers of its groups, in order."""
        numbers: dict[Unit, list[int]] = {}
        for number, (unit, _) in enumerate(self.listing):
            if unit.groups:
                numbers.setdefault(unit.whole, []).append(number)
        return numbers

    def parameters(self, numbers: Iterable[int]) -> int:
        """Parameters that go with some units."""
        numbers = list(numbers)
        gone = self.removal(numbers).layers
        parts = (self.listing[number] for number in numbers)
        return sum(self.layer_parameters[index] for index in gone) + sum(
            one.parameters for one in parts if one.unit.layer not in gone
        )


def _single(unit: Unit, parameters: int) -> list[SizedUnit]:
    """The groups of a unit one by one, which are alike; else the unit itself."""
    singles = unit.singles()
    return [SizedUnit(one, parameters // len(singles)) for one in singles]
