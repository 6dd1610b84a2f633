"""Inputs of products of experts: the rows that every expert multiplies, seen as the products run."""

import itertools
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from ..anatomy.units.group import Groups
from ..errors import Refusal

GROUPED = {"_grouped_mm", "grouped_mm_fallback"}  # rows in order of the experts, and where each one's rows end
PLAIN = {"mm": 0, "addmm": 1, "bmm": 0}  # of one expert, or of all one behind another; the place of the rows
CHUNK_BYTES = 256 << 20  # of the inputs of some experts that are measured at once


class ExpertInputs:
    """What entered the last products of a part's experts for one sample, as if they were one wide product.

    Columns of an expert that a token was not sent to get zeros from it. How a token's experts are weighted does not
    matter here: that is done with what they give.
    """

    def __init__(self, layer: nn.Module, groups: Groups):
        self.features = groups.features
        self.first: dict[
            int, tuple[Tensor, int]
        ] = {}  # storage of a weight -> the weight, the number of its first expert
        self.rows: dict[int, Tensor] = {}
        self.experts = 0
        for name, _ in groups.columns:
            weight = layer.get_parameter(name)
            self.first[storage_of(weight)] = (weight, self.experts)
            self.experts += len(weight) if weight.dim() == 3 else 1

    def see(self, weight: Tensor, rows: Tensor, ends: Tensor | None) -> None:
        """Note the rows of a product with a weight, or with a stretch of one.

        Args:
            ends: where the rows of each expert end, where they lie one behind another.
        """
        whole, first = self.first[storage_of(weight)]
        if ends is not None:
            for number, (begin, end) in enumerate(itertools.pairwise([0, *ends.tolist()])):
                self.rows[first + number] = rows[begin:end]
        elif weight.dim() == 3:
            self.rows |= {first + number: one for number, one in enumerate(rows)}
        else:
            inside = (weight.storage_offset() - whole.storage_offset()) // whole.stride(0) if whole.dim() == 3 else 0
            self.rows[first + inside] = rows

    def chunks(self, positions: int) -> Iterator[Float[Tensor, "1 position feature"]]:
        """The inputs of some experts after another, in order.

        Raises:
            Refusal: no product with these weights was seen.
        """
        if not self.rows:
            raise Refusal("its experts are multiplied in a way that cannot be looked into")
        like = next(iter(self.rows.values()))
        step = max(1, CHUNK_BYTES // (positions * self.features * 8))  # criteria may measure in float64
        for start in range(0, self.experts, step):
            numbers = range(start, min(start + step, self.experts))
            chunk = like.new_zeros(1, positions, len(numbers), self.features)
            for place, number in enumerate(numbers):
                rows = self.rows.get(number)
                if rows is not None:
                    chunk[0, : len(rows), place] = rows
            yield chunk.flatten(2)


def expert_matrix(layer: nn.Module, groups: Groups) -> Float[Tensor, "stream feature"]:
    """Weights of the last products of a part's experts, side by side."""
    found = []
    for name, axis in groups.columns:
        weight = layer.get_parameter(name).movedim(axis, -1)
        found.append(weight if weight.dim() == 2 else weight.movedim(1, 0).flatten(1))
    return torch.cat(found, dim=1)


class _Seeing(TorchDispatchMode):
    """Shows products with some weights to those who wait for them."""

    def __init__(self, waiting: list[ExpertInputs]):
        super().__init__()
        self.waiting = {place: one for one in waiting for place in one.first}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        name = func._overloadpacket.__name__
        if name in GROUPED and (seen := self.waiting.get(storage_of(args[1]))):
            ends = args[2] if len(args) > 2 else kwargs["offs"]
            seen.see(args[1], args[0], ends)
        elif name in PLAIN:
            rows, weight = args[PLAIN[name] : PLAIN[name] + 2]
            if seen := self.waiting.get(storage_of(weight)):
                seen.see(weight, rows, None)
        return func(*args, **kwargs)


def storage_of(tensor: Tensor) -> int:
    """Where the memory of a tensor begins, that of its views too."""
    return tensor.untyped_storage().data_ptr()


@contextmanager
def entering_experts(layer: nn.Module, groups: dict[str, Groups]) -> Iterator[dict[str, ExpertInputs]]:
    """What enters the experts of each part during one call of the layer on one sample."""
    seen = {name: ExpertInputs(layer, one) for name, one in groups.items()}
    with ExitStack() as watching:
        for name, one in groups.items():
            for path, _ in one.columns:  # an expert that is a module of its own, whose weights may be packed elsewhere
                weight, owner = layer.get_parameter(path), layer.get_submodule(path.rpartition(".")[0])
                if weight.dim() == 2 and isinstance(owner, nn.Linear):
                    hook = partial(_entered, seen[name], weight)
                    watching.callback(owner.register_forward_hook(hook).remove)
        if seen:
            watching.enter_context(_Seeing([*seen.values()]))
        yield seen


def _entered(seen: ExpertInputs, weight: Tensor, _: nn.Module, args: tuple, __: Any) -> None:
    seen.see(weight, args[0].reshape(-1, args[0].shape[-1]), None)
