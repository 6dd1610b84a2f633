"""Search for the groups of a part: which rows of its weights matter only through which columns of its last product.

Found by behaviour, without names. With all columns but one stretch masked, the rows of other weights that get a
gradient are those that the stretch depends on. The shortest stretch whose rows, but for those that all stretches share,
are its own is a group; where the rows of every group lie follows from those of a few. Then it is tried: with half of
the groups masked, noise in all of their rows must change nothing.
"""

import copy
import itertools
from collections.abc import Iterator, MutableMapping
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ...errors import Refusal
from ..forwards import plain_forwards
from ..modeling_shallower import renumber, reshape
from ..stack import APART, Interface, Stack
from ..writers import Writer, writer_inside
from .group import Groups, Slices, masked
from .part import LayerParts, Part

Places = dict[tuple[str, int], Tensor]  # (weight, axis) -> which places along it, as booleans
SPREAD = 0.05  # of the random weights that are looked at
UNMOVED = 1e-5  # of the largest number: equal but for the order of sums
ATTRIBUTES = 3  # numbers beside the weights that have to follow, at most
TRIES = 2000
SHAPED = ("in_features", "out_features", "nf", "nx", "layer_idx")  # which follow from the weights, or count layers


def groups_of(
    stack: Stack, module: nn.Module, tokens: Tensor, parts: tuple[LayerParts, ...]
) -> tuple[tuple[LayerParts, ...], dict[str, str]]:
    """(the parts of every layer with their groups, part -> why some layer has none of it); looked for once among
    layers that are built alike.

    Args:
        module: the model, its weights in memory or stand-ins for them.
        tokens: a few, (batch, position).
    """
    known: dict[tuple, LayerParts] = {}
    layers: dict[int, LayerParts] = {}
    reasons: dict[str, str] = {}

    def see(index: int, layer: nn.Module, args: tuple, kwargs: dict) -> None:
        if index in layers:  # the layer itself, as it is tried
            return
        layers[index] = parts[index]
        shapes = tuple((name, parameter.shape) for name, parameter in layer.named_parameters())
        likeness = (type(layer), stack.interfaces[index], shapes, tuple(parts[index].parts))
        if likeness not in known:
            found = {}
            for name, part in parts[index].parts.items():
                try:
                    found[name] = find_groups(layer, stack.interfaces[index], args, kwargs, part)
                except Refusal as refusal:
                    reasons.setdefault(name, f"layer {index}: {refusal}")
            known[likeness] = replace(parts[index], groups=found)
        layers[index] = replace(parts[index], groups=known[likeness].groups)

    with ExitStack() as hooks, torch.no_grad(), plain_forwards(module):
        for index, layer in enumerate(stack.layers):
            hook = layer.register_forward_pre_hook(
                lambda layer, args, kwargs, index=index: see(index, layer, args, kwargs), with_kwargs=True
            )
            hooks.callback(hook.remove)
        module(input_ids=tokens, use_cache=False)
    return tuple(layers[index] for index in range(len(stack))), reasons


