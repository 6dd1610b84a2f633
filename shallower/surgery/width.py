"""Narrower layers in files: which places of each tensor stay, and the config of a model whose layers are all as narrow.

A result is uniform where some fields of the family's config, changed, build weights of just the shapes that are left.
Which fields these are is found by trying those that hold the old width or count of heads; the proof has the last word.
"""

import copy
import itertools
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch

from ..anatomy.config import Solved
from ..anatomy.loading import quiet
from ..anatomy.model import Model
from ..anatomy.patch import Edit, Patch
from ..anatomy.units.group import Groups, Shape, Slices
from ..artifacts import Plan
from ..artifacts.removal import ATTENTION, MLP
from ..errors import Refusal, argument
from ..storage.writer import Cut

LayerShapes = dict[int, dict[str, Shape]]  # layer of the dense model -> name within it -> shape
STRIDE = 16  # bytes: rows of a grouped product are multiples of them
TOGETHER = 3  # fields that are changed together, at most
INNER = ("inner", "intermediate", "ffn")  # in the name of a field that may hold the width of an MLP and is empty


def layer_groups(model: Model, layer: int) -> dict[str, Groups]:
    """Part -> groups of a layer."""
    return model.grouped[layer].groups


def cut_shapes(model: Model, plan: Plan) -> LayerShapes:
    """Layer that stays -> name within it -> what is left of the shape of each weight that becomes smaller."""
    layers = model.checkpoint.shapes.get_submodule(model.outline.name)
    shapes: LayerShapes = {}
    for index in plan.kept:
        for part, gone in plan.removal.groups(index).items():
            for name, cuts in layer_groups(model, index)[part].slices.items():
                sizes = [*layers[index].get_parameter(name).shape]
                for cut in cuts:
                    sizes[cut.axis] -= cut.size * len(gone)
                shapes.setdefault(index, {})[name] = tuple(sizes)
    return shapes


def cuts_on_disk(model: Model, plan: Plan) -> dict[str, Cut]:
    """Name in the files -> what stays of a tensor that becomes smaller.

    Raises:
        Refusal: it lies there in another form than in memory, so that its places cannot be told.
    """
    if not plan.removal.narrows:
        return {}
    prefix, tensors = f"{model.outline.name}.", model.checkpoint.tensors
    stored: dict[str, list[str]] = {}
    for disk, name in model.checkpoint.names.memory.items():
        stored.setdefault(name, []).append(disk)
    layers, cuts = model.checkpoint.shapes.get_submodule(model.outline.name), {}
    for index in plan.kept:
        for part, gone in plan.removal.groups(index).items():
            for name, slices in layer_groups(model, index)[part].slices.items():
                shape = tuple(layers[index].get_parameter(name).shape)
                for disk in stored.get(f"{prefix}{index}.{name}", ()):
                    own = _stored_slices(disk, shape, tensors[disk].shape, slices)
                    size = tensors[disk].shape[own.axis]
                    cuts[disk] = Cut(own.axis, size, tuple(own.kept(size, gone)))
    return cuts


def _stored_slices(name: str, shape: Shape, stored: Shape, slices: tuple[Slices, ...]) -> Slices:
    """The places of groups in a tensor of a file from which a weight is made, alone or as one of a pile."""
    if len(slices) == 1 and stored == shape:
        return slices[0]
    if len(slices) == 1 and len(stored) == len(shape) - 1 and slices[0].axis > 0:  # one expert of a pile
        runs, size, axis = slices[0].runs, shape[slices[0].axis], slices[0].axis - 1
        if stored[axis] == size:
            return Slices(axis, runs)
        block = size // len(runs)
        alike = all(run == (runs[0][0] + place * block, *runs[0][1:]) for place, run in enumerate(runs))
        if stored[axis] == block and alike:  # one of the products that are piled side by side
            return Slices(axis, runs[:1])
    raise Refusal(f"{name} is stored in another form ({list(stored)}) than it has in memory ({list(shape)})")


