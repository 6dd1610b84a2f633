"""Depth and width together: how many layers go and how narrow the others become, by the loss after a repair.

A few depths are tried, from none to as many layers as meet the amount alone; at each of them the layers that stay are
made narrower, all alike, until the amount is met. Every candidate is repaired in closed form, and the one with the
lowest loss on held-out calibration text is planned.
"""

from dataclasses import replace

from ..artifacts import NOTHING, Candidate, Plan, Removal, Units
from ..artifacts.units import LAYER, LAYER_WIDTH, WIDTH
from ..errors import UserError, argument
from ..planning.amount import check_amount, resolve_amount
from ..planning.plans import plan_of
from ..planning.problem import Problem
from ..runtime.progress import parts
from ..settings.amount import Amount
from ..walk.run import load_weights
from .choosing import choose_plan, selection_method
from .evidence import Evidence
from .repair import fit_repair
from .repair_options import FITTED, RepairOptions
from .selection_options import SelectionOptions

DEPTH = "perplexity"  # by which layers go: one walk for all depths, and better than a run of neighbours
DEEP = SelectionOptions("lowest")
STEPS = 4  # depths between none and all that are tried beside them, at most


def plan_depth_and_width(evidence: Evidence, choosing: SelectionOptions, amount: Amount) -> Plan:
    """The plan of the candidate with the lowest held-out loss after its repair.

    Args:
        evidence: of the model; its criterion is that of the groups. Layers are chosen by their removal losses.
        choosing: of the groups, by ``uniform``.
    Raises:
        UserError: the amount cannot be met, or is one of quality or of a number of units.
    """
    if amount.remove is not None:
        raise UserError(f"layers and groups are counted in parameters: give {argument('ratio')}", remove=amount.remove)
    record = evidence.record
    settled, basis = resolve_amount(amount, record, evidence.dtype)
    units = evidence.model.units(LAYER_WIDTH)
    _, wanted = check_amount(settled, record, units, range(len(units)))
    depths = _depths(wanted, max(record.layer_parameters), record.layers)
    layers = replace(evidence, criterion=DEPTH, settings=None, kind=LAYER, given=None)
    by_group = replace(evidence, kind=WIDTH)
    candidates: dict[tuple[int, ...], Candidate] = {}
    how = RepairOptions(calibration=replace(evidence.calibration, samples=FITTED, at_most=True))
    with parts({f"{depth} layers": 1.0 for depth in depths}) as part:
        load_weights(evidence.model)
        for depth in depths:
            with part(f"{depth} layers"):
                gone = choose_plan(layers, DEEP, Amount(remove=depth)).removal if depth else NOTHING
                numbers = _numbers(units, by_group, choosing, gone, wanted)
                if numbers is None:
                    continue
                plan = plan_of(record, numbers, choosing.selection, units=units)
                _, report = fit_repair(evidence.model, plan.removal, how)
                loss = report.loss
                candidates[numbers] = Candidate(
                    layers=list(gone.layers),
                    narrowed=str(Removal(tuple(unit for unit in plan.removal.units if unit.part))),
                    share=plan.share,
                    loss_dense=loss.dense,
                    loss_before=loss.before,
                    loss=loss.after,
                    expected_speedup=plan.expected_speedup,
                )
    if not candidates:
        raise UserError(f"{amount.name or 'the amount'} cannot be met by layers and width together: lower it")
    best = min(candidates, key=lambda numbers: candidates[numbers].loss)
    return replace(
        plan_of(record, best, choosing.selection, units=units, calibration=by_group.scores.calibration),
        criterion=by_group.scores.criterion,
        settings=by_group.scores.settings | choosing.settings,
        assumed=basis,
        candidates=[*candidates.values()],
    )


def _depths(wanted: float, layer: int, layers: int) -> list[int]:
    """Numbers of layers to try: none, the most that do not go beyond what is wanted, and some between."""
    most = min(int(wanted // layer), layers - 1)
    steps = min(most, STEPS + 1)
    return sorted({round(most * step / max(1, steps)) for step in range(steps + 1)})


def _numbers(
    units: Units, by_group: Evidence, choosing: SelectionOptions, gone: Removal, wanted: float
) -> tuple[int, ...] | None:
    """Numbers of the layers that go and of the groups that go from the others; None where the width cannot make up."""
    groups = by_group.units
    left = wanted - units.parameters([units.numbers[unit] for unit in gone.units])
    allowed = tuple(number for number, one in enumerate(groups.listing) if not gone.gone(one.unit.layer))
    smallest = min(one.parameters for one in groups.listing)
    method = selection_method(choosing, by_group)
    chosen: tuple[int, ...] = ()
    if left > smallest:
        problem = Problem(units=groups, amount=len(allowed), allowed=allowed, scores=by_group.scores.scores)
        problem = replace(problem, settings=method.settings)
        try:
            chosen = method.select(problem, len(allowed), left).order
        except UserError:  # narrower than anything that is left
            return None
    return (*(units.numbers[unit] for unit in gone.units), *(units.numbers[groups.listing[one].unit] for one in chosen))
