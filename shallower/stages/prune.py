"""Pruned models: the plan carried out, written as a plain checkpoint and proven.

Repaired where that is asked.
"""

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from .. import methods
from ..anatomy.loading import parse_dtype
from ..anatomy.model import Model
from ..anatomy.quantised import check_rewritable, refuse
from ..artifacts import Plan, Pruned, PrunedGguf, Removal, dumps, load, published
from ..data.readers import check_readable
from ..errors import argument
from ..planning.plans import check_same_model
from ..reporting.card import write_card
from ..reporting.figures import drift_figure
from ..runtime import distributed
from ..runtime.progress import parts
from ..settings.compute import Compute
from ..settings.writing import Writing
from ..storage.journal import journaled
from ..storage.ownership import check_free
from ..storage.paths import place
from ..surgery.rewrite import Beside, prune_files, solve_removal
from ..surgery.width import expected_biases
from .common import ModelSource, check_plan_units, open_model, resolve_settings
from .lineage import remember_model
from .prune_gguf import SUFFIX as GGUF
from .prune_gguf import check_gguf_options, prune_gguf
from .repair import fit_repair
from .repair_gguf import repair_gguf
from .repair_options import RepairOptions

REPAIR, WRITE = 10.0, 1.0  # about what a repair costs beside writing, and beside proving


def prune(
    model: ModelSource,
    plan: Plan | str | Path,
    *,
    out: str | Path,
    compensating: RepairOptions | str | None = None,
    writing: Writing | None = None,
    compute: Compute | None = None,
    **plain: Any,
) -> Pruned | PrunedGguf:
    """Write the pruned model as a plain checkpoint and prove it (see ``proof.verify``); of a .gguf file another one,
    where ``out`` is named so (see ``prune_gguf``).

    Example: ``shallower.prune("my-model", plan, out="my-model-shallow", save_dtype="bf16")``.

    Several processes share the repair, and the first writes and proves.

    Args:
        plan: a Plan, or the path of a plan.json.
        compensating: repair what is left; the changes are folded into the written weights.
        writing, compute: or their fields as keywords.
    Raises:
        UserError: the plan is for another model, the removal is refused, or the proof fails; nothing is left at
            ``out``.
    """
    compensating = RepairOptions(compensating) if isinstance(compensating, str) else compensating
    writing, compute = resolve_settings(plain, "prune", writing=(Writing, writing), compute=(Compute, compute))
    out = place(out)
    if out.suffix == GGUF:
        check_gguf_options(model, out, writing)
        return _gguf(model, plan, out, compensating, writing, compute)
    plan_file = plan if isinstance(plan, (str, Path)) else None
    used = compensating.calibration if compensating is not None else None
    inputs = [plan_file, None if isinstance(model, Model) else model, *(used.files if used else ())]
    check_free(out, overwrite=writing.overwrite, inputs=inputs)
    check_readable(used.texts if used else ())
    plan = load(place(plan), "plan") if plan_file is not None else plan
    model = open_model(model, compute)
    check_quantised(model, writing, repaired=compensating is not None, parts=bool(plan.units))
    check_same_model(plan.model, model.record, "the plan")
    check_plan_units(plan, model)
    plan = replace(plan, model=model.record)  # as it lies here now
    beside = Beside(card=partial(write_card, name=out.resolve().name, source=model.checkpoint.folder))
    costs = {
        "repair": REPAIR if compensating is not None else 0,
        "write": WRITE,
        "prove": WRITE if writing.verify else 0,
    }
    with journaled(out), parts({name: cost for name, cost in costs.items() if cost}) as part:
        _check_form(model, plan, out, writing, compensating)
        if compensating is not None:
            with part("repair"):
                beside = _with_repair(beside, model, plan.removal, compensating)
        model.unload()  # the proof reads the model anew; two of them need not fit
        with part("write"):
            pruned = distributed.by_first(lambda: prune_files(model, plan, out, writing, beside))
    remember_model(model)
    return pruned


def check_quantised(model: Model, writing: Writing, *, repaired: bool, parts: bool) -> None:
    """Raise a UserError for what cannot be done to quantised files, or not be proven here, before any long work.

    Args:
        repaired: what is left is to be repaired.
        parts: parts of layers go.
    """
    checkpoint = model.checkpoint
    how = {"repaired": repaired, "converted": parse_dtype(writing.save_dtype) is not None}
    check_rewritable(checkpoint.source, checkpoint.quantised, **how)
    if writing.verify or parts:  # what loads it
        checkpoint.check_loadable()
    if parts and not (checkpoint.unpacks and writing.format == "custom"):
        custom = f", or take {argument('format', 'custom')}" if checkpoint.unpacks else ""
        why = f"no plain form holds packed layers that lack a part: remove whole layers{custom}"
        refuse(checkpoint.source, checkpoint.quantised, why)


def _gguf(
    model: ModelSource,
    plan: Plan | str | Path,
    out: Path,
    compensating: RepairOptions | None,
    writing: Writing,
    compute: Compute,
) -> PrunedGguf:
    """The pruned .gguf file, repaired where that is asked."""
    if compensating is None:
        source = model.checkpoint.source if isinstance(model, Model) else model
        return prune_gguf(source, plan, out=out, writing=writing)
    check_readable(compensating.calibration.texts if compensating.calibration else ())
    plan = plan if isinstance(plan, Plan) else load(place(plan), "plan")
    opened = open_model(model, compute)
    check_same_model(plan.model, opened.record, "the plan")
    with journaled(out):
        repair = repair_gguf(opened, plan, compensating)
        opened.unload()
        return prune_gguf(opened.checkpoint.source, plan, out=out, writing=writing, repair=repair)


def _check_form(model: Model, plan: Plan, out: Path, writing: Writing, how: RepairOptions | None) -> None:
    """Refuse what cannot be written, with the biases that a repair would give, before any long work."""
    adds = how is not None and getattr(methods.find("compensation", how.method), "ADDS_BIASES", False)
    solve_removal(
        model,
        plan,
        out,
        save_dtype=parse_dtype(writing.save_dtype),
        changed=how is not None,
        format=writing.format,
        biases=expected_biases(model, plan) if adds else {},
    )


def _with_repair(beside: Beside, model: Model, removal: Removal, how: RepairOptions) -> Beside:
    """Additions to the pruned model, with the changes of a repair and its record."""
    patch, report = fit_repair(model, removal, how)
    files = {"compensation.json": dumps(published(report)).encode()}
    if (picture := drift_figure(report).png()) is not None:
        files["compensation.png"] = picture
    return replace(beside, patch=patch, report=report.brief(), files=files)


def compensate(
    model: ModelSource,
    plan: Plan | str | Path,
    *,
    compensating: RepairOptions | str | None = None,
    out: str | Path,
    **options: Any,
) -> Pruned:
    """Remove what the plan says, repair what is left, write it and prove it: ``prune`` with a
    compensation.

    Example: ``shallower.compensate("my-model", "plan.json", compensating="sequential", out="repaired")``.
    """
    return prune(model, plan, out=out, compensating=compensating or RepairOptions(), **options)
