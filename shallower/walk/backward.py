"""Weights with their gradients, one layer at a time: a walk back through the stack that re-runs each layer with grad."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from jaxtyping import Int
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from .. import ranks
from ..anatomy.bypass import bypass
from ..anatomy.kernels import fast_products
from ..anatomy.model import Model
from ..errors import UserError
from ..journal import NO_JOURNAL, Journal
from ..progress import Meter, meter
from .batching import GRADIENT_BATCHES, batches, chunks, part_of, total_predictions
from .evidence import Gradients
from .losses import replay_of
from .replay import Recording, Replay
from .sums import Sums

STREAM = ""  # the name under which a layer's gradients hold the one of its input
Measure = Callable[[Gradients], dict]
Condense = Callable[[Sums], dict]


def gradient_sums(
    model: Model,
    tokens: Int[Tensor, "sample position"],
    measure: Measure,
    condense: Condense,
    *,
    removed: tuple[int, ...] = (),
    journal: Journal = NO_JOURNAL,
) -> dict[int, Sums]:
    """Layer -> totals: every parameter measured batch by batch, its sum condensed to numbers, these added over the layer.

    Only the layers' inputs are kept from the way up; one layer's gradients exist at a time. Models that cannot be
    replayed get one plain backward through everything instead.
    """
    replay = replay_of(model)
    parts = batches(model, ranks.share(tokens), GRADIENT_BATCHES * model.batch_tokens)
    scale = 1 / total_predictions(tokens)
    stays = [index for index in range(len(model.stack)) if index not in removed]
    if replay is None:
        return _whole(model, parts, (measure, condense), removed, scale)
    with journal.part("gradients", len(stays)) as part, fast_products(model.module):
        state = part.resume()
        found = {int(index): Sums.of(numbers) for index, numbers in state.notes.items()}
        back = list(reversed(stays))[len(found) :]
        recordings = [replay.record(batch) for batch in parts]
        with meter("gradients", 4 * len(stays), 4 * len(found)) as done:  # a layer costs a forward and about three on the way back
            if found:
                inputs = _way_up(replay, recordings, stays[: max(0, len(back) - 1)], done)
                flowing = [state.tensors[f"flowing/{i}"].to(model.device) for i in range(len(parts))]
            else:
                inputs = _way_up(replay, recordings, stays, done)
                flowing = [_top(replay, model.vocabulary, top, batch, scale) for top, batch in zip(inputs.pop(), parts, strict=True)]
            model.rest()
            for index in back:
                layer, entering, totals = model.layer(index), inputs.pop(), _Totals(index, measure, condense)
                for i, recording in enumerate(recordings):
                    gradients = _layer_back(replay, layer, recording, index, (entering[i], flowing[i]))
                    flowing[i] = gradients.pop(STREAM).contiguous()  # as it comes back from a journal, so that the same kernels run
                    entering[i] = None
                    totals.add(layer, gradients, last=i == len(recordings) - 1)
                found[index] = totals.numbers
                done.add(3, f"layer {index}")
                part.keep(len(found), {f"flowing/{i}": gradient for i, gradient in enumerate(flowing)}, _numbers(found))
    return dict(sorted(found.items()))


def _numbers(found: dict[int, Sums]) -> dict:
    return {str(index): {name: value.tolist() for name, value in sums.items()} for index, sums in found.items()}


@torch.no_grad()
def _way_up(replay: Replay, recordings: list[Recording], through: list[int], done: Meter) -> list[list[Tensor]]:
    """The streams of all batches in front of each of these layers and, last, after them."""
    inputs = [[recording.entering for recording in recordings]]
    for index in through:
        inputs.append([replay.step(recording, index, stream) for recording, stream in zip(recordings, inputs[-1], strict=True)])
        done.add()
    return inputs


def _top(replay: Replay, vocabulary: int, stream: Tensor, tokens: Tensor, scale: float) -> Tensor:
    """Gradient of the scaled loss with respect to the last stream, the logits made in blocks."""
    gradient = torch.zeros_like(stream)
    for rows, places in chunks(vocabulary, tokens):
        part = part_of(replay.axes, stream, rows, places).detach().clone().requires_grad_()
        with torch.enable_grad():
            logits = replay.head(part).flatten(0, 1).float()
            targets = tokens[rows, places.start + 1 : places.stop + 1].flatten()
            loss = cross_entropy(logits, targets, reduction="sum") * scale
        if not torch.isfinite(loss):
            raise UserError("the loss is NaN or infinite: are the weights whole, and does the dtype suffice?")
        part_of(replay.axes, gradient, rows, places).copy_(torch.autograd.grad(loss, part)[0])
    return gradient


def _layer_back(
    replay: Replay, layer: nn.Module, recording: Recording, index: int, ends: tuple[Tensor, Tensor]
) -> dict[str, Tensor | None]:
    """Gradients of a layer's parameters by name and, as STREAM, of its input, from its input and the gradient of its output."""
    entering, flowing = ends
    weights = dict(layer.named_parameters())
    entering = entering.detach().requires_grad_()
    with trainable(weights.values()), torch.enable_grad():
        leaving = replay.step(recording, index, entering)
        found = torch.autograd.grad(leaving, [entering, *weights.values()], flowing, allow_unused=True)
    return dict(zip((STREAM, *weights), found, strict=True))


