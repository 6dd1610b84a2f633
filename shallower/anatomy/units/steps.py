"""Steps of a walk: the layers one after another, or their parts where these can run alone."""

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import NamedTuple

from ...artifacts.removal import GONE, WHOLE, Removal, Unit, groups_named, groups_text
from ..stack import Stack
from .part import LayerParts, lessened_layer, silent

BESIDE = ";"  # between what a layer loses, in the text of its state


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
        return tuple(self._state(step, whole, removal) for step in self.steps)

    def _state(self, step: Step, whole: frozenset[int], removal: Removal) -> str:
        if step.layer in whole:
            return GONE
        if not self.parts or not removal.lessens(step.layer):
            return WHOLE
        names = (step.part,) if step.part else self.parts[step.layer].parts
        gone = [name for name in removal.parts(step.layer) if name in names]
        if len(gone) == len(names):
            return GONE
        narrowed = [f"{name}:{groups_text(one)}" for name, one in removal.groups(step.layer).items() if name in names]
        return BESIDE.join([*gone, *narrowed]) or WHOLE

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
        names = [name for name in every if name not in state.split(BESIDE)]
        return tuple(Unit(step.layer, name) for name in names)

    def alone(self, stack: Stack, unit: Unit) -> AbstractContextManager[None]:
        """Let the layer of a part do only what the part does while inside."""
        layer = self.parts[unit.layer].parts
        return silent(stack.layers[unit.layer], [layer[name] for name in layer if name != unit.part], stack.width)

    def silenced(self, stack: Stack, step: Step, state: str = WHOLE) -> AbstractContextManager[None]:
        """Let the layer of a step do only what it does there, in that state."""
        if not self.parts:
            return nullcontext()
        layer = self.parts[step.layer]
        lost = dict(one.partition(":")[::2] for one in state.split(BESIDE))
        others = [name for name in layer.parts if name != step.part] if step.part else []
        names = [name for name in layer.parts if name in others or lost.get(name) == ""]
        groups = {name: groups_named(text) for name, text in lost.items() if text and name not in names}
        return lessened_layer(stack, step.layer, layer, names, groups)
