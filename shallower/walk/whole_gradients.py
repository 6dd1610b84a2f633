"""Gradients by plain forwards and backwards of the whole model, where it cannot be walked layer by layer."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from jaxtyping import Int
from torch import Tensor
from torch.nn.functional import cross_entropy

from ..anatomy.model import Model
from ..artifacts.removal import Removal
from ..errors import UserError, argument
from ..runtime.progress import meter
from .batching import total_predictions
from .evidence import Flows
from .sums import Halves, Sums
from .unit_totals import UnitTotals, by_unit


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


def _check_whole(model: Model) -> None:
    if model.layered:
        raise UserError(
            f"{model.checkpoint.source}: its layers hand more than the stream to each other, so gradients need "
            "the whole model "
            f"in memory: run without {argument('layered', True)}, or choose a criterion without gradients"
        )


def _whole_loss(model: Model, batch: Tensor, scale: float) -> Tensor:
    logits = model.module(input_ids=batch, use_cache=False).logits[:, :-1].flatten(0, 1).float()
    return cross_entropy(logits, batch[:, 1:].flatten(), reduction="sum") * scale


def whole_gradients(
    model: Model,
    tokens: Int[Tensor, "sample position"],
    batched: tuple[list[Tensor], int],
    collect: Callable[[int, int], UnitTotals],
    removal: Removal,
) -> dict[int, Halves]:
    """The same totals by a plain forward and backward per batch."""
    _check_whole(model)
    parts, first = batched
    scale = 1 / total_predictions(tokens)
    layers = {i: model.stack.layers[i] for i in removal.stays(len(model.stack))}
    every = list({id(weight): weight for layer in layers.values() for weight in layer.parameters()}.values())
    totals = {index: collect(index, first) for index in layers}
    with meter("gradients", len(parts)) as done:
        for number, batch in enumerate(parts):
            with model.without(removal), trainable(every), torch.enable_grad():
                loss = _whole_loss(model, batch, scale)
                by_weight = dict(zip(map(id, every), torch.autograd.grad(loss, every, allow_unused=True), strict=True))
            for index, layer in layers.items():
                gradients = {name: by_weight[id(weight)] for name, weight in layer.named_parameters()}
                totals[index].add(layer, gradients, number, last=batch is parts[-1])
            done.add()
    return by_unit({index: total.of_layer() for index, total in totals.items()})


def whole_flows(
    model: Model,
    tokens: Int[Tensor, "sample position"],
    batched: tuple[list[Tensor], int],
    measure: Callable[[Flows], dict],
    removal: Removal,
) -> dict[int, Halves]:
    """The same totals by a plain forward and backward per batch, the streams seen by hooks."""
    _check_whole(model)
    stack = model.stack
    parts, first = batched
    scale = 1 / total_predictions(tokens)
    stays = removal.stays(len(stack))
    totals = {index: [Sums(), Sums()] for index in stays}
    streams: dict[int, tuple[Tensor, Tensor]] = {}

    def see(index: int, args: tuple, kwargs: dict, output) -> None:
        streams[index] = (stack.interfaces[index].stream_in(args, kwargs), stack.interfaces[index].stream_out(output))

    handles = [
        stack.layers[index].register_forward_hook(
            lambda _, args, kwargs, out, index=index: see(index, args, kwargs, out), with_kwargs=True
        )
        for index in stays
    ]
    embedding = model.module.get_input_embeddings()
    try:
        with meter("gradients", len(parts)) as done:
            for number, batch in enumerate(parts):
                with model.without(removal), trainable(embedding.parameters()), torch.enable_grad():
                    loss = _whole_loss(model, batch, scale)
                    gradients = torch.autograd.grad(loss, [streams[index][1] for index in stays])
                for index, gradient in zip(stays, gradients, strict=True):
                    around = (stack.tokens_first(stream.detach()) for stream in (*streams[index], gradient))
                    totals[index][number >= first] += Sums.of(measure(Flows(index, *around)))
                done.add()
    finally:
        for handle in handles:
            handle.remove()
    return {index: Halves.of([half.all_sum() for half in halves if half]) for index, halves in totals.items()}
