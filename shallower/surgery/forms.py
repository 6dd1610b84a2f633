"""Forms of a written model of which parts of layers are missing: a plain host class of another family, or custom code
beside the weights.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch

from ..anatomy.config import Solved
from ..anatomy.config_file import fresh_content
from ..anatomy.custom import FILE, code_text, is_custom, silent_fields
from ..anatomy.loading import FLOATS
from ..anatomy.model import Model
from ..anatomy.modeling_shallower import wrapped
from ..artifacts import Plan
from ..artifacts.removal import MLP, Removal
from ..errors import Refusal, argument
from ..storage.index import ITEM_BYTES
from ..storage.writer import Content
from .hosts import HOSTS, ZEROS, misfit

COSTS = "its own code in the folder, which other programs run only with trust_remote_code=True"


@dataclass(frozen=True)
class Form:
    """What becomes of the files of a family.

    Attributes:
        name: ``plain``, ``host`` or ``custom``.
        changes: what is worth telling of it.
        lost: tensors of the dense model that are not written.
        added: tensors that the dense model has not, by their names in the written one.
        config: makes the content of ``config.json`` from that of the family's.
        files: further files by name.
    """

    name: str = "plain"
    changes: tuple[str, ...] = ()
    lost: frozenset[str] = frozenset()
    added: dict[str, Content] = field(default_factory=dict)
    config: Callable[[dict[str, Any]], dict[str, Any]] = dict
    files: dict[str, str] = field(default_factory=dict)


def choose_form(
    model: Model, plan: Plan, solved: Solved, wanted: str = "auto", save_dtype: torch.dtype | None = None
) -> Form:
    """The form in which what the plan leaves is written.

    Args:
        wanted: auto, plain or custom (see ``Writing``).
        solved: the family's config without the layers of which nothing is left.
    Raises:
        Refusal: none fits; says what to do.
    """
    removal = plan.removal
    lacking = is_custom(model.checkpoint.config)
    if removal.kind == "layer" and not lacking:
        return Form()
    if lacking and wanted == "plain":
        raise Refusal(f"parts of its layers are missing already: no plain form fits; {_custom()}", format=wanted)
    if lacking or wanted == "custom":
        return _custom_form(model, removal)
    return _host_form(model, plan, solved, save_dtype)


def _custom() -> str:
    return f"{argument('format', 'custom')} writes it with {COSTS}"


def _custom_form(model: Model, removal: Removal) -> Form:
    checkpoint, outline = model.checkpoint, model.outline
    if checkpoint.trust_remote_code and not is_custom(checkpoint.config) and checkpoint.raw.get("auto_map"):
        raise Refusal(
            "the model comes with code of its own, which custom code cannot stand beside: remove whole layers"
        )
    if removal.kind == "part" and model.solver.shared:
        raise Refusal("its layers share weights, so that parts of them cannot go from the files: remove whole layers")
    layers = checkpoint.shapes.get_submodule(outline.name)
    parts = model.parts_for(removal)
    silent = silent_fields(checkpoint.config, layers, outline.name, outline.width, removal, parts)
    told = [f"{unit.layer} without its {unit.part}" for unit in removal.units if unit.part]
    return Form(
        "custom",
        (*(f"layer {one}" for one in told), f"{FILE} beside the weights, which loading elsewhere runs"),
        _lost(model, removal),
        config=lambda content: wrapped(content | silent),
        files={FILE: code_text()},
    )


def _lost(model: Model, removal: Removal) -> frozenset[str]:
    """Names in the files of the weights that serve nothing but parts that go."""
    stack = model.outline.name
    gone = {
        f"{stack}.{index}.{name}"
        for index, layer in enumerate(model.parts_for(removal))
        for part in removal.parts(index)
        for name in layer.parts[part].parameters
    }
    return frozenset(disk for disk, name in model.checkpoint.names.memory.items() if name in gone)


def _host_form(model: Model, plan: Plan, solved: Solved, save_dtype: torch.dtype | None) -> Form:
    removal, family = plan.removal, model.checkpoint.config.model_type
    reason = misfit(solved.config, removal)
    if model.checkpoint.quantised is not None:
        reason = "its weights are quantised"
    if reason:
        raise Refusal(f"no plain class holds {family} without {removal} ({reason}): {_custom()}")
    host = HOSTS[family]
    without = {index for index, old in enumerate(plan.kept) if MLP in removal.parts(old)}
    fields = host.fields(solved.config, without, save_dtype)
    content = fresh_content(host.model_type, fields) | {"architectures": [host.architecture]}
    numbers = ", ".join(map(str, sorted(without)))
    said = f"layers {numbers}, numbered anew, with an expert of zeros in the place of their MLP"
    lost = frozenset(name for name in _lost(model, removal) if f".{MLP}." in name)  # the norm in front of it stays
    return Form(
        "host",
        (f"written as {host.architecture}", said),
        lost,
        dict(_zeros(model, plan, host.tensors, lost, save_dtype)),
        config=lambda _: content,
    )


def _zeros(
    model: Model,
    plan: Plan,
    tensors: dict[str, tuple[str, str]],
    lost: frozenset[str],
    save_dtype: torch.dtype | None,
) -> Iterator[tuple[str, Content]]:
    """Tensors of zeros in the place of each lost MLP, stored as that was."""
    places = model.solver.places()
    sizes = ZEROS | {"hidden": model.outline.width}
    stored = next((name for name, kind in FLOATS.items() if kind == save_dtype), None)
    for old in sorted(lost):
        if not old.endswith(f".{MLP}.down_proj.weight"):
            continue
        prefix = places[old].name(plan.kept.index(places[old].layer)).removesuffix("down_proj.weight")
        dtype = stored or model.checkpoint.tensors[old].dtype
        for name, shape in tensors.items():
            rows, columns = (sizes[one] for one in shape)
            count = rows * columns * ITEM_BYTES[dtype]
            yield prefix + name, Content(dtype, (rows, columns), count, lambda count=count: iter([bytes(count)]))
