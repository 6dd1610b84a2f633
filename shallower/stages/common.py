"""Opening models and saving results.

What a Python caller may give, checking that artifacts fit a model, and saving results.
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import nn

from ..anatomy.model import Model
from ..artifacts import Plan, Unit, Units, save
from ..artifacts.units import LAYER, LAYER_WIDTH, SUBLAYER
from ..errors import UserError, argument
from ..planning.exchange import write_plan
from ..runtime import distributed
from ..settings.compute import Compute
from ..settings.fields import check_spent, settings_from

ModelSource = str | Path | Model


def open_model(source: ModelSource, compute: Compute | None = None, **plain: Any) -> Model:
    """A model by folder, Hub id or .gguf file; a Model is handed through, so that stages can share one loaded model.

    Example: ``model = shallower.open_model("my-model", dtype="bf16")``.
    """
    compute = settings_from(Compute, compute, plain, "compute")
    check_spent(plain, (Compute,), "open_model")
    if isinstance(source, Model):
        return source
    return Model(source, **vars(compute))


def open_to_run(source: ModelSource, compute: Compute | None = None) -> Model:
    """The same for a model that will be run: refused at once where its weights cannot be loaded on this machine."""
    model = open_model(source, compute)
    model.checkpoint.check_loadable()
    return model


def load(source: str | Path, compute: Compute | None = None, **plain: Any) -> nn.Module:
    """Loaded model of a folder, Hub id or .gguf file, as transformers makes it; also where parts of layers are missing.

    What ``--format custom`` and ``deci`` write is opened without the code in the folder. Its weights take no gradients
    until ``requires_grad_()`` is called.

    Args:
        compute: device and dtype; the whole model has to fit.
    Raises:
        UserError: it cannot be loaded, or ``layered`` was asked for.

    Example: ``shallower.load("my-model-shallow").generate(**tokens, max_new_tokens=20)``.
    """
    compute = settings_from(Compute, compute, plain, "compute")
    check_spent(plain, (Compute,), "load")
    if compute.layered:
        raise UserError("the loaded model is whole: open_model keeps one layer in memory at a time", layered=True)
    return Model(source, **vars(replace(compute, layered=False))).module


def resolve_settings(plain: dict[str, Any], verb: str, **wanted: tuple[type, Any]) -> tuple[Any, ...]:
    """The settings that a verb takes, in order, each from what was given for it and from plain keywords.

    Args:
        plain: keywords that are fields of some settings; those that none has are refused.
        wanted: name of the argument -> (kind of settings, what was given for it).
    """
    left = dict(plain)
    settings = tuple(settings_from(kind, given, left, name) for name, (kind, given) in wanted.items())
    check_spent(left, tuple(kind for kind, _ in wanted.values()), verb)
    return settings


def check_plan_units(plan: Plan, model: Model) -> None:
    """Raise a UserError where a plan's units are none of the model's, or of other sizes than it says."""
    if not plan.units:
        return
    narrows = plan.removal.narrows
    kinds = [model.units(kind) for kind in (LAYER, *([LAYER_WIDTH] if narrows else [SUBLAYER]))]
    known = {str(unit): count for units in kinds for unit, count in units.listing}
    if narrows:
        known |= {name: _size(kinds[1], Unit.parse(name)) for name in plan.units}
    wrong = next((name for name, count in plan.units.items() if known.get(name) != count), None)
    if wrong is not None:
        has = f"has {known[wrong]:,} parameters there" if wrong in known else "is none of its units"
        raise UserError(
            f"the plan does not fit {model.checkpoint.source} ({wrong} {has}): make it anew, or drop by name"
        )
    if not narrows and plan.removal != plan.removal.folded([part.parts for part in model.parts]):
        raise UserError("the plan keeps layers of which nothing is left: make it anew, or drop by name")


def save_artifact(record, out: str | Path | None):
    """Artifact, handed through; the first process saves it."""
    if out is not None and distributed.rank() == 0:
        save(record, out)
    return record


def save_plan(plan: Plan, out: Path | None) -> Plan:
    """Plan, handed through; the first process saves it in the form that the suffix of ``out`` names."""
    if out is not None and distributed.rank() == 0:
        write_plan(plan, out)
    return plan


def units_named(model: Model, names: Sequence[str], name: str) -> tuple[Units, tuple[int, ...]]:
    """(the units that some names are of, their numbers in the order given).

    Where parts of layers are among them, a whole layer stands for its parts.

    Args:
        names: as ``unit_names`` reads them.
        name: of the argument, for messages.
    Raises:
        UserError: the model has no such layer, or the layer no such part.
    """
    try:
        asked = [Unit.parse(one) for one in names]
    except ValueError as error:
        raise UserError(f"{argument(name)}: {error}") from error
    layers = model.record.layers
    outside = next((unit for unit in asked if unit.layer >= layers), None)
    if outside is not None:
        raise UserError(f"the model has the layers 0 to {layers - 1}", **{name: str(outside)})
    if not any(unit.part for unit in asked):
        return model.units(), tuple(unit.layer for unit in asked)
    if any(unit.groups for unit in asked):
        return _groups_named(model, asked, name)
    units = model.units(SUBLAYER)
    numbers: list[int] = []
    for unit in asked:
        own = [number for one, number in units.numbers.items() if one.layer == unit.layer]
        if unit.part and unit.part not in model.parts[unit.layer].parts:
            raise UserError(f"layer {unit.layer} has no {unit.part}", **{name: str(unit)})
        numbers += [units.numbers[unit]] if unit in units.numbers and unit.part else own
    return units, tuple(numbers)


def _size(units: Units, unit: Unit) -> int:
    """Parameters that go with groups of a part, which keeps others; with a layer; -1 for what is none."""
    singles = [unit._replace(groups=(group,)) for group in unit.groups] or [unit]
    if len(unit.groups) == len(units.by_part.get(unit.whole, ())) > 0:
        return -1
    return sum(units.listing[units.numbers[one]].parameters if one in units.numbers else -1 for one in singles)


def _groups_named(model: Model, asked: Sequence[Unit], name: str) -> tuple[Units, tuple[int, ...]]:
    """The same where groups of parts are named, beside whole layers at most."""
    units = model.units(LAYER_WIDTH)
    numbers: list[int] = []
    for unit in asked:
        if unit.part and not unit.groups:
            raise UserError("name whole parts or groups of parts, not both", **{name: str(unit)})
        own = len(units.by_part.get(unit.whole, ()))
        if unit.groups and unit.groups[-1] >= own:
            there = f"has the groups 0 to {own - 1}" if own else "has none that can go alone"
            raise UserError(f"{unit.whole} {there}", **{name: str(unit)})
        if len(unit.groups) == own > 0:
            raise UserError(f"nothing of {unit.whole} would be left; name {unit.whole}", **{name: str(unit)})
        singles = [unit._replace(groups=(group,)) for group in unit.groups] or [unit]
        numbers += [units.numbers[one] for one in singles]
    return units, tuple(numbers)
