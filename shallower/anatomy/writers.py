"""Residual writers, found by behaviour: which outputs are added to it, and which weights a map of
them folds into.

A layer's writer is a module whose output, times a constant, is added to the stream with nothing behind it. A matrix P
that should act on this output folds into the weights W that end in it: P (W x + b) = (P W) x + P b. Which weights these
are, and along which axis, is seen by rotating them: a weight and an axis are right if the output rotates along.
"""

import re
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import Refusal
from .stack import Interface

TURN_TOLERANCE = {torch.float32: 1e-3, torch.float64: 1e-6}  # of the size of what is compared; others: COARSE
COARSE = 5e-2
SMALL_MOVE = 1e-5  # below this share an output does not depend on what was changed


@dataclass(frozen=True)
class Writer:
    """What adds to the stream at one place of a layer.

    Attributes:
        module: name, within the layer, of the module whose output is added.
        scale: the constant that it is multiplied with on the way.
        weights: (name within the layer, axis) of every parameter into which a map of the output folds.
        features: whether the output is one plain product, so that it can also be fitted from what enters ``module``.
        gain: whether a norm stands behind the product, so that no map folds into any weight: what is added to the one
            in ``weights`` is multiplied, feature by feature, with the normed stream.
    """

    module: str
    scale: float
    weights: tuple[tuple[str, int], ...]
    features: bool
    gain: bool = False

    def normed(self, layer: nn.Module, given: Tensor) -> Tensor:
        """What the gain of a norm multiplies, for what enters the norm; shaped like it."""
        return _normed(layer.get_submodule(self.module), self.weights[0][0].removeprefix(f"{self.module}."), given)


class _Call:
    """One call of a layer that can be repeated with changes: the stream in, the stream out."""

    def __init__(self, layer: nn.Module, interface: Interface, args: tuple, kwargs: dict):
        self.layer = layer
        self.interface = interface
        self.args = args
        self.kwargs = kwargs
        stream = interface.stream_in(args, kwargs)
        self.count, self.width = stream.numel(), stream.shape[-1]
        self.tolerance = TURN_TOLERANCE.get(stream.dtype, COARSE)

    def run(self) -> Tensor:
        return self.interface.stream_out(self.layer(*self.args, **self.kwargs)).float()

    def is_stream(self, value: Any) -> bool:
        return (
            isinstance(value, Tensor)
            and value.is_floating_point()
            and value.numel() == self.count
            and value.shape[-1] == self.width
        )

    def part(self, output: Any) -> Tensor | None:
        """The first tensor of a module's output that is as large as the stream."""
        values = output if isinstance(output, (tuple, list)) else (output,)
        return next((value for value in values if self.is_stream(value)), None)

    def near(self, one: Tensor, other: Tensor) -> bool:
        return bool((one - other).norm() <= self.tolerance * max(float(one.norm()), float(other.norm())))


def find_writers(
    layer: nn.Module, interface: Interface, args: tuple, kwargs: dict, *, gains: bool = False
) -> tuple[Writer, ...]:
    """The layer's writers in the order in which they are called.

    The last one is the down projection of an ordinary layer.

    Args:
        layer: a layer with its weights in memory.
        interface, args, kwargs: how it passes the stream on, and the arguments of one call on a few tokens.
        gains: where a norm stands behind the product, its gain will do.
    Raises:
        Refusal: a writer has something behind or inside it into which no map folds (a norm after the product, unless
            ``gains``), or none is found.
    """
    call = _Call(layer, interface, args, kwargs)
    with torch.no_grad():
        order = _call_order(call)
        scales = [(name, scale) for place, name in enumerate(order) if (scale := _scale(call, order, place))]
        if not scales:
            raise Refusal("nothing is found whose output is simply added to the stream")
        return tuple(_writer(call, name, scale, gains=gains) for name, scale in scales)


@torch.no_grad()
def writer_inside(layer: nn.Module, interface: Interface, args: tuple, kwargs: dict, module: str) -> Writer:
    """What makes a module's output, be it added to the stream as it is or not; its scale is not looked for.

    Raises:
        Refusal: a map of the output folds into no weights.
    """
    return _writer(_Call(layer, interface, args, kwargs), module, 1.0)


def _call_order(call: _Call) -> list[str]:
    """The direct children with weights that make something as large as the stream, once, in order."""
    log: list[str] = []
    with ExitStack() as hooks:
        for name, child in (
            (name, child) for name, child in call.layer.named_children() if any(True for _ in child.parameters())
        ):

            def see(_, __, output, name=name):
                if call.part(output) is not None:
                    log.append(name)

            hooks.callback(child.register_forward_hook(see).remove)
        call.run()
    return [name for name in log if log.count(name) == 1]


@contextmanager
def _changed(call: _Call, changes: dict[str, Callable[[Tensor], Tensor]]) -> Iterator[None]:
    """Change the outputs of some modules while inside."""

    def hook(change: Callable[[Tensor], Tensor], _, __, output: Any) -> Any:
        part = call.part(output)
        if not isinstance(output, (tuple, list)):
            return change(part)
        return type(output)(change(part) if value is part else value for value in output)

    with ExitStack() as hooks:
        for name, change in changes.items():
            hooks.callback(call.layer.get_submodule(name).register_forward_hook(partial(hook, change)).remove)
        yield


