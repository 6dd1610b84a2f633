"""Sweep: perplexity against layers removed."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .. import methods
from ..artifacts import NOTHING, Perplexity, Plan, Sweep, SweepRow
from ..artifacts.units import LAYER, WIDTH, check_units_kind
from ..data.readers import check_readable
from ..errors import UserError, argument
from ..settings.calibration import Calibration, Paths, calibration_of, listed_paths
from ..settings.compute import Compute
from ..settings.evaluation import Protocol
from ..settings.quantities import sizes_of
from ..storage.journal import journaled
from ..storage.ownership import artifact_place
from ..walk.run import dtype_name, timed
from .choosing import nested_plans
from .common import ModelSource, open_to_run, resolve_settings, save_artifact
from .evidence import Evidence
from .plan import check_schedule, check_selects
from .selection_options import REPAIRED, SelectionOptions, default_criterion


def sweep(
    model: ModelSource,
    *,
    sizes: Any,
    criterion: str | None = None,
    settings: dict[str, Any] | None = None,
    units: str = LAYER,
    choosing: SelectionOptions | str | None = None,
    calibration: Calibration | None = None,
    texts: Paths = (),
    protocol: Protocol | None = None,
    compute: Compute | None = None,
    out: str | Path | None = None,
    **plain: Any,
) -> Sweep:
    """Perplexity against layers removed: scored once, every size evaluated by virtual removal, nothing copied.

    Example: ``shallower.sweep("my-model", sizes="1-12", selection="greedy")``.

    Args:
        sizes: numbers of layers to remove; the model as it is comes first in any case.
        criterion, settings, units, choosing, calibration, compute: as for ``plan``.
        texts, protocol: as for ``evaluate``.
    """
    choosing = SelectionOptions(choosing) if isinstance(choosing, str) else choosing
    kinds = {
        "choosing": (SelectionOptions, choosing),
        "calibration": (Calibration, calibration_of(calibration)),
        "compute": (Compute, compute),
    }
    choosing, calibration, compute = resolve_settings(plain, "sweep", **kinds)
    _check_units(units)
    criterion = criterion or default_criterion(units)
    choosing = _settled(choosing, criterion, units)
    sizes = sizes_of(sizes, "sizes")
    texts = listed_paths(texts)
    out = artifact_place(out, "sweep", [*texts, *calibration.files])
    check_readable(texts, "texts")
    check_readable(calibration.texts)
    model = open_to_run(model, compute)
    evidence = Evidence(model, None, criterion, settings, units, calibration, texts, protocol)
    _ = evidence.segments  # wrong ones are refused before anything is scored
    with journaled(out), timed(model) as peak:
        plans = list(nested_plans(evidence, choosing, sizes))
        perplexities = evidence.perplexities([NOTHING, *(plan.removal for plan in plans)], "sweep")
    last = plans[-1]
    parameters = [model.record.parameters, *(plan.params_after for plan in plans)]
    result = Sweep(
        model=model.record,
        order=last.order,
        selection=last.selection,
        criterion=last.criterion,
        settings=last.settings,
        calibration=last.calibration,
        rows=_rows(plans, parameters, perplexities),
        seconds=peak.seconds,
        dtype=dtype_name(model),
    )
    return save_artifact(result, out)


def _settled(choosing: SelectionOptions, criterion: str, units: str) -> SelectionOptions:
    """The selection that suits, checked to be one that a sweep can show."""
    choosing = choosing.for_criterion(criterion, units)
    check_selects(choosing.selection, units)
    check_schedule(methods.find("selection", choosing.selection), choosing)
    if choosing.objective == REPAIRED or choosing.refit:
        given = argument("refit", choosing.refit) if choosing.refit else argument("objective", REPAIRED)
        raise UserError(f"{given} has no meaning for a sweep, which measures what is cut as it is: plan takes it")
    return choosing


def _check_units(units: str) -> None:
    """Raise a UserError where sizes are no numbers of such units."""
    check_units_kind(units, plans=False)
    if units == WIDTH:
        raise UserError(
            f"sizes are numbers of layers or parts; plan widths by {argument('ratio')} and evaluate each", units=units
        )


def _rows(
    plans: Sequence[Plan], parameters: Sequence[int], perplexities: Sequence[dict[str, Perplexity]]
) -> list[SweepRow]:
    """Rows of a sweep, the model as it is and one per plan."""
    gone = [(0, [], {}), *((plan.size, list(plan.removal.layers), plan.units) for plan in plans)]
    return [
        SweepRow(size, layers, count, by_text, units)
        for (size, layers, units), count, by_text in zip(gone, parameters, perplexities, strict=True)
    ]
