"""Groups of a part as units of removal: the neurons of an MLP, the KV heads of an attention with their query heads.

A group is a stretch of what enters the part's last product, with all rows of other weights that matter only through it.
A removed group is masked: what it would bring to the last product is zero.
"""

import math
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Slices:
    """Which places along one axis of a weight belong to each group.

    Attributes:
        axis: of the weight.
        runs: (start, step, length) each: group g has the places from start + step g on.
    """

    axis: int
    runs: tuple[tuple[int, int, int], ...]

    @property
    def size(self) -> int:
        """Places of one group."""
        return sum(length for _, _, length in self.runs)

    def places(self, groups: Iterable[int]) -> list[int]:
        """The places of some groups, ascending."""
        every = (
            place
            for group in groups
            for start, step, length in self.runs
            for place in range(start + step * group, start + step * group + length)
        )
        return sorted(every)

    def kept(self, size: int, gone: Iterable[int]) -> list[int]:
        """The places of an axis of that size that stay without some groups."""
        lost = {*self.places(gone)}
        return [place for place in range(size) if place not in lost]


@dataclass(frozen=True)
class Groups:
    """The groups of one part.

    Attributes:
        count: how many there are.
        size: features of each that enter the last product, side by side.
        module: name within the layer of the last product, or of what holds it.
        product: whether that is one plain product, so that what enters it can be seen; else a product of experts.
        columns: (name within the layer, axis) of the weights of the last product whose columns are the features.
        slices: name within the layer -> places of the groups, of every weight that becomes smaller.
        attributes: name within the layer -> its share per group, of numbers that modules keep beside their weights
            and that have to follow, such as a count of heads; ``config.`` in front of the last name leads into the
            config that the module keeps.
    """

    count: int
    size: int
    module: str
    product: bool
    columns: tuple[tuple[str, int], ...]
    slices: dict[str, tuple[Slices, ...]]
    attributes: tuple[tuple[str, int], ...] = ()

    @property
    def features(self) -> int:
        """Numbers per token that enter the last product."""
        return self.count * self.size

    def parameters(self, shapes: dict[str, Shape]) -> int:
        """Parameters that go with each group, given the shapes of the layer's weights."""
        return sum(
            math.prod(shapes[name]) // shapes[name][cut.axis] * cut.size
            for name, cuts in self.slices.items()
            for cut in cuts
        )

    def stays(self, gone: Sequence[int]) -> list[int]:
        """The groups that are left without some."""
        lost = {*gone}
        return [group for group in range(self.count) if group not in lost]

    def matrix(self, layer: nn.Module) -> Tensor:
        """Weight of the last product of a layer's part, (stream feature, feature), where it is one plain product."""
        name, axis = self.columns[0]
        weight = layer.get_parameter(name)
        return weight if axis == 1 else weight.T

    def narrowed(self, gone: Sequence[int]) -> dict[str, int]:
        """The numbers that follow, by their names within the layer, without some groups."""
        left = self.count - len({*gone})
        return {name: each * left for name, each in self.attributes}

    def cut(self, name: str, weight: Tensor, gone: Sequence[int]) -> Tensor:
        """What is left of a weight of the layer without some groups."""
        for cut in self.slices.get(name, ()):
            places = torch.tensor(cut.kept(weight.shape[cut.axis], gone), device=weight.device)
            weight = weight.index_select(cut.axis, places)
        return weight

    def mask(self, gone: Sequence[int]) -> Tensor:
        """(features,): 0 where some groups go, else 1."""
        keep = torch.ones(self.count)
        keep[[*gone]] = 0
        return keep.repeat_interleave(self.size)


@dataclass(frozen=True)
class _Mask:
    """Mask of features, on every device and in every dtype that it is asked for."""

    values: Tensor

    @cached_property
    def known(self) -> dict[tuple, Tensor]:
        return {}

    def like(self, other: Tensor) -> Tensor:
        key = (other.device, other.dtype)
        if key not in self.known:
            self.known[key] = self.values.to(other)
        return self.known[key]


@contextmanager
def masked(layer: nn.Module, groups: Groups, gone: Sequence[int]) -> Iterator[None]:
    """Let a layer do without some groups of a part while inside; nothing of what enters their products arrives."""
    mask = _Mask(groups.mask(gone))
    with ExitStack() as hooks:
        if groups.product:
            module = layer.get_submodule(groups.module)
            hooks.callback(module.register_forward_pre_hook(lambda _, args: _first_masked(args, mask)).remove)
        for owner, columns in () if groups.product else _by_owner(groups).items():
            module = layer.get_submodule(owner)
            before: dict[str, nn.Parameter] = {}

            def narrow(module: nn.Module, _: Any, columns=columns, before=before) -> None:
                for name, axis in columns:
                    whole = before[name] = module._parameters[name]
                    shape = [-1 if one == axis else 1 for one in range(whole.dim())]
                    module._parameters[name] = whole * mask.like(whole).view(shape)

            def back(module: nn.Module, *_: Any, before=before) -> None:
                module._parameters.update(before)
                before.clear()

            hooks.callback(module.register_forward_pre_hook(narrow).remove)
            hooks.callback(module.register_forward_hook(back, always_call=True).remove)
        yield


def _first_masked(args: tuple, mask: _Mask) -> tuple:
    return (args[0] * mask.like(args[0]), *args[1:])


def _by_owner(groups: Groups) -> dict[str, list[tuple[str, int]]]:
    """Module within the layer -> its weights that hold columns, and the axis of these."""
    owners: dict[str, list[tuple[str, int]]] = {}
    for path, axis in groups.columns:
        owner, _, name = path.rpartition(".")
        owners.setdefault(owner, []).append((name, axis))
    return owners
