"""Tensors outside the layers that have a part per layer: told by their shapes, and found again under their names on disk."""

from collections.abc import Iterable

from torch import Tensor, nn
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import WeightConverter, WeightRenaming, rename_source_key

from ..errors import Refusal
from ..tensors import Entry

Shapes = dict[str, tuple[int, ...]]


def outside_shapes(model: nn.Module, stack_name: str) -> Shapes:
    """Shapes of all saved tensors that belong to no layer, such as embeddings; tied ones under each of their names."""
    tensors = {name: value for name, value in model.state_dict().items() if isinstance(value, Tensor)}
    return {name: tuple(value.shape) for name, value in tensors.items() if not name.startswith(stack_name + ".")}


def layer_tables(dense: Shapes, pruned: Shapes, layers: int, kept: int) -> dict[str, int] | str:
    """The tables by layer among the outside tensors, name -> axis; or, in words, what else differs.

    A tensor is such a table if exactly one axis differs, and that one is layers x width before and kept x the same width
    after. That the parts lie in the order of the layers is supposed here and proven on the written model.
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


def tables_on_disk(model: nn.Module, tables: dict[str, int], tensors: dict[str, Entry]) -> dict[str, int]:
    """The tables' names in the files -> axis; of tied tables those that are stored.

    Args:
        model: the unpruned model without weights.
        tables: name in the model -> axis.
        tensors: what the files hold.
    Raises:
        Refusal: a table is not in the files, or lies there in another shape.
    """
    state = model.state_dict(keep_vars=True)
    found = {disk: name for disk, name in names_in_model(model, tensors).items() if name in tables}
    for disk, name in found.items():
        if tensors[disk].shape != tuple(state[name].shape):
            shapes = f"{tensors[disk].shape} in the files and {tuple(state[name].shape)} in the model"
            raise Refusal(f"{disk} has a part per layer, and the shape {shapes}: shallower cannot tell the parts apart")
    there = {id(state[name]) for name in found.values()}
    missing = [name for name in tables if id(state[name]) not in there]
    if missing:
        raise Refusal(f"{missing[0]} has a part per layer, and is not among the weights in the files: shallower cannot cut it")
    return {disk: tables[name] for disk, name in found.items()}


def names_in_model(model: nn.Module, names: Iterable[str]) -> dict[str, str]:
    """Tensor names in the files -> in the model, by transformers' own renaming; names that it does not know stay."""
    transforms = get_model_conversion_mapping(model)
    renamings = [item for item in transforms if isinstance(item, WeightRenaming)]
    converters = [item for item in transforms if isinstance(item, WeightConverter)]
    state, prefix = model.state_dict(), model.base_model_prefix

    def renamed(name: str) -> str:
        new = rename_source_key(name, renamings, converters, prefix, state)[0]
        return rename_source_key(name, [], [], prefix, state)[0] if new not in state and name in state else new

    return {name: renamed(name) for name in sorted(names)}
