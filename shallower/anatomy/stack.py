"""Decoder stack of a model, found by structure and by what a dry forward shows; no names, no families."""

import itertools
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import Refusal, UserError

BATCH, LENGTH = 2, 7  # unequal to each other and to common sizes, so that the axes of the stream can be told apart
# numbers between the beginnings of random weights that share a block: whole 16 bytes, for products of experts on a GPU,
# and a prime of them, so that few weights have rows in common
APART = 8 * 127


@dataclass(frozen=True)
class Interface:
    """How one layer passes the residual stream on.

    Attributes:
        argument: position (int) or name (str) of the stream among the layer's arguments.
        container: None where the output is the bare stream, else ``tuple`` or ``list``.
        length: number of elements of the container.
        index: where in the container the stream is.
        carried: (output index, argument position or name) of further streams that pass from layer to layer.
    """

    argument: int | str
    container: type | None
    length: int = 1
    index: int = 0
    carried: tuple[tuple[int, int | str], ...] = ()

    def stream_in(self, args: tuple, kwargs: dict) -> Tensor:
        return args[self.argument] if isinstance(self.argument, int) else kwargs[self.argument]

    def with_stream(self, args: tuple, kwargs: dict, stream: Tensor) -> tuple[tuple, dict]:
        """The layer's arguments with another stream in place."""
        if isinstance(self.argument, int):
            return (*args[: self.argument], stream, *args[self.argument + 1 :]), kwargs
        return args, {**kwargs, self.argument: stream}

    def stream_out(self, output: Any) -> Tensor:
        return output if self.container is None else output[self.index]

    def output(self, stream: Tensor, args: tuple = (), kwargs: dict | None = None) -> Any:
        """What a layer that only passes ``stream`` on would return."""
        if self.container is None:
            return stream
        items: list = [None] * self.length
        items[self.index] = stream
        for place, key in self.carried:
            items[place] = (args[key] if len(args) > key else None) if isinstance(key, int) else (kwargs or {}).get(key)
        return self.container(items)


@dataclass(frozen=True)
class Stack:
    """The decoder layers of a model.

    Attributes:
        name: dotted name of the ModuleList, such as ``model.layers``.
        layers: the layers in order.
        interfaces: one per layer.
        batch_axis, position_axis: where batch and position lie in the residual stream.
        width: numbers per token in the residual stream.
    """

    name: str
    layers: tuple[nn.Module, ...]
    interfaces: tuple[Interface, ...]
    batch_axis: int
    position_axis: int
    width: int

    def __len__(self) -> int:
        return len(self.layers)

    def of(self, model: nn.Module) -> "Stack":
        """The same stack in another instance of the model."""
        return replace(self, layers=tuple(model.get_submodule(self.name)))

    def tokens_first(self, stream: Tensor) -> Tensor:
        """The stream as (batch, position, features), whatever its layout in the model."""
        moved = stream.movedim((self.batch_axis, self.position_axis), (0, 1))
        return moved.flatten(2)


def parameter_count(module: nn.Module) -> int:
    """Number of distinct parameters of a module."""
    return sum(parameter.numel() for parameter in module.parameters())


def dry_tokens(vocabulary: int, batch: int = BATCH, length: int = LENGTH, seed: int = 0) -> Tensor:
    """Fixed pseudo-random token ids, (batch, length), away from the special tokens at the start of most
    vocabularies.
    """
    generator = torch.Generator().manual_seed(seed)
    low = min(10, vocabulary - 1)
    return torch.randint(low, vocabulary, (batch, length), generator=generator)


@torch.no_grad()
def sound_tokens(model: nn.Module, tokens: Tensor) -> Tensor:
    """The same probe on the model's device, with ids whose embedding is not finite replaced by ones whose is.

    Rows of ids that no tokenizer gives are left uninitialised in some published models.
    """
    weight = model.get_input_embeddings().weight
    tokens = tokens.to(weight.device)
    if weight.is_meta or weight.dim() != 2 or not weight.is_floating_point() or torch.isfinite(weight[tokens]).all():
        return tokens
    sound = torch.isfinite(weight).all(1).nonzero().flatten()
    if not len(sound):
        raise UserError(f"{type(model).__name__} has an input embedding without a finite row: its weights are broken")
    return torch.where(torch.isfinite(weight[tokens]).all(-1), tokens, sound[tokens % len(sound)])


def unsound_rows(model: nn.Module) -> str:
    """Which rows of the input embedding are not finite, in words; nothing where all are."""
    weight = model.get_input_embeddings().weight
    if weight.is_meta or weight.dim() != 2 or not weight.is_floating_point():
        return ""
    rows = (~torch.isfinite(weight).all(1)).nonzero().flatten().tolist()
    return (
        f"; {len(rows)} rows of its input embedding, of the token ids {rows[0]} to {rows[-1]}, are not finite"
        if rows
        else ""
    )