def check_experts(model: Model, plan: Plan, itemsize: int) -> None:
    """Raise a Refusal where experts become so narrow that their grouped product does not run."""
    for index in plan.kept:
        for part, gone in plan.removal.groups(index).items():
            groups = layer_groups(model, index)[part]
            left = groups.features - groups.size * len({*gone})
            if not groups.product and left * itemsize % STRIDE:
                raise Refusal(
                    f"the experts of layer {index} would keep {left:,} neurons, and their grouped product asks for "
                    f"multiples of {STRIDE // itemsize}: give {argument('multiple_of', STRIDE // 2)}"
                )


def cut_edit(edit: Edit, cut: Cut | None) -> Edit:
    """The same change for what is left of a tensor."""
    if cut is None or edit.kind not in ("add", "set"):
        return edit
    places = torch.tensor(cut.kept, device=edit.value.device)
    return replace(edit, value=edit.value.index_select(cut.axis, places))


def uniform_config(model: Model, plan: Plan, solved: Solved) -> Solved | None:
    """The config that builds what is left, where all layers are as narrow; None where none does.

    Args:
        solved: the config without the layers of which nothing is left.
    """
    wanted = _wanted_shapes(model, plan)
    content, changes = solved.config.to_dict(), []
    for part in (MLP, ATTENTION):
        counts = _counts(model, plan, part)
        if counts is None:
            return None
        if not counts:
            continue
        for edits in _edits(_section(content, model.solver.path), part, counts, model):
            trial = copy.deepcopy(content)
            _section(trial, model.solver.path).update(edits)
            if _fits(model, trial, wanted, part):
                content = trial
                changes += [f"{key} -> {value}" for key, value in edits.items()]
                break
        else:
            return None
    config = type(solved.config).from_dict(content)
    return replace(solved, config=config, changes=(*solved.changes, *changes))


def new_biases(model: Model, plan: Plan, patch: Patch) -> LayerShapes:
    """Layer -> name within it -> shape, of biases that a patch gives to modules which have none."""
    found: LayerShapes = {}
    prefix = f"{model.outline.name}."
    for name, edit in patch.items():
        if edit.kind == "new":
            index, _, inner = name.removeprefix(prefix).partition(".")
            found.setdefault(int(index), {})[inner] = tuple(edit.value.shape)
    return {index: names for index, names in found.items() if index in plan.kept}


def expected_biases(model: Model, plan: Plan) -> LayerShapes:
    """Biases that the last products of parts that lose groups would get where they have none."""
    layers = model.checkpoint.shapes.get_submodule(model.outline.name)
    found: LayerShapes = {}
    for index in plan.kept:
        for part in plan.removal.groups(index):
            module = layer_groups(model, index)[part].module
            if getattr(layers[index].get_submodule(module), "bias", None) is None:
                found.setdefault(index, {})[f"{module}.bias"] = (model.outline.width,)
    return found


def biased_config(model: Model, plan: Plan, solved: Solved, biases: LayerShapes) -> Solved | None:
    """The config of the same model with biases, where some fields that say whether there are any, switched on, build
    them; None where none do. Further biases that these bring are zeros.
    """
    wanted = {f"{plan.kept.index(index)}.{name}" for index, names in biases.items() for name in names}
    content = solved.config.to_dict()
    section = _section(content, model.solver.path)
    flags = [key for key, value in section.items() if value is False and "bias" in key]
    plain = _built_shapes(model, content)
    for size in range(1, len(flags) + 1):
        for keys in itertools.combinations(flags, size):
            trial = copy.deepcopy(content)
            _section(trial, model.solver.path).update(dict.fromkeys(keys, True))
            built = _built_shapes(model, trial)
            if built and wanted <= built.keys() and all(built.get(name) == shape for name, shape in plain.items()):
                config = type(solved.config).from_dict(trial)
                changes = (*solved.changes, *(f"{key} -> true" for key in keys))
                return replace(solved, config=config, changes=changes)
    return None


def zero_biases(model: Model, plan: Plan, solved: Solved, given: LayerShapes) -> LayerShapes:
    """Layer -> name within it -> shape, of biases that a config builds beside those that are given and the model's."""
    layers = model.checkpoint.shapes.get_submodule(model.outline.name)
    known = {
        index: {name for name, _ in layers[index].named_parameters()} | {*given.get(index, ())} for index in plan.kept
    }
    found: LayerShapes = {}
    for name, shape in _built_shapes(model, solved.config.to_dict()).items():
        new, _, inner = name.partition(".")
        old = plan.kept[int(new)]
        if inner not in known[old]:
            found.setdefault(old, {})[inner] = shape
    return found


