"""Steps of a walk: the layers one after another, or their parts where these can run alone."""

from collections.abc import Iterable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import NamedTuple

from ...artifacts.removal import GONE, WHOLE, Removal, Unit
from ..stack import Stack
from .part import LayerParts, silent


class Step(NamedTuple):
    """A stretch of the stack that runs at once: a layer, or one part of it."""

    layer: int
    part: str = ""


@dataclass(frozen=True)
class Steps:
    """Steps through a stack.

    Attributes:
        steps: in order.
        parts: of every layer; empty where whole layers are all that is looked at.
    """

    steps: tuple[Step, ...]
    parts: tuple[LayerParts, ...] = ()

    @classmethod
    def of_layers(cls, layers: int) -> "Steps":
        """A step for every layer."""
        return cls(tuple(map(Step, range(layers))))

    @classmethod
    def of_parts(cls, parts: tuple[LayerParts, ...]) -> "Steps":
        """A step for every part, or for the layer where its parts read the same stream."""
        names = [layer.order if len(layer.order) > 1 else ("",) for layer in parts]
        return cls(tuple(Step(index, name) for index, one in enumerate(names) for name in one), parts)

    def states(self, removal: Removal) -> tuple[str, ...]:
        """How each step behaves: two removals that give it the same state give it the same output."""
        whole = frozenset(removal.layers)
        lost = frozenset(removal.units)
        return tuple(self._state(step, whole, lost) for step in self.steps)

    def _state(self, step: Step, whole: frozenset[int], lost: frozenset[Unit]) -> str:
        if step.layer in whole or (step.part and Unit(step.layer, step.part) in lost):
            return GONE
        if step.part or not self.parts:
            return WHOLE
        gone = [name for name in self.parts[step.layer].parts if Unit(step.layer, name) in lost]
        return WHOLE if not gone else GONE if len(gone) == len(self.parts[step.layer].parts) else "+".join(gone)

    def running(self, removal: Removal) -> list[tuple[Step, str]]:
        """The steps that do something without some units, each with its state."""
        return [(step, state) for step, state in zip(self.steps, self.states(removal), strict=True) if state != GONE]

    def units_of(self, step: Step, state: str = WHOLE) -> tuple[Unit, ...]:
        """The units that a step in some state is made of: itself, or the parts of its layer that read the same
        stream.
        """
        if step.part or not self.parts:
            return (Unit(*step),)
        every = self.parts[step.layer].parts
        if len(every) == 1:
            return (Unit(step.layer),)
        names = [name for name in every if name not in state.split("+")]
        return tuple(Unit(step.layer, name) for name in names)

    def alone(self, stack: Stack, unit: Unit) -> AbstractContextManager[None]:
        """Let the layer of a part do only what the part does while inside."""
        layer = self.parts[unit.layer].parts
        return silent(stack.layers[unit.layer], [layer[name] for name in layer if name != unit.part], stack.width)

    def silenced(self, stack: Stack, step: Step, state: str = WHOLE) -> AbstractContextManager[None]:
        """Let the layer of a step do only what it does there, in that state."""
        layer = self.parts[step.layer].parts if self.parts else {}
        names: Iterable[str] = [name for name in layer if name != step.part] if step.part else state.split("+")
        return silent(stack.layers[step.layer], [layer[name] for name in names if name in layer], stack.width)