def find_stack(model: nn.Module) -> Stack:
    """The model's decoder stack: the ModuleList whose items a forward calls once each, in order, on float tensors.

    Of several such lists the outermost with most parameters counts. Works on meta models too where every operation has
    a meta kernel.

    Raises:
        Refusal: no such list (layers shared, skipped or repeated).
    """
    lists = {
        name: module for name, module in model.named_modules() if isinstance(module, nn.ModuleList) and len(module)
    }
    calls: dict[str, list] = {name: [] for name in lists}
    with _recorded(lists, calls), torch.no_grad():
        embedding = model.get_input_embeddings()
        tokens = dry_tokens(embedding.weight.shape[0]).to(embedding.weight.device)
        model(input_ids=tokens, use_cache=False)
    in_order = [name for name, log in calls.items() if [index for index, *_ in log] == list(range(len(lists[name])))]
    outer = [name for name in in_order if not any(name.startswith(other + ".") for other in in_order if other != name)]
    streams = {name: interfaces for name in outer if (interfaces := _interfaces(calls[name])) is not None}
    if not streams:
        raise Refusal(
            f"{type(model).__name__} has no list of layers that its forward calls once each, in order "
            "(layers are shared, skipped or repeated): shallower cannot remove layers from it"
        )
    name = max(streams, key=lambda item: parameter_count(lists[item]))
    batch_axis, position_axis = _axes(calls[name][0], streams[name][0])
    width = streams[name][0].stream_in(calls[name][0][1], calls[name][0][2]).numel() // (BATCH * LENGTH)
    return Stack(name, tuple(lists[name]), streams[name], batch_axis, position_axis, width)


@contextmanager
def _recorded(lists: dict[str, nn.ModuleList], calls: dict[str, list]) -> Iterator[None]:
    handles = []
    for name, items in lists.items():
        for index, item in enumerate(items):

            def hook(_, args, kwargs, output, name=name, index=index):
                calls[name].append((index, args, kwargs, output))

            handles.append(item.register_forward_hook(hook, with_kwargs=True))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _is_stream(value: Any) -> bool:
    return isinstance(value, Tensor) and value.is_floating_point() and value.dim() >= 2


def _interfaces(log: list) -> tuple[Interface, ...] | None:
    """One Interface per recorded call, or None where the items do not hand a stream from one to the next."""
    interfaces = []
    links = _links(log)
    for _, args, kwargs, output in log:
        argument = next((i for i, value in enumerate(args) if _is_stream(value)), None)
        if argument is None:
            argument = next((key for key, value in kwargs.items() if _is_stream(value)), None)
        if argument is None:
            return None
        shape = (args[argument] if isinstance(argument, int) else kwargs[argument]).shape
        if isinstance(output, Tensor):
            interfaces.append(Interface(argument, None))
            continue
        if type(output) not in (tuple, list):
            return None
        index = next((i for i, value in enumerate(output) if _is_stream(value) and value.shape == shape), None)
        if index is None:
            return None
        carried = tuple(
            (place, key) for place, key in links if place != index and key != argument and place < len(output)
        )
        interfaces.append(Interface(argument, type(output), len(output), index, carried))
    return tuple(interfaces)


def _links(log: list) -> tuple[tuple[int, int | str], ...]:
    """(output index, argument) pairs by which any layer hands an object other than the stream to the next one."""
    links = []
    for (*_, output), (_, args, kwargs, _) in itertools.pairwise(log):
        if not isinstance(output, (tuple, list)):
            continue
        arguments = [*enumerate(args), *kwargs.items()]
        for place, value in enumerate(output):
            links += [(place, key) for key, other in arguments if value is not None and other is value]
    return tuple(dict.fromkeys(links))


def _axes(call: tuple, interface: Interface) -> tuple[int, int]:
    stream = interface.stream_in(call[1], call[2])
    batch = [axis for axis, size in enumerate(stream.shape) if size == BATCH]
    position = [axis for axis, size in enumerate(stream.shape) if size == LENGTH]
    return (batch[0] if batch else 0), (position[0] if position else 1)


@torch.no_grad()
def check_causal(model: nn.Module) -> None:
    """Raise a UserError unless earlier logits are blind to a later token, as in every decoder."""
    count = model.get_input_embeddings().weight.shape[0]
    tokens = sound_tokens(model, dry_tokens(count))
    other_tokens = tokens.clone()
    other_tokens[:, -1] = (other_tokens[:, -1] + 1) % count
    other_tokens = sound_tokens(model, other_tokens)
    both = model(input_ids=torch.cat([tokens, other_tokens]), use_cache=False).logits[:, : LENGTH - 1].float()
    first, second = both.split(BATCH)
    scale = first.abs().max().clamp_min(1e-6)
    if not torch.isfinite(first).all():
        rows = unsound_rows(model)
        raise UserError(
            f"{type(model).__name__} yields NaN or infinite logits on plain tokens: its weights are broken{rows}"
        )
    limit = (
        1e-4 if model.dtype == torch.float32 else 2e-2
    )  # experts may be batched otherwise, which moves the last bits
    if (first - second).abs().max() > limit * scale:
        raise UserError(
            f"{type(model).__name__} is no decoder: a later token changes earlier logits "
            "(an encoder, or is_decoder is false); give a causal language model"
        )
