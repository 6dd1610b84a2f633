"""Weights with their gradients, one layer at a time: a walk back through the stack that re-runs each layer with grad."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from jaxtyping import Int
from torch import Tensor
from torch.nn.functional import cross_entropy

from ..anatomy.bypass import bypass
from ..anatomy.model import Model
from ..progress import track
from .evidence import Gradients
from .losses import batches, chunks, part_of, replay_of, total_predictions
from .replay import Recording, Replay
from .sums import Sums

Measure = Callable[[Gradients], dict]


def gradient_sums(
    model: Model, tokens: Int[Tensor, "sample position"], measure: Measure, *, removed: tuple[int, ...] = ()
) -> Iterator[tuple[int, Sums]]:
    """Yield (layer, totals) from the last layer that stays to the first; the totals are freed when the walk goes on.

    Only the layers' inputs are kept from the way up; one layer's gradients exist at a time. Models that cannot be
    replayed get one plain backward through everything instead.
    """
    replay = replay_of(model)
    parts = batches(tokens, model.device)
    scale = 1 / total_predictions(tokens)
    if replay is None:
        yield from _whole(model, parts, measure, removed, scale)
        return
    stays = [index for index in range(len(model.stack)) if index not in removed]
    recordings = [replay.record(batch) for batch in parts]
    inputs = []
    for recording in track(recordings, "forward", len(parts)):
        inputs.append(_way_up(replay, recording, stays))
    flowing = [_top(replay, kept.pop(), batch, scale) for kept, batch in zip(inputs, parts, strict=True)]
    for index in track(reversed(stays), "backward", len(stays)):
        total = Sums()
        for i, recording in enumerate(recordings):
            flowing[i], evidence = _layer_back(replay, recording, index, inputs[i].pop(), flowing[i])
            total += Sums.of(measure(evidence))
            del evidence
        yield index, total


@torch.no_grad()
def _way_up(replay: Replay, recording: Recording, stays: list[int]) -> list[Tensor]:
    """The stream in front of each layer that stays and, last, after all."""
    streams = [recording.entering]
    for index in stays:
        streams.append(replay.step(recording, index, streams[-1]))
    return streams


def _top(replay: Replay, stream: Tensor, tokens: Tensor, scale: float) -> Tensor:
    """Gradient of the scaled loss with respect to the last stream, the logits made in chunks."""
    gradient = torch.zeros_like(stream)
    for rows, places in chunks(replay, tokens):
        part = part_of(replay, stream, rows, places).detach().clone().requires_grad_()
        with torch.enable_grad():
            logits = replay.head(part).flatten(0, 1).float()
            targets = tokens[rows, places.start + 1 : places.stop + 1].flatten()
            loss = cross_entropy(logits, targets, reduction="sum") * scale
        part_of(replay, gradient, rows, places).copy_(torch.autograd.grad(loss, part)[0])
    return gradient


def _layer_back(replay: Replay, recording: Recording, index: int, entering: Tensor, flowing: Tensor) -> tuple[Tensor, Gradients]:
    """Gradient with respect to the layer's input, and the evidence of this layer and batch."""
    weights = dict(replay.stack.layers[index].named_parameters())
    entering = entering.detach().requires_grad_()
    with trainable(weights.values()), torch.enable_grad():
        leaving = replay.step(recording, index, entering)
        found = torch.autograd.grad(leaving, [entering, *weights.values()], flowing, allow_unused=True)
    detached = {name: weight.detach() for name, weight in weights.items()}
    gradients = {
        name: torch.zeros_like(weight) if gradient is None else gradient
        for (name, weight), gradient in zip(detached.items(), found[1:], strict=True)
    }
    return found[0], Gradients(index, detached, gradients)


@contextmanager
def trainable(parameters) -> Iterator[None]:
    """Let autograd see these parameters while inside."""
    parameters = list(parameters)
    for parameter in parameters:
        parameter.requires_grad_(True)
    try:
        yield
    finally:
        for parameter in parameters:
            parameter.requires_grad_(False)


def _whole(model: Model, parts: list[Tensor], measure: Measure, removed: tuple[int, ...], scale: float) -> Iterator[tuple[int, Sums]]:
    """The same totals by a plain forward and backward per batch."""
    layers = {i: dict(layer.named_parameters()) for i, layer in enumerate(model.stack.layers) if i not in removed}
    every = [weight for weights in layers.values() for weight in weights.values()]
    totals = {index: Sums() for index in layers}
    for batch in track(parts, "backward", len(parts)):
        with bypass(model.stack, removed), trainable(every), torch.enable_grad():
            logits = model.module(input_ids=batch, use_cache=False).logits[:, :-1].flatten(0, 1).float()
            loss = cross_entropy(logits, batch[:, 1:].flatten(), reduction="sum") * scale
            found = iter(torch.autograd.grad(loss, every, allow_unused=True))
        for index, weights in layers.items():
            gradients = {name: gradient if (gradient := next(found)) is not None else torch.zeros_like(w) for name, w in weights.items()}
            detached = {name: weight.detach() for name, weight in weights.items()}
            totals[index] += Sums.of(measure(Gradients(index, detached, gradients)))
    yield from reversed(totals.items())
