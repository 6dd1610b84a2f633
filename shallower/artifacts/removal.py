"""Removal of units: what goes from a model, as plan, walk, proof, evaluation, repair and report hand it along."""

from collections.abc import Iterable
from dataclasses import dataclass
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
    """Set of units of one kind that go, in the model's own numbering.

    Attributes:
        kind: what a unit is; ``layer`` is a whole layer.
        units: in order, each once.
    """

    kind: str = "layer"
    units: tuple[Unit, ...] = ()

    @classmethod
    def of_layers(cls, layers: Iterable[int]) -> "Removal":
        """The removal of whole layers."""
        return cls("layer", tuple(Unit(index) for index in sorted(set(layers))))

    @property
    def layers(self) -> tuple[int, ...]:
        """The layers of which nothing is left, in order."""
        return tuple(unit.layer for unit in self.units if not unit.part)

    def state(self, layer: int) -> str:
        """How the layer behaves: two removals that give it the same state give it the same output."""
        return GONE if self.gone(layer) else WHOLE

    def states(self, layers: int) -> tuple[str, ...]:
        """The state of each of a model's layers."""
        gone = frozenset(self.layers)
        return tuple(GONE if index in gone else WHOLE for index in range(layers))

    def gone(self, layer: int) -> bool:
        """Whether nothing of the layer is left."""
        return Unit(layer) in self.units

    def stays(self, layers: int) -> list[int]:
        """Those of so many layers of which something is left."""
        return [index for index in range(layers) if not self.gone(index)]

    def plus(self, *units: Unit) -> "Removal":
        """The removal of these units too."""
        return Removal(self.kind, tuple(sorted({*self.units, *units})))

    def __len__(self) -> int:
        return len(self.units)

    def __str__(self) -> str:
        return numbers_text(self.layers) if self.kind == "layer" else ", ".join(map(str, self.units))


NOTHING = Removal()