def _built_shapes(model: Model, content: dict[str, Any]) -> dict[str, Shape]:
    """Shapes of the weights of the layers that a config builds; empty where it builds none."""
    try:
        with quiet():
            built = model.checkpoint.build(type(model.checkpoint.config).from_dict(copy.deepcopy(content)))
        layers = built.get_submodule(model.outline.name)
    except Exception:  # config validation and constructors raise anything
        return {}
    return {name: tuple(weight.shape) for name, weight in layers.named_parameters()}


def _counts(model: Model, plan: Plan, part: str) -> dict[int, int] | None:
    """Groups of a part before -> after, where every layer that has so many keeps as many; None where they differ."""
    after: dict[int, int] = {}
    for index in plan.kept:
        groups = layer_groups(model, index).get(part)
        if groups is None:
            continue
        left = groups.count - len(plan.removal.groups(index).get(part, ()))
        if after.setdefault(groups.count, left) != left:
            return None
    return {before: left for before, left in after.items() if before != left}


def _wanted_shapes(model: Model, plan: Plan) -> dict[str, Shape]:
    """Name in the written model's numbering -> shape, of every weight of its layers."""
    layers, cut = model.checkpoint.shapes.get_submodule(model.outline.name), cut_shapes(model, plan)
    return {
        f"{new}.{name}": cut.get(old, {}).get(name, tuple(weight.shape))
        for new, old in enumerate(plan.kept)
        for name, weight in layers[old].named_parameters()
    }


def _fits(model: Model, content: dict[str, Any], wanted: dict[str, Shape], part: str) -> bool:
    """Whether a config builds weights of these shapes; where the MLPs are looked at, attentions may still differ."""
    shapes = _built_shapes(model, content)
    of_part = _names(model, part) if part == MLP else wanted.keys()
    return shapes.keys() == wanted.keys() and all(shapes[name] == wanted[name] for name in of_part if name in wanted)


def _names(model: Model, part: str) -> set[str]:
    """Names of the weights that become smaller with a part, in every layer's number."""
    every = {
        name for layer in model.grouped for one, each in layer.groups.items() if one == part for name in each.slices
    }
    return {f"{index}.{name}" for index in range(len(model.grouped)) for name in every}


def _edits(section: dict[str, Any], part: str, counts: dict[int, int], model: Model) -> Iterator[dict[str, Any]]:
    """Changes of fields to try, the fewest first."""
    fields = {}
    for key, value in section.items():
        new = _narrowed(key, value, part, counts)
        if new is not None:
            fields[key] = new
    for size in range(1, TOGETHER + 1):
        for keys in itertools.combinations(fields, size):
            edits = {key: fields[key] for key in keys}
            if part == ATTENTION:  # the size of a head would follow from their number
                yield edits | {"head_dim": _head_size(section, model)}
            yield edits


def _narrowed(key: str, value: Any, part: str, counts: dict[int, int]) -> Any:
    """The value of a field that may hold the width or count, for fewer groups; None for another field."""
    if part == MLP:
        if isinstance(value, list) and value and all(type(one) is int for one in value):
            new = [counts.get(one, one) for one in value]
            return new if new != value else None
        if value is None and any(name in key for name in INNER):
            return next(iter(counts.values()))
        return counts.get(value) if type(value) is int else None
    if "head" not in key or "dim" in key or "size" in key or type(value) is not int:
        return None
    return next((value // one * left for one, left in counts.items() if value and value % one == 0), None)


def _head_size(section: dict[str, Any], model: Model) -> int:
    given = section.get("head_dim")
    config = model.checkpoint.config.get_text_config()
    return given or config.hidden_size // config.num_attention_heads


def _section(content: dict[str, Any], path: tuple[str, ...]) -> dict[str, Any]:
    for name in path:
        content = content[name]
    return content
