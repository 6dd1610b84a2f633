"""Residual-stream activations.

Layer by layer for all samples, or, where that is not faithful, during whole forwards.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from jaxtyping import Int
from torch import Tensor

from ..anatomy.kernels import fast_products, packed_weights
from ..anatomy.model import Model
from ..anatomy.units import Step, Steps
from ..artifacts.removal import NOTHING, Removal, Unit
from ..artifacts.units import Units
from ..errors import Refusal, UserError
from ..runtime import distributed
from ..runtime.progress import meter
from ..storage.journal import NO_JOURNAL, Journal, JournalPart, State
from .batching import batches_by_half, rounds
from .evidence import Streams
from .replay import Replay, replay_of
from .sums import Halves, Sums, is_large

Span = tuple[int, int]
Measure = Callable[[Streams], dict]


@dataclass
class StreamTap:
    """One measurement of the stream, and its totals by half of the samples and span of layers.

    Attributes:
        measure: Streams -> named numbers, added over batches and processes.
        spans: measure every span (start, end), start < end, instead of (k, k+1) only.
        last: keep only the last position of each sample.
    """

    measure: Measure
    spans: bool = False
    last: bool = False
    totals: dict[tuple[int, int, int], Sums] = field(default_factory=dict)

    def add(self, half: int, span: Span, before: Tensor, after: Tensor) -> None:
        key = (half, *span)
        self.totals.setdefault(key, Sums())
        self.totals[key] += Sums.of(self.measure(Streams(*span, before, after)))

    def totals_by_span(self) -> dict[Span, Halves]:
        """Span -> its totals, summed over processes."""
        both = len({half for half, *_ in self.totals}) > 1
        spans = sorted({tuple(span) for _, *span in self.totals})
        return {span: Halves.of([self.totals[half, *span].all_sum() for half in range(1 + both)]) for span in spans}


@dataclass
class _Taps:
    """Turns streams before and after layers into the totals of several measurements.

    Where one wants spans, the stream at every place is kept (only the last position if that suffices for all of those).
    """

    model: Model
    taps: Sequence[StreamTap]
    units: Units
    first: int = 1  # batches of the first half
    kept: list[dict[int, Tensor]] = field(default_factory=list)

    def see(self, batch: int, unit: Unit, before: Tensor, after: Tensor) -> None:
        """One unit's streams, in the model's own layout."""
        index = self.units.numbers.get(unit)
        if index is None:
            return
        before, after = (self.model.stack.tokens_first(stream) for stream in (before, after))
        if not torch.isfinite(after).all():
            raise UserError(
                f"{self.units.word} {unit} yields NaN or infinite values: are the weights whole, and does the dtype "
                "suffice?"
            )
        half = int(batch >= self.first)
        for tap in self.taps:
            if not tap.spans:
                tap.add(half, (index, index + 1), *((one[:, -1:] if tap.last else one) for one in (before, after)))
        if self.spanning_taps:
            self._spans(batch, index, before, after, half)

    @property
    def spanning_taps(self) -> list[StreamTap]:
        return [tap for tap in self.taps if tap.spans]

    def _spans(self, batch: int, index: int, before: Tensor, after: Tensor, half: int) -> None:
        if all(tap.last for tap in self.spanning_taps):
            before, after = before[:, -1:].clone(), after[:, -1:].clone()
        while len(self.kept) <= batch:
            self.kept.append({})
        places = self.kept[batch]
        places.setdefault(index, before)
        places[index + 1] = after
        for tap in self.spanning_taps:
            for start in range(index + 1):
                tap.add(
                    half, (start, index + 1), *((one[:, -1:] if tap.last else one) for one in (places[start], after))
                )


@torch.no_grad()
def stream_sums(
    model: Model,
    tokens: Int[Tensor, "sample position"],
    taps: Sequence[StreamTap],
    *,
    units: Units,
    removal: Removal = NOTHING,
    journal: Journal = NO_JOURNAL,
) -> list[dict[Span, Halves]]:
    """Add up measurements of the stream before and after every unit that stays, or every span of layers.

    All in one walk.

    Args:
        units: what is measured; a span is (number, number + 1) of one of them.
        removal: units to leave out; no spans are measured then.
    """
    replay = replay_of(model)
    every = any(tap.spans and not tap.last for tap in taps)
    steps = model.steps_for(units, removal)
    running = steps.running(removal)
    pieces = rounds(model, tokens, len(model.stack) + 2 if every else 2) if replay else [distributed.share(tokens)]
    collector = _Taps(model, taps, units)
    with journal.part("layers", len(pieces) * len(running)) as part, fast_products(model.module):
        if replay is None:
            check_whole_units(model, units)
            parts, collector.first = batches_by_half(model, pieces[0])
            _whole(collector, parts, removal)
        else:
            _step_by_step(collector, replay, pieces, steps, running, part)
    return [tap.totals_by_span() for tap in taps]


def check_whole_units(model: Model, units: Units) -> None:
    """Raise a Refusal where parts of layers are looked at in a model that cannot be walked layer by layer."""
    if not units.whole:
        raise Refusal(
            f"{model.checkpoint.source}: its layers hand more than the stream to each other, so what a part of one "
            "does cannot be seen: choose perplexity, or magnitude"
        )


def _step_by_step(
    taps: _Taps,
    replay: Replay,
    pieces: list[Tensor],
    steps: Steps,
    stays: list[tuple[Step, str]],
    part: JournalPart,
) -> None:
    state = part.resume()
    first, done_before = divmod(state.step, len(stays))
    _restore(taps, state)
    with meter("activations", len(pieces) * len(stays), state.step) as done:
        for number in range(first, len(pieces)):
            parts, taps.first = batches_by_half(taps.model, pieces[number])
            recordings = [replay.record(batch) for batch in parts]
            streams = [recording.entering for recording in recordings]
            resumed = number == first and done_before
            if resumed:
                streams = [state.tensors[f"stream/{i}"].to(taps.model.device) for i in range(len(recordings))]
            else:
                taps.kept.clear()
            for place in range(done_before if resumed else 0, len(stays)):
                step, how = stays[place]
                with packed_weights(replay.stack.layers[step.layer], len(recordings)):
                    for i, recording in enumerate(recordings):
                        with steps.silenced(replay.stack, step, how):
                            after = replay.step(recording, step.layer, streams[i])
                        for unit, behind in replay.behind_units(steps, step, how, recording, streams[i], after):
                            taps.see(i, unit, streams[i], behind)
                        streams[i] = after
                done.add(1, f"layer {step.layer + 1} of {len(replay.stack)}")
                part.keep(number * len(stays) + place + 1, _state(taps, streams), {})


def _state(taps: _Taps, streams: list[Tensor]) -> dict[str, Tensor]:
    tensors = {f"stream/{i}": stream for i, stream in enumerate(streams)}
    for i, places in enumerate(taps.kept):
        tensors |= {f"kept/{i}/{place}": stream for place, stream in places.items()}
    for number, tap in enumerate(taps.taps):
        for (half, start, end), sums in tap.totals.items():
            tensors |= {f"total/{number}/{half}/{start}/{end}/{name}": value for name, value in sums.items()}
    return tensors


def _restore(taps: _Taps, state: State) -> None:
    for key, tensor in state.tensors.items():
        kind, *places = key.split("/")
        if kind == "kept":
            while len(taps.kept) <= int(places[0]):
                taps.kept.append({})
            taps.kept[int(places[0])][int(places[1])] = tensor.to(taps.model.device)
        elif kind == "total":
            number, *key = map(int, places[:4])
            totals = taps.taps[number].totals.setdefault(tuple(key), Sums())
            totals["/".join(places[4:])] = tensor.to(taps.model.device) if is_large(tensor) else tensor


def _whole(taps: _Taps, parts: list[Tensor], removal: Removal) -> None:
    """The same totals from the model's own forwards."""
    with meter("samples", len(parts)) as done:
        for number, batch in enumerate(parts):
            with taps.model.without(removal), _tapped(taps, number, removal):
                _body(taps.model)(input_ids=batch, use_cache=False)
            done.add()


def _body(model: Model):
    """The part of the model that holds the stack, without the head, where it can be run alone."""
    base = model.module.base_model
    return (
        base
        if base is not model.module and model.outline.name.startswith(model.module.base_model_prefix + ".")
        else model.module
    )


@contextmanager
def _tapped(taps: _Taps, batch: int, removal: Removal) -> Iterator[None]:
    stack = taps.model.stack

    def hook(index: int) -> Callable:
        interface = stack.interfaces[index]
        return lambda _, args, kwargs, out: taps.see(
            batch, Unit(index), interface.stream_in(args, kwargs), interface.stream_out(out)
        )

    handles = [
        layer.register_forward_hook(hook(i), with_kwargs=True)
        for i, layer in enumerate(stack.layers)
        if not removal.gone(i)
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
