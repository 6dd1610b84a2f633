"""Parts of a layer as units of removal: its attention, which mixes positions, and its MLP, which does not.

Found by behaviour, without names: the modules whose outputs, times constants, are all that a layer adds to the stream;
which of them mix positions is seen by changing an early token. A removed part is silent: its modules give zeros, and
what feeds nothing else is not run.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from ...artifacts.removal import ATTENTION, MLP
from ...errors import Refusal
from ..forwards import replaced_forwards
from ..stack import Interface, Stack
from .group import Groups, masked

EQUAL = 1e-5  # of the largest number of what is compared: equal but for the order of sums
MOVED = 1e-4  # below this share nothing has reached another position
INSIDE = 3  # how deep modules are looked into where a layer's own ones add the stream themselves


@dataclass(frozen=True)
class Output:
    """What a module returns: bare, or a container of which some items are as large as the stream."""

    container: type | None
    streams: tuple[bool, ...] = (True,)

    @classmethod
    def of(cls, output: Any, stream: Tensor) -> "Output":
        if isinstance(output, (tuple, list)):
            return cls(type(output), tuple(as_large(item, stream) for item in output))
        return cls(None)

    def zeros(self, args: tuple, kwargs: dict, width: int) -> Any:
        """The same with zeros for streams and None for all else, for a call with these arguments."""
        entering = next(item for item in (*args, *kwargs.values()) if isinstance(item, Tensor) and item.dim() > 1)
        zero = entering.new_zeros(*entering.shape[:-1], width)
        return zero if self.container is None else self.container(zero if one else None for one in self.streams)


@dataclass(frozen=True)
class Part:
    """Attention or MLP of one layer.

    Attributes:
        name: ``attention`` or ``mlp``.
        modules: name within the layer -> what it returns, of all that give zeros when the part is silent.
        parameters: names within the layer of those that serve this part alone.
    """

    name: str
    modules: dict[str, Output]
    parameters: frozenset[str] = frozenset()


@dataclass(frozen=True)
class LayerParts:
    """The parts of one layer.

    Attributes:
        parts: by name.
        order: the names in the order in which they run where the layer is one part after another: with all others
            silent each adds to the stream what it adds in the whole layer. Empty where they read the same stream.
        groups: of the parts that can be made narrower, where that was looked for.
    """

    parts: dict[str, Part]
    order: tuple[str, ...] = field(default=())
    groups: dict[str, Groups] = field(default_factory=dict)


def as_large(value: Any, stream: Tensor) -> bool:
    """Whether a value is a tensor as large as the stream, whatever its shape in front."""
    sized = isinstance(value, Tensor) and value.is_floating_point() and value.numel() == stream.numel()
    return sized and value.shape[-1] == stream.shape[-1]


@contextmanager
def silent(layer: nn.Module, parts: Iterable[Part], width: int) -> Iterator[None]:
    """Let parts of a layer add nothing while inside; they are not run.

    Args:
        width: numbers per token in the stream.
    """

    def forward(output: Output) -> Callable:
        return lambda *args, **kwargs: output.zeros(args, kwargs, width)

    modules = [item for part in parts for item in part.modules.items()]
    with replaced_forwards((layer.get_submodule(name), forward(output)) for name, output in modules):
        yield


@contextmanager
def lessened_layer(
    stack: Stack, index: int, layer: LayerParts, names: Iterable[str], groups: dict[str, tuple[int, ...]]
) -> Iterator[None]:
    """Let a layer do without some parts, and without groups of others, while inside.

    Raises:
        Refusal: it has no such part, or no groups there.
    """
    names = [*names]
    if missing := [name for name in names if name not in layer.parts]:
        raise Refusal(f"layer {index} has no {missing[0]}")
    if missing := [name for name in groups if name not in layer.groups]:
        raise Refusal(f"layer {index} has no groups of {missing[0]}")
    module = stack.layers[index]
    with ExitStack() as changes:
        changes.enter_context(silent(module, [layer.parts[name] for name in names], stack.width))
        for name, gone in groups.items():
            changes.enter_context(masked(module, layer.groups[name], gone))
        yield


@torch.no_grad()
def find_parts(layer: nn.Module, interface: Interface, args: tuple, kwargs: dict, position_axis: int) -> LayerParts:
    """The attention and the MLP of a layer.

    Args:
        layer: a layer with its weights in memory, or with stand-ins for them.
        interface, args, kwargs: how it passes the stream on, and the arguments of one call on a few tokens.
        position_axis: where the position lies in the stream.
    Raises:
        Refusal: it adds something to the stream that no module gives, or one that cannot be silenced alone.
    """
    probe = _Probe(layer, interface, args, kwargs)
    writers = _writers(probe)
    names: dict[str, list[str]] = {}
    for writer in writers:
        others = [other for other in writers if other != writer]
        names.setdefault(ATTENTION if _mixes(probe, others, position_axis) else MLP, []).append(writer)
    parts = {name: _part(probe, name, names[name]) for name in (ATTENTION, MLP) if name in names}
    found = LayerParts(parts)
    return replace(found, order=_order(probe, found))


class _Probe:
    """One call of a layer on a few tokens, to be repeated with silent modules or another stream."""

    def __init__(self, layer: nn.Module, interface: Interface, args: tuple, kwargs: dict):
        self.layer, self.interface, self.args, self.kwargs = layer, interface, args, kwargs
        self.stream = interface.stream_in(args, kwargs)
        self.outputs: dict[str, Output] = {}

    @torch.no_grad()
    def run(self, silenced: Sequence[str] = (), stream: Tensor | None = None) -> Tensor:
        """The stream out; silenced modules run, and their outputs are zeroed."""
        args, kwargs = self.args, self.kwargs
        if stream is not None:
            args, kwargs = self.interface.with_stream(args, kwargs, stream)
        with ExitStack() as hooks:
            for name in silenced:
                hooks.callback(self.layer.get_submodule(name).register_forward_hook(self._zeroed).remove)
            return self.interface.stream_out(self.layer(*args, **kwargs)).detach().clone()

    def _zeroed(self, module: nn.Module, args: tuple, output: Any) -> Any:
        if isinstance(output, (tuple, list)):
            return type(output)(torch.zeros_like(item) if as_large(item, self.stream) else item for item in output)
        return torch.zeros_like(output)

    def unmoved(self, silenced: Sequence[str]) -> bool:
        """Whether the layer hands the stream on as it is without some modules: zeros are added exactly in any dtype."""
        return close(self.run(silenced).float(), self.stream.float())

    def called(self, root: str = "") -> list[str]:
        """The children of a module with weights that make something as large as the stream, in order."""
        names: list[str] = []

        def note(name: str, output: Any) -> None:
            items = output if isinstance(output, (tuple, list)) else (output,)
            if any(as_large(item, self.stream) for item in items):
                names.append(name)
                self.outputs[name] = Output.of(output, self.stream)

        with ExitStack() as hooks:
            for child, module in self.layer.get_submodule(root).named_children():
                name = f"{root}.{child}" if root else child
                if any(True for _ in module.parameters()):
                    hook = module.register_forward_hook(lambda _, __, output, name=name: note(name, output))
                    hooks.callback(hook.remove)
            self.run()
        return list(dict.fromkeys(names))


@torch.no_grad()
def close(one: Tensor, other: Tensor, share: float = EQUAL) -> bool:
    """Whether two streams are equal but for a share of their largest number."""
    largest = max(float(one.float().abs().max()), float(other.float().abs().max()), 1e-12)
    coarser = 1.0 if one.dtype in (torch.float32, torch.float64) else 1e3
    return float((one.float() - other.float()).abs().max()) <= coarser * share * largest


def _writers(probe: _Probe) -> list[str]:
    """The fewest modules without which the layer hands the stream on as it is, those furthest back."""
    names = probe.called()
    for _ in range(INSIDE):
        if probe.unmoved(names):
            break
        names = [inner for name in names for inner in (probe.called(name) or [name])]
    if not names or not probe.unmoved(names):
        raise Refusal("it adds more to the stream than what its modules give")
    for name in [*names]:
        fewer = [other for other in names if other != name]
        if probe.unmoved(fewer):
            names = fewer
    return names


def _mixes(probe: _Probe, others: list[str], axis: int) -> bool:
    """Whether what is added at a position changes with an earlier token, when all others are silent."""
    moved = probe.stream.clone()
    start, count = moved.narrow(axis, 0, 1), moved.shape[axis] - 1
    noise = torch.randn(start.shape, generator=torch.Generator().manual_seed(0)).to(start)
    start.add_(noise * start.float().pow(2).mean().sqrt().to(start.dtype))
    before, after = probe.run(others) - probe.stream, probe.run(others, moved) - moved
    return not close(after.narrow(axis, 1, count), before.narrow(axis, 1, count), MOVED)


def _part(probe: _Probe, name: str, writers: list[str]) -> Part:
    """The part of these writers, with what serves it alone: silent or not, it makes no difference without them."""
    wanted = probe.run(writers)
    names = [child for child in probe.called() if not any(_within(writer, child) for writer in writers)]
    feeders = [child for child in names if close(probe.run([*writers, child]), wanted, 0.0)]
    own = {module: probe.outputs[module] for module in writers}
    for modules in (own | {module: probe.outputs[module] for module in feeders}, own):
        part = Part(name, modules)
        with silent(probe.layer, [part], probe.stream.shape[-1]):
            try:
                same = close(probe.run(), wanted, 0.0)
            except Exception:  # something else of what it returns is asked for
                same = False
        if same:
            return replace(part, parameters=_parameters(probe, writers, [*writers, *feeders]))
    raise Refusal(f"its {name} cannot be left out: {', '.join(writers)} gives more than what is added to the stream")


def _within(name: str, module: str) -> bool:
    return name == module or name.startswith(f"{module}.")


def _parameters(probe: _Probe, writers: list[str], modules: list[str]) -> frozenset[str]:
    """Those of some modules, and all others that change something, but nothing when the writers are silent."""
    whole_stream, wanted, names = probe.run(), probe.run(writers), set()
    for name, parameter in probe.layer.named_parameters():
        whole = parameter.data
        try:
            if any(_within(name, module) for module in modules):
                names.add(name)
                continue
            parameter.data = torch.zeros_like(whole) if whole.any() else torch.ones_like(whole)
            if close(probe.run(writers), wanted, 0.0) and not close(probe.run(), whole_stream, 0.0):
                names.add(name)
        finally:
            parameter.data = whole
    return frozenset(names)


def _order(probe: _Probe, layer: LayerParts) -> tuple[str, ...]:
    whole = probe.run()
    for names in (tuple(layer.parts), tuple(reversed(layer.parts))):
        stream = probe.stream
        for name in names:
            silenced = [module for other in names if other != name for module in layer.parts[other].modules]
            stream = probe.run(silenced, stream)
        if torch.equal(stream, whole):
            return names
    return ()


def parts_of(stack: Stack, module: nn.Module, tokens: Tensor) -> tuple[LayerParts, ...]:
    """The parts of every layer of a model; looked for once among layers that are built alike.

    Args:
        module: the model, its weights in memory or stand-ins for them.
        tokens: a few, (batch, position).
    Raises:
        Refusal: a layer has none that can be told apart; names it.
    """
    known: dict[tuple, LayerParts] = {}
    layers: dict[int, LayerParts] = {}

    def see(index: int, layer: nn.Module, args: tuple, kwargs: dict) -> None:
        if index in layers:  # the layer itself, as it is tried
            return
        shapes = tuple((name, parameter.shape) for name, parameter in layer.named_parameters())
        likeness = (type(layer), stack.interfaces[index], shapes)
        layers[index] = known.get(likeness, LayerParts({}))
        if likeness not in known:
            try:
                known[likeness] = find_parts(layer, stack.interfaces[index], args, kwargs, stack.position_axis)
            except Refusal as refusal:
                raise Refusal(f"layer {index} has no parts that can go alone: {refusal}") from refusal
            layers[index] = known[likeness]

    with ExitStack() as hooks, torch.no_grad():
        for index, layer in enumerate(stack.layers):
            hook = layer.register_forward_pre_hook(
                lambda layer, args, kwargs, index=index: see(index, layer, args, kwargs), with_kwargs=True
            )
            hooks.callback(hook.remove)
        module(input_ids=tokens, use_cache=False)
    return tuple(layers[index] for index in range(len(stack)))
