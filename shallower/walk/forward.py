"""Taps on the residual stream during the model's ordinary forward."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from jaxtyping import Int
from torch import Tensor

from ..anatomy.bypass import bypass
from ..anatomy.model import Model
from ..errors import UserError
from ..progress import track
from .evidence import Streams
from .losses import batches
from .sums import Sums

Span = tuple[int, int]
Measure = Callable[[Streams], dict]


@torch.no_grad()
def stream_sums(
    model: Model,
    tokens: Int[Tensor, "sample position"],
    measure: Measure,
    *,
    removed: tuple[int, ...] = (),
    spans: bool = False,
    last: bool = False,
) -> dict[Span, Sums]:
    """Add up a measurement of the stream before and after every layer that stays, or every span of layers.

    Args:
        measure: Streams -> named numbers, added over batches.
        removed: layers to leave out.
        spans: measure every span (start, end), start < end, instead of (k, k+1) only; nothing may be removed then.
        last: keep only the last position of each sample.
    """
    totals: dict[Span, Sums] = {}
    parts = batches(tokens, model.device)
    for batch in track(parts, "streams", len(parts)):
        kept: dict[int, Tensor] = {}
        with bypass(model.stack, removed), _tapped(model, removed, kept, measure, totals, spans, last):
            _body(model)(input_ids=batch, use_cache=False)
        for start in kept if spans else ():
            for end in range(start + 1, len(kept)):
                _add(totals, (start, end), measure(Streams(start, end, kept[start], kept[end])))
    return totals


def _body(model: Model):
    """The part of the model that holds the stack, without the head, where it can be run alone."""
    base = model.module.base_model
    return base if base is not model.module and model.outline.name.startswith(model.module.base_model_prefix + ".") else model.module


@contextmanager
def _tapped(model: Model, removed, kept: dict, measure: Measure, totals: dict, spans: bool, last: bool) -> Iterator[None]:
    stack = model.stack

    def hook(index: int) -> Callable:
        interface = stack.interfaces[index]

        def tap(_, args, kwargs, output) -> None:
            before, after = (stack.tokens_first(x) for x in (interface.stream_in(args, kwargs), interface.stream_out(output)))
            if not torch.isfinite(after).all():
                raise UserError(f"layer {index} yields NaN or infinite values: are the weights whole, and does the dtype suffice?")
            if last:
                before, after = before[:, -1:], after[:, -1:]
            if spans:
                kept.setdefault(index, before)
                kept[index + 1] = after
            else:
                _add(totals, (index, index + 1), measure(Streams(index, index + 1, before, after)))

        return tap

    handles = [layer.register_forward_hook(hook(i), with_kwargs=True) for i, layer in enumerate(stack.layers) if i not in removed]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _add(totals: dict[Span, Sums], span: Span, measured: dict) -> None:
    totals.setdefault(span, Sums())
    totals[span] += Sums.of(measured)