def find_groups(layer: nn.Module, interface: Interface, args: tuple, kwargs: dict, part: Part) -> Groups:
    """The groups of a part of a layer.

    Args:
        layer: with its weights in memory, or with stand-ins for them; random ones take their place meanwhile.
        interface, args, kwargs: how it passes the stream on, and the arguments of one call on a few tokens.
    Raises:
        Refusal: they cannot be told apart; names the module.
    """
    with _random_weights(layer, part) as kind:
        args, kwargs = (_cast(one, kind) for one in (args, kwargs))
        trial = _Trial(layer, interface, (args, kwargs), part)
        for size in _divisors(trial.features):
            slices = trial.slices(size)
            if slices is not None:
                groups = replace(trial.single, count=trial.features // size, size=size, slices=slices)
                trial.check(groups)
                return replace(groups, attributes=trial.attributes(groups))
    raise Refusal(f"what enters {trial.writer.module} cannot be told apart in groups")


class _Trial:
    """One part of a layer with random weights, to be run with masked columns."""

    def __init__(self, layer: nn.Module, interface: Interface, call: tuple[tuple, dict], part: Part):
        self.layer, self.interface, self.call, self.part = layer, interface, call, part
        self.writer = _last_product(layer, interface, *call, part)
        columns = [(name, _column_axis(layer.get_parameter(name), axis)) for name, axis in self.writer.weights]
        self.columns = tuple((name, axis) for name, axis in columns if axis is not None)
        sizes = {layer.get_parameter(name).shape[axis] for name, axis in self.columns}
        if len(sizes) > 1:  # experts alone, without their biases or an expert that all tokens share
            most = max(layer.get_parameter(name).dim() for name, _ in self.columns)
            self.columns = tuple(one for one in self.columns if layer.get_parameter(one[0]).dim() == most)
            sizes = {layer.get_parameter(name).shape[axis] for name, axis in self.columns}
        if len(sizes) != 1:
            raise Refusal(f"{self.writer.module} sums products of {len(sizes)} widths")
        self.features = sizes.pop()
        written = {name for name, _ in self.writer.weights}
        own = [name for name, _ in layer.named_parameters() if name in part.parameters and name not in written]
        matrices = {name.rpartition(".")[0] for name in own if layer.get_parameter(name).dim() > 1}
        self.biases = [name for name in own if layer.get_parameter(name).dim() == 1 and _owner(name) in matrices]
        self.names = [name for name in own if name not in self.biases]  # a bias of keys may get no gradient
        how = {"module": self.writer.module, "product": self.writer.features, "columns": self.columns}
        self.single = Groups(count=self.features, size=1, slices={}, **how)

    def run(self, gone: list[int]) -> Tensor:
        """What the last product makes without some features."""
        seen: list[Tensor] = []
        module = self.layer.get_submodule(self.writer.module)

        def see(_: nn.Module, __: Any, output: Any) -> None:
            values = output if isinstance(output, (tuple, list)) else (output,)
            seen.append(next(value for value in values if isinstance(value, Tensor)))

        with ExitStack() as hooks:
            hooks.enter_context(masked(self.layer, self.single, gone))
            hooks.callback(module.register_forward_hook(see).remove)
            args, kwargs = self.call
            self.layer(*args, **kwargs)
        return seen[0]

    def rows(self, first: int, last: int) -> Places:
        """Places of weights that the features from first to last depend on."""
        places: Places = {}

        def see(name: str, weight: Tensor) -> None:
            moved, weight.grad = weight.grad != 0, None  # one gradient at a time is in memory
            for axis in range(moved.dim()):
                others = [one for one in range(moved.dim()) if one != axis]
                places[name, axis] = moved.amax(dim=others) if others else moved

        with ExitStack() as undo:
            for name in self.names:
                weight = self.layer.get_parameter(name)
                undo.callback(weight.requires_grad_, weight.requires_grad)
                weight.requires_grad_(True)
                undo.callback(weight.register_post_accumulate_grad_hook(partial(see, name)).remove)
            with torch.enable_grad():
                output = self.run([*range(first), *range(last + 1, self.features)])
                noise = torch.randn(output.shape, generator=torch.Generator().manual_seed(first)).to(output)
                (output * noise).sum().backward()
        return {key: places[key] for name in self.names for key in sorted(places) if key[0] == name}

    def slices(self, size: int) -> dict[str, tuple[Slices, ...]] | None:
        """Where the rows of stretches of that many features lie; None where these share rows with their neighbours."""
        count = self.features // size
        looked = sorted({0, 1, count // 2, count - 1})
        rows = {block: self.rows(block * size, (block + 1) * size - 1) for block in (0, 1, count - 1)}
        if any(one.keys() != rows[0].keys() for one in rows.values()):
            return None
        shared = {key: rows[0][key] & rows[count - 1][key] for key in rows[0]}
        if any((rows[0][key] & rows[1][key] & ~shared[key]).any() for key in rows[0]) and count > 2:
            return None
        if count == 2 and not any((rows[0][key] & ~shared[key]).any() for key in rows[0]):
            return None
        rows |= {block: self.rows(block * size, (block + 1) * size - 1) for block in looked if block not in rows}
        slices: dict[str, list[Slices]] = {name: [Slices(axis, ((0, size, size),))] for name, axis in self.columns}
        for name, axis in rows[0]:
            own = {block: _runs(places[name, axis] & ~shared[name, axis]) for block, places in rows.items()}
            if not any(own.values()):
                continue
            cut = _progression(axis, own[0], own[1])
            if cut is None or any(_runs_of(cut, block) != own[block] for block in looked):
                return None
            covered = cut.places(range(count))
            left = int((~shared[name, axis]).sum())
            if len(covered) != left or len({*covered}) != left:
                return None
            slices.setdefault(name, []).append(cut)
        for bias in self.biases:
            found = [cut for name, cuts in slices.items() if _owner(name) == _owner(bias) for cut in cuts]
            length = len(self.layer.get_parameter(bias))
            fitting = [cut for cut in found if self._size(_owner(bias), cut) == length]
            if fitting:
                slices[bias] = [Slices(0, fitting[0].runs)]
        return {name: tuple(cuts) for name, cuts in slices.items()} if len(slices) > len(self.columns) else None

    def _size(self, owner: str, cut: Slices) -> int:
        """Size of the axis of a module's matrix that is cut."""
        matrices = (one for one in self.layer.get_submodule(owner).parameters(recurse=False) if one.dim() > 1)
        return next(one.shape[cut.axis] for one in matrices)

    def attributes(self, groups: Groups) -> tuple[tuple[str, int], ...]:
        """Numbers beside the weights that have to follow, so that the layer runs with fewer groups.

        Raises:
            Refusal: with none of those that were tried it does what it does with masked groups.
        """
        gone = _some(groups.count)
        args, kwargs = self.call
        with masked(self.layer, groups, gone):
            wanted = self.interface.stream_out(self.layer(*args, **kwargs))
        names = [
            (f"{path}.{key}", value // groups.count)
            for path in self.part.modules
            for inner, module in self.layer.get_submodule(path).named_modules(prefix=path)
            for path, key, value in _numbers(inner, module)
            if value % groups.count == 0
        ]
        tries = itertools.chain.from_iterable(itertools.combinations(names, size) for size in range(ATTRIBUTES + 1))
        for chosen in itertools.islice(dict.fromkeys(tries), TRIES):
            layer = _shallow(self.layer)
            narrow(layer, replace(groups, attributes=chosen), gone)
            try:
                moved = float((self.interface.stream_out(layer(*args, **kwargs)) - wanted).abs().max())
            except Exception:  # shapes that do not fit each other
                continue
            if moved <= 10 * UNMOVED * float(wanted.abs().max()):
                return chosen
        raise Refusal(f"{_owner(self.writer.module) or self.writer.module} does not run with fewer groups")

    def check(self, groups: Groups) -> None:
        """Raise a Refusal unless noise in the rows of masked groups changes nothing."""
        gone = _some(groups.count)
        features = [feature for group in gone for feature in range(group * groups.size, (group + 1) * groups.size)]
        before = self.run(features)
        columns = {*self.columns}
        for name, cuts in groups.slices.items():
            weight = self.layer.get_parameter(name)
            for cut in cuts:
                if (name, cut.axis) in columns:
                    continue
                places = torch.tensor(cut.places(gone), device=weight.device)
                shape = [len(places) if axis == cut.axis else size for axis, size in enumerate(weight.shape)]
                noise = torch.randn(shape, generator=torch.Generator().manual_seed(1)).to(weight)
                weight.data = weight.data.index_copy(cut.axis, places, noise)
        moved = float((self.run(features) - before).abs().max())
        if not moved <= UNMOVED * float(before.abs().max()):
            raise Refusal(f"what enters {self.writer.module} depends on all heads at once (a norm across them?)")


def narrow(layer: nn.Module, groups: Groups, gone: list[int]) -> None:
    """Give a layer the weights that are left of it without some groups of a part."""
    for name in groups.slices:
        weight = layer.get_parameter(name)
        reshape(layer, {name: [*groups.cut(name, weight, gone).shape]})
        layer.get_parameter(name).data = groups.cut(name, weight, gone).contiguous()
    renumber(layer, groups.narrowed(gone))


def _shallow(layer: nn.Module) -> nn.Module:
    """A copy of a layer whose parameters are others, of the same values in the same memory."""
    shared = {id(one): nn.Parameter(one.data, requires_grad=False) for one in layer.parameters()}
    return copy.deepcopy(layer, shared)


def _some(count: int) -> list[int]:
    """Half of some groups."""
    order = torch.randperm(count, generator=torch.Generator().manual_seed(0))
    return sorted(order[: max(1, count // 2)].tolist())


def _owner(name: str) -> str:
    return name.rpartition(".")[0]


def _numbers(path: str, module: nn.Module) -> Iterator[tuple[str, str, int]]:
    """Whole numbers that a module keeps, and those of its config that speak of heads: (where, name, number)."""
    config = getattr(module, "config", None)
    known = {} if config is None else {key: value for key, value in config.to_dict().items() if "head" in key}
    for where, values in ((path, vars(module)), (f"{path}.config", known)):
        for key, value in values.items():
            if type(value) is int and value > 1 and not key.startswith("_") and key not in SHAPED:
                yield where, key, value


def _last_product(layer: nn.Module, interface: Interface, args: tuple, kwargs: dict, part: Part) -> Writer:
    """The last product of a part, be there a norm behind it or not."""
    called: list[str] = []
    with ExitStack() as hooks:
        for name in part.modules:
            hook = layer.get_submodule(name).register_forward_hook(lambda *_, name=name: called.append(name))
            hooks.callback(hook.remove)
        layer(*args, **kwargs)
    reason = None
    for name in reversed(dict.fromkeys(called)):
        try:
            writer = writer_inside(layer, interface, args, kwargs, name)
        except Refusal as refusal:
            reason = reason or refusal
            continue
        if any(layer.get_parameter(one).dim() > 1 for one, _ in writer.weights):
            return writer
    raise Refusal(f"{', '.join(part.modules)} ends in no product that is known" if reason is None else str(reason))


def _column_axis(weight: Tensor, rows: int) -> int | None:
    """The axis of a weight along which the features lie, given that of its output; None for a bias."""
    if weight.dim() < 2:
        return None
    others = [axis for axis in range(weight.dim()) if axis != rows]
    return others[-1]  # experts come first


def _divisors(number: int) -> Iterator[int]:
    return (size for size in range(1, number // 2 + 1) if number % size == 0)


def _runs(places: Tensor) -> list[tuple[int, int]]:
    """(start, length) of places that lie side by side."""
    found: list[list[int]] = []
    for place in places.nonzero().flatten().tolist():
        if found and found[-1][0] + found[-1][1] == place:
            found[-1][1] += 1
        else:
            found.append([place, 1])
    return [(start, length) for start, length in found]


def _progression(axis: int, first: list[tuple[int, int]], second: list[tuple[int, int]]) -> Slices | None:
    """The places of all groups from those of the first two."""
    if [length for _, length in first] != [length for _, length in second]:
        return None
    pairs = zip(first, second, strict=True)
    return Slices(axis, tuple((start, other - start, length) for (start, length), (other, _) in pairs))


def _runs_of(cut: Slices, group: int) -> list[tuple[int, int]]:
    return sorted((start + step * group, length) for start, step, length in cut.runs)


@contextmanager
def _random_weights(layer: nn.Module, part: Part) -> Iterator[torch.dtype]:
    """Random weights, in float32, in the place of a layer's own while inside.

    So that a large layer takes little memory, all are stretches of one block of numbers, each from another place on,
    and outside the part one row stands for all of a matrix.
    """
    kind = torch.float32
    generator = torch.Generator().manual_seed(0)
    tensors = [*layer.parameters(), *(buffer for buffer in layer.buffers() if buffer.is_floating_point())]
    before = [tensor.data for tensor in tensors]
    try:
        named = dict(layer.named_parameters())
        if not all(parameter.is_floating_point() for parameter in named.values()):
            raise Refusal("its weights are packed numbers")
        shapes = {
            name: one.shape if name in part.parameters or one.dim() < 2 else torch.Size((1, *one.shape[1:]))
            for name, one in named.items()
        }
        largest = max((shape.numel() for shape in shapes.values()), default=0)
        block = torch.randn(largest + APART * len(named), generator=generator).mul_(SPREAD)
        block = block.to(next(iter(named.values())).device) if named else block
        for place, (name, parameter) in enumerate(named.items()):
            start = place * APART
            noise = block[start : start + shapes[name].numel()].view(shapes[name])
            parameter.data = noise.expand(parameter.shape) if parameter.dim() > 1 else noise + 1
        for buffer in tensors[len([*layer.parameters()]) :]:
            buffer.data = buffer.data.to(kind)
        yield kind
    finally:
        for tensor, data in zip(tensors, before, strict=True):
            tensor.data = data


def _cast(value: Any, kind: torch.dtype) -> Any:
    """The same with floating tensors in that dtype, inside containers too, which are copied: layers write into them."""
    if isinstance(value, Tensor):
        return value.to(kind) if value.is_floating_point() else value
    if isinstance(value, MutableMapping):  # keys and values that layers share are in one that is no dict
        return {key: _cast(item, kind) for key, item in value.items()}
    if type(value) in (tuple, list):
        return type(value)(_cast(item, kind) for item in value)
    return value
