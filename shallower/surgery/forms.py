"""Forms of a written model of which parts of layers are missing: a plain host class of another family, DeciLM, or
custom code beside the weights.
"""

from dataclasses import replace
from typing import Any, NoReturn

import torch

from ..anatomy.config import Solved
from ..anatomy.config_file import fresh_content
from ..anatomy.custom import FILE, code_text, is_custom, silent_fields
from ..anatomy.model import Model
from ..anatomy.modeling_shallower import DECI_TYPE, NUMBERS, OURS, SHAPES, SILENT, wrapped
from ..artifacts import Plan
from ..artifacts.removal import MLP, Removal
from ..errors import Refusal, argument
from .deci import READERS, STEP, deci_form, deci_misfit
from .form import Form, Place, lost_tensors
from .hosts import EXPERT, SIZES, WIDTH, host_of, misfit
from .width import LayerShapes, cut_shapes, layer_groups

SAID = 12  # parts of layers that are told one by one


def choose_form(
    model: Model,
    plan: Plan,
    solved: Solved,
    wanted: str = "auto",
    save_dtype: torch.dtype | None = None,
    *,
    uniform: bool = False,
    biases: LayerShapes | None = None,
) -> Form:
    """The form in which what the plan leaves is written.

    Args:
        wanted: auto, plain, custom or deci (see ``Writing``).
        solved: the family's config without the layers of which nothing is left.
        uniform: that config says too how narrow the layers are, and that they have biases.
        biases: layer -> names and shapes of biases that it gets and has not yet.
    Raises:
        Refusal: none fits; says what to do.
    """
    removal = plan.removal
    lacking = is_custom(model.checkpoint.config)
    whole = removal.kind == "layer" or (uniform and not any(removal.parts(index) for index in plan.kept))
    if whole and not lacking:
        return Form()
    if lacking and _whole_again(model, removal):
        return Form(config=lambda content: {key: value for key, value in content.items() if key not in OURS})
    if lacking and wanted == "plain":
        _refuse(model, removal, "parts of its layers are missing already: no plain form fits")
    deci = wanted == "deci" or (wanted == "auto" and model.checkpoint.raw.get("model_type") == DECI_TYPE)
    reason = deci_misfit(model, removal) if deci else ""
    if reason and wanted == "deci":
        said = f"no DeciLM, which {READERS} read, is {model.checkpoint.config.model_type} without {removal}"
        raise Refusal(f"{said} ({reason}): {_custom()}", format=wanted)
    if deci and not reason:
        return deci_form(model, plan, solved, save_dtype)
    if lacking or wanted == "custom":
        form = _custom_form(model, plan, biases or {})
        return replace(form, changes=(*form.changes, f"no DeciLM any more ({reason})")) if reason else form
    return _host_form(model, plan, solved, save_dtype, biases)


def _whole_again(model: Model, removal: Removal) -> bool:
    """Whether all layers that lack something go, so that those that stay are the family's own."""
    config, layers = model.checkpoint.config, model.record.layers
    changed = [getattr(config, name, None) or [None] * layers for name in (SILENT, SHAPES, NUMBERS)]
    return removal.kind == "layer" and not any(one[index] for one in changed for index in removal.stays(layers))


def _custom() -> str:
    costs = "code of its own in the folder, which other programs run only with trust_remote_code=True"
    return f"{argument('format', 'custom')} writes it with {costs}"


def _refuse(model: Model, removal: Removal, reason: str) -> NoReturn:
    """Refuse a plain form, and name what else can be had and its costs."""
    wrong = deci_misfit(model, removal)
    zeros = (
        f" (with {STEP} neurons of zeros for a missing MLP)" if any(one.part == MLP for one in removal.units) else ""
    )
    deci = f"does not hold it ({wrong})" if wrong else f"writes it for {READERS}{zeros}"
    raise Refusal(f"{reason}: {_custom()}; {argument('format', 'deci')} {deci}")


