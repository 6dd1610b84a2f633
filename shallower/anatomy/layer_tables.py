"""Layer tables and shared weights, tensors of no single layer: tables outside the layers with a part per layer, and
weights of several layers.

Tables are told by their shapes. Both are found again under their names on disk, which may differ from those in memory.
"""

from collections import Counter
from collections.abc import Iterable

from torch import Tensor, nn

from ..errors import Refusal
from ..storage.index import TensorEntry
from .fingerprint import Shared
from .names import names_in_model

Shapes = dict[str, tuple[int, ...]]


def outside_shapes(model: nn.Module, stack_name: str) -> Shapes:
    """Shapes of all saved tensors that belong to no layer, such as embeddings; tied ones under each of their names."""
    tensors = {name: value for name, value in model.state_dict().items() if isinstance(value, Tensor)}
    return {name: tuple(value.shape) for name, value in tensors.items() if not name.startswith(stack_name + ".")}


def layer_tables(dense: Shapes, pruned: Shapes, layers: int, kept: int) -> dict[str, int] | str:
    """The tables by layer among the outside tensors, name -> axis; or, in words, what else differs.

    A tensor is such a table if exactly one axis differs, and that one is layers x width before and kept x the same
    width after. That the parts lie in the order of the layers is supposed here and proven on the written model.
    """
    tables = {}
    for name, before in dense.items():
        after = pruned.get(name)
        if after == before:
            continue
        axis = _table_axis(before, after, layers, kept)
        if axis is None:
            return f"{name} outside the layers has the shape {before} and would need {after}"
        tables[name] = axis
    return tables


def _table_axis(before: tuple[int, ...], after: tuple[int, ...] | None, layers: int, kept: int) -> int | None:
    if after is None or len(after) != len(before):
        return None
    differing = [axis for axis, sizes in enumerate(zip(before, after, strict=True)) if sizes[0] != sizes[1]]
    width, rest = divmod(before[differing[0]], layers)
    fits = len(differing) == 1 and not rest and after[differing[0]] == kept * width
    return differing[0] if fits else None


def tables_on_disk(model: nn.Module, tables: dict[str, int], tensors: dict[str, TensorEntry]) -> dict[str, int]:
    """The tables' names in the files -> axis; of tied tables those that are stored.

    Args:
        model: the dense model without weights.
        tables: name in the model -> axis.
        tensors: what the files hold.
    Raises:
        Refusal: a table is not in the files, or lies there in another shape.
    """
    state = model.state_dict(keep_vars=True)
    names = {disk: name for disk, name in names_in_model(model, tensors).items() if name in tables}
    for disk, name in names.items():
        if tensors[disk].shape != tuple(state[name].shape):
            shapes = f"{tensors[disk].shape} in the files and {tuple(state[name].shape)} in the model"
            raise Refusal(f"{disk} has a part per layer, and the shape {shapes}: shallower cannot tell the parts apart")
    there = {id(state[name]) for name in names.values()}
    missing = [name for name in tables if id(state[name]) not in there]
    if missing:
        raise Refusal(
            f"{missing[0]} has a part per layer, and is not among the weights in the files: shallower cannot cut it"
        )
    return {disk: tables[name] for disk, name in names.items()}


def moved_on_disk(
    model: nn.Module, stack_name: str, shared: Iterable[Shared], kept: list[int], tensors: dict[str, TensorEntry]
) -> dict[str, int]:
    """Stored names of shared tensors whose layer goes while another that uses them stays -> the first of those that
    stay.

    Raises:
        Refusal: the tensor has another name in that layer.
    """
    stored = {name: disk for disk, name in names_in_model(model, tensors).items()}
    moved = {}
    for places in shared:
        there = sorted((index, name) for index, name in places if f"{stack_name}.{index}.{name}" in stored)
        users = sorted(item for item in places if item[0] in kept)
        if not there or not users or any(index in kept for index, _ in there):
            continue
        (owner, name), (user, other) = there[0], users[0]
        if name != other:
            raise Refusal(
                f"layers {owner} and {user} share a tensor that is {name} in one and {other} in the other: it "
                "cannot be moved"
            )
        moved[stored[f"{stack_name}.{owner}.{name}"]] = user
    return moved


def layer_sizes(model: nn.Module, stack_name: str, tables: dict[str, int]) -> list[int]:
    """Number of parameters that go with each layer: those of no other layer, and its part of the tables."""
    layers = [dict.fromkeys(layer.parameters()) for layer in model.get_submodule(stack_name)]
    uses = Counter(parameter for layer in layers for parameter in layer)
    parameters = dict(model.named_parameters())  # tied tensors once
    part = sum(parameters[name].numel() for name in tables if name in parameters) // len(layers)
    return [part + sum(parameter.numel() for parameter in layer if uses[parameter] == 1) for layer in layers]