def _scale(call: _Call, order: list[str], place: int) -> float:
    """The constant with which a child's output reaches the stream when all later children are silent.

    0.0 where there is none.
    """
    silent = dict.fromkeys(order[place + 1 :], torch.zeros_like)
    with _changed(call, silent):
        plain = call.run()
    noise = (
        torch.randn(plain.numel(), generator=torch.Generator().manual_seed(place)).to(plain)
        * plain.pow(2).mean().sqrt()
    )
    add = {order[place]: lambda part: part + noise.view(part.shape).to(part.dtype)}
    with _changed(call, silent | add):
        shift = (call.run() - plain).flatten()
    scale = float((shift @ noise) / (noise @ noise))
    return scale if abs(scale) > SMALL_MOVE and call.near(shift, scale * noise) else 0.0


def _writer(call: _Call, name: str, scale: float, *, gains: bool = False) -> Writer:
    module = call.layer.get_submodule(name)
    again = _isolated_call(call, module)
    plain = again()
    axes = {
        key: axis for key, value in module.named_parameters() if (axis := _axis(call, again, plain, value)) is not None
    }
    if not axes and gains and (gain := _gain(call, module)):
        return Writer(name, scale, ((_dotted_name(name, gain), 0),), features=False, gain=True)
    if not axes:
        raise Refusal(
            f"no map folds into what {name} adds to the stream (a norm or a gate stands behind its last product)"
        )
    owners = {key.rpartition(".")[0] for key in axes}
    if len(owners) == 1 and isinstance(owner := module.get_submodule(inside := next(iter(owners))), nn.Module):
        sizes = {value.dim() for value in owner.parameters(recurse=False)}  # experts have three, with flat biases
        features = 2 in sizes and max(sizes) == 2 and not any(owner.children())
        if features:
            return Writer(_dotted_name(name, inside), scale, _full_names(name, axes), features=True)
    axes = _alike(module, axes)
    with _swapped(module, dict.fromkeys(axes, torch.zeros_like)):
        rest = again()
    if rest.norm() > call.tolerance * plain.norm():
        raise Refusal(f"a part of what {name} adds to the stream does not come from weights into which a map folds")
    return Writer(name, scale, _full_names(name, axes), features=False)


def _isolated_call(call: _Call, module: nn.Module) -> Callable[[], Tensor]:
    """The module's call inside the layer, to be repeated alone."""
    args, kwargs = _given(call, module)
    return lambda: call.part(module(*args, **kwargs)).float().reshape(-1, call.width)


def _given(call: _Call, module: nn.Module) -> tuple[tuple, dict]:
    """The arguments with which the layer calls a module."""
    calls: list[tuple[tuple, dict]] = []
    handle = module.register_forward_pre_hook(lambda _, args, kwargs: calls.append((args, kwargs)), with_kwargs=True)
    try:
        call.run()
    finally:
        handle.remove()
    return calls[0]


@torch.no_grad()
def _normed(module: nn.Module, key: str, given: Tensor) -> Tensor:
    """What the gain of this name multiplies in a norm's output, which is linear in it."""
    with _swapped(module, {key: torch.ones_like}):
        one = module(given)
    with _swapped(module, {key: torch.zeros_like}):
        return one - module(given)


def _gain(call: _Call, module: nn.Module) -> str | None:
    """The vector of a norm that its output depends on feature by feature, out = ... + gain * normed; None without."""
    args, kwargs = _given(call, module)
    if kwargs or len(args) != 1 or not call.is_stream(given := args[0]):
        return None
    plain = module(given).float()
    for key, value in module.named_parameters():
        if value.shape != (call.width,):
            continue
        normed = _normed(module, key, given).float()
        change = torch.randn(call.width, generator=torch.Generator().manual_seed(0)).to(value)
        with _swapped(module, {key: lambda whole, change=change: whole + change}):
            moved = module(given).float() - plain
        varies = float((normed - normed.flatten(0, -2).mean(0)).norm())
        if varies > SMALL_MOVE * float(normed.norm()) and call.near(moved, change.float() * normed):
            return key
    return None


def _axis(call: _Call, again: Callable[[], Tensor], plain: Tensor, value: nn.Parameter) -> int | None:
    """The axis along which the parameter's share of the output lies, or None."""
    whole = value.data
    axes = [axis for axis, size in enumerate(whole.shape) if size == call.width]
    try:
        if not axes:
            return None
        value.data = torch.zeros_like(whole)
        without = again()
        share = plain - without
        if share.norm() <= SMALL_MOVE * plain.norm():
            return None
        for axis in axes:
            value.data = whole.roll(1, axis)
            if call.near(again() - without, share.roll(1, -1)):
                return axis
    finally:
        value.data = whole
    return None


def _alike(module: nn.Module, axes: dict[str, int]) -> dict[str, int]:
    """Also the parameters of experts that no token was sent to: those of the same name but for a number."""
    kinds = {re.sub(r"\d+", "#", key): axis for key, axis in axes.items()}
    every = {key: kinds.get(re.sub(r"\d+", "#", key)) for key, _ in module.named_parameters()}
    return {key: axis for key, axis in every.items() if axis is not None}


@contextmanager
def _swapped(module: nn.Module, changes: dict[str, Callable[[Tensor], Tensor]]) -> Iterator[None]:
    parameters = {key: module.get_parameter(key) for key in changes}
    before = {key: parameter.data for key, parameter in parameters.items()}
    try:
        for key, parameter in parameters.items():
            parameter.data = changes[key](before[key])
        yield
    finally:
        for key, parameter in parameters.items():
            parameter.data = before[key]


def _dotted_name(*names: str) -> str:
    return ".".join(filter(None, names))


def _full_names(module: str, axes: dict[str, int]) -> tuple[tuple[str, int], ...]:
    return tuple((_dotted_name(module, key), axis) for key, axis in axes.items())