def _custom_form(model: Model, plan: Plan, biases: LayerShapes) -> Form:
    checkpoint, outline, removal = model.checkpoint, model.outline, plan.removal
    if checkpoint.trust_remote_code and not is_custom(checkpoint.config) and checkpoint.raw.get("auto_map"):
        raise Refusal(
            "the model comes with code of its own, which custom code cannot stand beside: remove whole layers"
        )
    if removal.kind != "layer" and model.solver.shared:
        raise Refusal("its layers share weights, so that parts of them cannot go from the files: remove whole layers")
    layers = checkpoint.shapes.get_submodule(outline.name)
    parts = model.parts_for(removal)
    silent = silent_fields(checkpoint.config, layers, outline.name, outline.width, removal, parts)
    shapes = cut_shapes(model, plan)
    _narrow(silent, {index: shapes.get(index, {}) | biases.get(index, {}) for index in plan.kept}, plan, model)
    told = [f"{unit.layer} without its {unit.part}" for unit in removal.units if unit.part and not unit.groups]
    told += [
        f"{unit.layer} without {len(unit.groups)} group{'s' * (len(unit.groups) > 1)} of its {unit.part}"
        for unit in removal.units
        if unit.groups
    ]
    return Form(
        "custom",
        (*_few([f"layer {one}" for one in told]), f"{FILE} beside the weights, which loading elsewhere runs"),
        lost_tensors(model, removal),
        config=lambda content: wrapped(content | silent),
        files={FILE: code_text()},
    )


def _narrow(fields: dict[str, Any], shapes: LayerShapes, plan: Plan, model: Model) -> None:
    """Add the shapes of weights that become smaller, and the numbers that follow, to what is said of each layer."""
    for new, old in enumerate(plan.kept):
        fields[SHAPES][new] |= {name: [*shape] for name, shape in shapes.get(old, {}).items()}
        for part, gone in plan.removal.groups(old).items():
            fields[NUMBERS][new] |= layer_groups(model, old)[part].narrowed(gone)


def _few(told: list[str]) -> list[str]:
    """The first of many lines, and how many there are."""
    return told if len(told) <= SAID else [*told[:SAID], f"and so on, {len(told)} parts of layers in all"]


def _host_form(
    model: Model, plan: Plan, solved: Solved, save_dtype: torch.dtype | None, biases: LayerShapes | None
) -> Form:
    removal, family = plan.removal, model.checkpoint.config.model_type
    narrow = _narrower_mlps(model, plan)
    reason = misfit(solved.config, removal, {*narrow.values()})
    if biases:
        reason = "its biases are none of a plain class's"
    if model.checkpoint.quantised is not None:
        reason = "its weights are quantised"
    if reason:
        _refuse(model, removal, f"no plain class holds {family} without {removal} ({reason})")
    host = host_of(solved.config)
    without = {*narrow} or {index for index, old in enumerate(plan.kept) if MLP in removal.parts(old)}
    width = next(iter(narrow.values()), WIDTH)
    content = fresh_content(host.model_type, host.fields(solved.config, without, save_dtype, width))
    content["architectures"] = [host.architecture]
    numbers = ", ".join(map(str, sorted(without)))
    what = f"their MLP as one expert of {width:,} neurons" if narrow else "an expert of zeros in the place of their MLP"
    lost = frozenset(name for name in lost_tensors(model, removal, MLP) if f".{MLP}." in name)  # its norm stays
    sizes = SIZES | {"hidden": model.outline.width, "width": width}
    shapes = host.beside if narrow else EXPERT | host.beside
    zeros = {f"{MLP}.{name}": tuple(sizes[one] for one in shape) for name, shape in shapes.items()}
    added, renamed = {}, {}
    for new in sorted(without):
        place = Place.of(model, plan.kept[new], new, save_dtype)
        added |= place.zeros(zeros)
        for name in EXPERT if narrow else ():
            renamed[place.name(f"{MLP}.{name.removeprefix('experts.0.')}")] = place.name(f"{MLP}.{name}")
    said = (f"written as {host.architecture}", f"layers {numbers}, numbered anew, with {what}")
    return Form("host", said, lost, added, config=lambda _: content, renamed=renamed)


def _narrower_mlps(model: Model, plan: Plan) -> dict[int, int]:
    """New number of a layer -> neurons that are left to its MLP, where some go."""
    found = {}
    for new, old in enumerate(plan.kept):
        if gone := plan.removal.groups(old).get(MLP):
            found[new] = layer_groups(model, old)[MLP].count - len(gone)
    return found