class _Totals:
    """The totals of a layer's parameters while batches are added, and the numbers that they condense to.

    With one batch, or in the last of several, a parameter's total is condensed and freed before the next one is looked at.
    """

    def __init__(self, index: int, measure: Measure, condense: Condense):
        self.index, self.measure, self.condense = index, measure, condense
        self.sums: dict[str, Sums] = {}
        self.numbers = Sums()

    @torch.no_grad()
    def add(self, layer: nn.Module, gradients: dict[str, Tensor | None], *, last: bool) -> None:
        """Measure each parameter; its gradient is freed as soon as it has been looked at. All processes do this in step."""
        for name, weight in layer.named_parameters():
            gradient = gradients.pop(name)
            gradient = torch.zeros_like(weight) if gradient is None else gradient
            total = self.sums.setdefault(name, Sums())
            total += Sums.of(self.measure(Gradients(self.index, name, weight.detach(), gradient)))
            if last:
                self.numbers += Sums.of(self.condense(self.sums.pop(name).added()))


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


def _whole(model: Model, parts: list[Tensor], method: tuple[Measure, Condense], removed: tuple[int, ...], scale: float) -> dict[int, Sums]:
    """The same totals by a plain forward and backward per batch."""
    if model.layered:
        raise UserError(
            f"{model.checkpoint.source}: its layers hand more than the stream to each other, so gradients need the whole model "
            "in memory: run without --layered, or choose a criterion without gradients"
        )
    layers = {i: layer for i, layer in enumerate(model.stack.layers) if i not in removed}
    every = list({id(weight): weight for layer in layers.values() for weight in layer.parameters()}.values())
    totals = {index: _Totals(index, *method) for index in layers}
    with meter("gradients", len(parts)) as done:
        for batch in parts:
            with bypass(model.stack, removed), trainable(every), torch.enable_grad():
                logits = model.module(input_ids=batch, use_cache=False).logits[:, :-1].flatten(0, 1).float()
                loss = cross_entropy(logits, batch[:, 1:].flatten(), reduction="sum") * scale
                found = dict(zip(map(id, every), torch.autograd.grad(loss, every, allow_unused=True), strict=True))
            for index, layer in layers.items():
                gradients = {name: found[id(weight)] for name, weight in layer.named_parameters()}
                totals[index].add(layer, gradients, last=batch is parts[-1])
            done.add()
    return {index: total.numbers for index, total in totals.items()}
