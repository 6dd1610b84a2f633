"""Taps on the residual stream: layer by layer for all samples, or, where that is not faithful, during whole forwards."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from jaxtyping import Int
from torch import Tensor

from .. import ranks
from ..anatomy.bypass import bypass
from ..anatomy.kernels import fast_products, packed
from ..anatomy.model import Model
from ..errors import UserError
from ..journal import NO_JOURNAL, Journal, Part, State
from ..progress import meter
from .batching import batches, rounds
from .evidence import Streams
from .losses import replay_of
from .replay import Replay
from .sums import Sums

Span = tuple[int, int]
Measure = Callable[[Streams], dict]


@dataclass
class _Taps:
    """Turns streams before and after layers into totals by span.

    With ``spans`` every pair of places is measured, so the stream at every place is kept (only the last position with
    ``last``); without, each layer alone.
    """

    model: Model
    measure: Measure
    spans: bool
    last: bool
    totals: dict[Span, Sums] = field(default_factory=dict)
    kept: list[dict[int, Tensor]] = field(default_factory=list)

    def see(self, batch: int, index: int, before: Tensor, after: Tensor) -> None:
        """One layer's streams, in the model's own layout."""
        before, after = (self.model.stack.tokens_first(stream) for stream in (before, after))
        if not torch.isfinite(after).all():
            raise UserError(f"layer {index} yields NaN or infinite values: are the weights whole, and does the dtype suffice?")
        if self.last:
            before, after = before[:, -1:].clone(), after[:, -1:].clone()
        if not self.spans:
            return self._add((index, index + 1), before, after)
        while len(self.kept) <= batch:
            self.kept.append({})
        places = self.kept[batch]
        places.setdefault(index, before)
        places[index + 1] = after
        for start in range(index + 1):
            self._add((start, index + 1), places[start], after)
        return None

    def _add(self, span: Span, before: Tensor, after: Tensor) -> None:
        self.totals.setdefault(span, Sums())
        self.totals[span] += Sums.of(self.measure(Streams(*span, before, after)))


@torch.no_grad()
def stream_sums(
    model: Model,
    tokens: Int[Tensor, "sample position"],
    measure: Measure,
    *,
    removed: tuple[int, ...] = (),
    spans: bool = False,
    last: bool = False,
    journal: Journal = NO_JOURNAL,
) -> dict[Span, Sums]:
    """Add up a measurement of the stream before and after every layer that stays, or every span of layers.

    Args:
        measure: Streams -> named numbers, added over batches and processes.
        removed: layers to leave out.
        spans: measure every span (start, end), start < end, instead of (k, k+1) only; nothing may be removed then.
        last: keep only the last position of each sample.
    """
    replay = replay_of(model)
    taps = _Taps(model, measure, spans, last)
    stays = [index for index in range(len(model.stack)) if index not in removed]
    pieces = rounds(model, tokens, len(model.stack) + 2 if spans and not last else 2) if replay else [ranks.share(tokens)]
    with journal.part("streams", len(pieces) * len(stays)) as part, fast_products(model.module):
        if replay is None:
            _whole(taps, batches(model, pieces[0]), removed)
        else:
            _layer_by_layer(taps, replay, pieces, stays, part)
    return {span: sums.added() for span, sums in sorted(taps.totals.items())}


def _layer_by_layer(taps: _Taps, replay: Replay, pieces: list[Tensor], stays: list[int], part: Part) -> None:
    state = part.resume()
    first, done_before = divmod(state.step, len(stays))
    _restore(taps, state)
    with meter("streams", len(pieces) * len(stays), state.step) as done:
        for number in range(first, len(pieces)):
            recordings = [replay.record(batch) for batch in batches(taps.model, pieces[number])]
            streams = [recording.entering for recording in recordings]
            resumed = number == first and done_before
            if resumed:
                streams = [state.tensors[f"stream/{i}"].to(taps.model.device) for i in range(len(recordings))]
            else:
                taps.kept.clear()
            for place in range(done_before if resumed else 0, len(stays)):
                with packed(replay.stack.layers[stays[place]], len(recordings)):
                    for i, recording in enumerate(recordings):
                        after = replay.step(recording, stays[place], streams[i])
                        taps.see(i, stays[place], streams[i], after)
                        streams[i] = after
                done.add()
                step = number * len(stays) + place + 1
                part.keep(step, _state(taps, streams), {})


def _state(taps: _Taps, streams: list[Tensor]) -> dict[str, Tensor]:
    tensors = {f"stream/{i}": stream for i, stream in enumerate(streams)}
    for i, places in enumerate(taps.kept):
        tensors |= {f"kept/{i}/{place}": stream for place, stream in places.items()}
    for (start, end), sums in taps.totals.items():
        tensors |= {f"total/{start}/{end}/{name}": value for name, value in sums.items()}
    return tensors


def _restore(taps: _Taps, state: State) -> None:
    for key, tensor in state.tensors.items():
        kind, *places = key.split("/")
        if kind == "kept":
            while len(taps.kept) <= int(places[0]):
                taps.kept.append({})
            taps.kept[int(places[0])][int(places[1])] = tensor.to(taps.model.device)
        elif kind == "total":
            taps.totals.setdefault((int(places[0]), int(places[1])), Sums())["/".join(places[2:])] = tensor


def _whole(taps: _Taps, parts: list[Tensor], removed: tuple[int, ...]) -> None:
    """The same totals from the model's own forwards."""
    with meter("streams", len(parts)) as done:
        for number, batch in enumerate(parts):
            with bypass(taps.model.stack, removed), _tapped(taps, number, removed):
                _body(taps.model)(input_ids=batch, use_cache=False)
            done.add()


def _body(model: Model):
    """The part of the model that holds the stack, without the head, where it can be run alone."""
    base = model.module.base_model
    return base if base is not model.module and model.outline.name.startswith(model.module.base_model_prefix + ".") else model.module


@contextmanager
def _tapped(taps: _Taps, batch: int, removed: tuple[int, ...]) -> Iterator[None]:
    stack = taps.model.stack

    def hook(index: int) -> Callable:
        interface = stack.interfaces[index]
        return lambda _, args, kwargs, out: taps.see(batch, index, interface.stream_in(args, kwargs), interface.stream_out(out))

    handles = [layer.register_forward_hook(hook(i), with_kwargs=True) for i, layer in enumerate(stack.layers) if i not in removed]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
