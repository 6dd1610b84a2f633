"""Pruned models: the plan carried out, written as a plain checkpoint and proven; repaired without training where that is asked."""

from dataclasses import replace
from pathlib import Path
from typing import Any

from ..anatomy.loading import parse_dtype
from ..anatomy.model import Model
from ..anatomy.quantised import check_loadable
from ..artifacts import Plan, Pruned, dumps, load, published
from ..data.readers import check_readable
from ..files import check_free, place
from ..journal import journaled
from ..progress import parts
from ..repairs import brief, compensated
from ..reporting.figures import drift
from ..settings.compute import Compute
from ..settings.repair import Compensating
from ..settings.writing import Writing
from ..surgery import checked_removal, prune_files
from .common import Source, check_same_model, open_model, taken
from .lineage import remember_model

REPAIR, WRITE = 10.0, 1.0  # about what a repair costs beside writing, and beside proving


def prune(
    model: Source,
    plan: Plan | str | Path,
    *,
    out: str | Path,
    compensating: Compensating | str | None = None,
    writing: Writing | None = None,
    compute: Compute | None = None,
    **plain: Any,
) -> Pruned:
    """Write the pruned model as a plain checkpoint and prove it (see ``proof.verify``).

    Example: ``shallower.prune("my-model", plan, out="my-model-shallow", save_dtype="bf16")``.

    Args:
        plan: a Plan, or the path of a plan.json.
        compensating: repair what is left without training; the changes are folded into the written weights.
        writing, compute: or their fields as keywords.
    Raises:
        UserError: the plan is for another model, the removal is refused, or the proof fails; nothing is left at ``out``.
    """
    compensating = Compensating(compensating) if isinstance(compensating, str) else compensating
    writing, compute = taken(plain, "prune", writing=(Writing, writing), compute=(Compute, compute))
    out, plan_file = place(out), plan if isinstance(plan, (str, Path)) else None
    used = compensating.calibration if compensating is not None else None
    inputs = [plan_file, None if isinstance(model, Model) else model, *(used.files if used else ())]
    check_free(out, overwrite=writing.overwrite, inputs=inputs)
    check_readable(used.texts if used else ())
    plan = load(place(plan), "plan") if plan_file is not None else plan
    model = open_model(model, compute)
    check_same_model(plan.model, model.record, "the plan")
    plan = replace(plan, model=model.record)  # as it lies here now
    stored = parse_dtype(writing.save_dtype)
    options = {"overwrite": writing.overwrite, "verify": writing.verify, "max_shard_size": writing.max_shard_size, "save_dtype": stored}
    costs = {"repair": REPAIR if compensating is not None else 0, "write": WRITE, "prove": WRITE if writing.verify else 0}
    with journaled(out), parts({name: cost for name, cost in costs.items() if cost}) as part:
        checked_removal(model, plan, out, save_dtype=stored, changed=compensating is not None)
        if writing.verify:  # the proof loads it
            check_loadable(model.checkpoint.source, model.checkpoint.quantised)
        if compensating is not None:
            with part("repair"):
                patch, report = compensated(model, plan.removed, compensating)
            options |= {"patch": patch, "report": brief(report)}
            options["files"] = {"compensation.json": dumps(published(report)).encode(), "compensation.png": drift(report).png()}
        model.unload()  # the proof reads the model anew; two of them need not fit
        with part("write"):
            pruned = prune_files(model, plan, out, **options)
    remember_model(model)
    return pruned


def compensate(
    model: Source,
    plan: Plan | str | Path,
    *,
    compensating: Compensating | str | None = None,
    out: str | Path,
    **options: Any,
) -> Pruned:
    """Remove what the plan says, repair what is left without training, write it and prove it: ``prune`` with a compensation.

    Example: ``shallower.compensate("my-model", "plan.json", compensating="sequential", out="repaired")``.
    """
    return prune(model, plan, out=out, compensating=compensating or Compensating(), **options)
