"""Gap fits: the closed-form repair of any gap by what is written in front of it, from the dense model's streams alone.

A step (a layer, or a part of one) that stays in front of a run of steps that go is fitted to the dense stream behind
the run (see ``writer_fit``). Every removal with that gap shares its fit, whatever else goes: what other gaps do to the
stream that is fitted on is left out. That is the first fit of ``sequential``, and what tells plans apart before one of
them is repaired whole.
"""

from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field

import torch
from jaxtyping import Int
from torch import Tensor

from ..anatomy.kernels import fast_products, packed_weights
from ..anatomy.model import Model
from ..anatomy.patch import Patch, patched
from ..anatomy.stack import Stack
from ..anatomy.units import Step, Steps
from ..anatomy.writers import Writer
from ..artifacts.removal import GONE, WHOLE, Removal
from ..errors import Refusal, UserError
from ..runtime import distributed
from ..runtime.progress import meter, say
from ..walk.batching import batches
from ..walk.replay import Recording, replay_of
from .capture import capture, lies_in, probe_of, small_part, writers_of
from .writer_fit import STRENGTH, Rows, WriterFit, fitted_features, rows_of

MARK = "repaired to "  # begins the state of a step that is repaired for the gap behind it

Gap = tuple[int, int]  # places of the step in front and of the first one behind


@dataclass
class _Front:
    """A step in front of gaps, and what its fits need of every batch: features, output, and the stream behind it."""

    writer: Writer
    rows: list[tuple[Rows | None, Rows, Rows]] = field(default_factory=list)


class GapFits:
    """Fits of the gaps of one model, made when they are first needed.

    Args:
        model: the dense model.
        tokens: what is fitted on, of which each process takes its share; the features of as many steps as the longest
            gap has are in memory together.
    Raises:
        UserError: the model cannot be walked layer by layer.
    """

    def __init__(self, model: Model, tokens: Int[Tensor, "sample position"]):
        replay = replay_of(model)
        if replay is None:
            raise UserError(
                f"{model.checkpoint.source}: its layers hand more than the stream to each other, so nothing can be "
                "repaired: choose by the loss as it is"
            )
        self.model = model
        self.tokens = tokens
        self.replay = replay
        self.known: tuple[Step, ...] = ()
        self.patches: dict[Gap, Patch] = {}
        self.refused: dict[int, Refusal] = {}  # place of a step of which nothing can be fitted

    def steps(self, removals: Iterable[Removal]) -> "RepairedSteps":
        """The steps of a walk for these removals, each repaired in front of its gaps.

        Raises:
            Refusal: no gap has anything in front of it that can be repaired.
        """
        removals = list(removals)
        plain = self.model.steps(*removals)
        if plain.steps != self.known:  # places of layers are none of parts
            self.known = plain.steps
            self.patches.clear()
            self.refused.clear()
        gaps = {gap for removal in removals for gap in gaps_of(plain.states(removal))}
        self._fit(plain, {gap for gap in gaps if gap not in self.patches and gap[0] not in self.refused})
        if self.refused and not any(gap in self.patches for gap in gaps):
            raise next(iter(self.refused.values()))
        return RepairedSteps(plain.steps, plain.parts, self)

    @torch.no_grad()
    def _fit(self, steps: Steps, new: set[Gap]) -> None:
        """Fit gaps in one walk of the dense model."""
        ends = {front: max(end for one, end in new if one == front) for front, _ in new}
        parts = batches(self.model, distributed.share(self.tokens))
        recordings = [self.replay.record(part) for part in parts]
        streams = [recording.entering for recording in recordings]
        probe = probe_of(self.replay, self.tokens, self.model.device)
        fronts: dict[int, _Front] = {}
        last = max(ends.values(), default=0)
        with fast_products(self.model.module), meter("closed forms of gaps", last) as done:
            for place, step in enumerate(steps.steps[:last]):
                layer = self.model.layer(step.layer)
                front = self._front(steps, place, probe, streams[0]) if place in ends else None
                if front is not None:
                    fronts[place] = front
                with steps.silenced(self.model.stack, step), packed_weights(layer, len(parts)):
                    for i, recording in enumerate(recordings):
                        streams[i] = self._through(recording, step, streams[i], front)
                for gap in sorted(gap for gap in new if gap[1] == place + 1 and gap[0] in fronts):
                    self.patches[gap] = self._solved(fronts[gap[0]], steps.steps[gap[0]], streams)
                fronts = {one: front for one, front in fronts.items() if ends[one] > place + 1}
                done.add()

    def _front(self, steps: Steps, place: int, probe: Recording, stream: Tensor) -> _Front | None:
        """The last writer of a step, or None where nothing can be fitted."""
        step = steps.steps[place]
        layer = self.model.stack.layers[step.layer]
        small = distributed.from_first(small_part(self.replay, probe, stream))
        try:
            writers = writers_of(layer, self.replay, probe, step.layer, small, gains=True)
            own = steps.parts[step.layer].parts[step.part].modules if step.part else ()
            inside = [one for one in writers if not own or lies_in(one, own)]
            if not inside:
                raise Refusal(f"layer {step.layer}: what its {step.part} writes cannot be told apart")
        except Refusal as refusal:
            self.refused[place] = refusal
            say(f"{refusal}; gaps behind it are compared as they are")
            return None
        return _Front(inside[-1])

    def _through(self, recording: Recording, step: Step, stream: Tensor, front: _Front | None) -> Tensor:
        """A batch through a step; what the fits of the step need is kept."""
        layer, stack = self.model.stack.layers[step.layer], self.model.stack
        with capture(layer, (front.writer,) if front else ()) as seen:
            after = self.replay.step(recording, step.layer, stream)
        if front:
            given, output = seen[0]
            features = fitted_features(stack, layer, front.writer, given, stream.shape)
            added = front.writer.scale * output.view(stream.shape)
            front.rows.append((features, rows_of(stack, added), rows_of(stack, after)))
        return after

    def _solved(self, front: _Front, step: Step, streams: list[Tensor]) -> Patch:
        fit = WriterFit(front.writer)
        for (features, output, reached), stream in zip(front.rows, streams, strict=True):
            fit.add(features, output, reached, rows_of(self.model.stack, stream))
        fit.all_sum()
        names = [(f"{self.model.stack.name}.{step.layer}.{name}", axis) for name, axis in front.writer.weights]
        return fit.patch(STRENGTH, names, self.model.module)


def gaps_of(states: tuple[str, ...]) -> list[Gap]:
    """The runs of steps that are gone behind one that stays whole."""
    gaps = []
    for place, state in enumerate(states):
        end = next((later for later in range(place + 1, len(states)) if states[later] != GONE), len(states))
        if state == WHOLE and end > place + 1:
            gaps.append((place, end))
    return gaps


@dataclass(frozen=True)
class RepairedSteps(Steps):
    """Steps of a walk in which those in front of a gap are repaired for it."""

    fits: GapFits | None = None

    def states(self, removal: Removal) -> tuple[str, ...]:
        """As in ``Steps``; a step that is repaired says for which gap."""
        states = [*super().states(removal)]
        for front, end in gaps_of(tuple(states)):
            if (front, end) in self.fits.patches:
                states[front] = f"{MARK}{end}"
        return tuple(states)

    def silenced(self, stack: Stack, step: Step, state: str = WHOLE) -> AbstractContextManager[None]:
        """As in ``Steps``, the repair applied."""
        if not state.startswith(MARK):
            return super().silenced(stack, step, state)
        return self._repaired(stack, step, int(state.removeprefix(MARK)))

    @contextmanager
    def _repaired(self, stack: Stack, step: Step, end: int) -> Iterator[None]:
        patch = self.fits.patches[self.steps.index(step), end]
        with patched(self.fits.model.module, patch), super().silenced(stack, step):
            self.fits.model.layer(step.layer)
            yield
