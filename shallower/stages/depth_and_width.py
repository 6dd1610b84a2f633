"""Depth and width together: how many layers go and how narrow the others become, by the loss after a repair.

Depths from none to as many layers as meet the amount alone are tried, the layers of each as several criteria name
them; those that stay are made narrower, all alike, until the amount is met. All these candidates are held against each
other by their loss, in one walk. The best of each depth are left, the best few of these are repaired in closed form,
and the one with the lowest loss on held-out calibration text is planned.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace

from ..artifacts import NOTHING, Candidate, HeldOutLoss, Plan, Removal, Units
from ..artifacts.units import LAYER, LAYER_WIDTH, WIDTH
from ..errors import Refusal, UserError, argument
from ..planning.amount import check_amount, resolve_amount
from ..planning.plans import plan_of
from ..planning.problem import Problem
from ..runtime.progress import parts, say
from ..settings.amount import Amount
from ..walk.run import load_weights
from .choosing import choose_plan, selection_method
from .evidence import Evidence
from .repair import fit_repair
from .repair_options import RepairOptions
from .selection_options import SelectionOptions

DEPTHS = {"block_influence": "window", "taylor": "lowest", "perplexity": "lowest"}  # how layers are named
STEPS = 8  # depths between none and all that are tried beside them, at most
REPAIRED = 3  # candidates that are repaired
FITTED = 64  # samples of a repair that only compares; by default one that is kept takes more
BROKEN = 1000.0  # nats that stand for NaN and what is infinite


@dataclass(frozen=True)
class _Draft:
    """A candidate: the layers that go, the plan with them and the groups, and its loss without a repair."""

    gone: Removal
    plan: Plan
    loss: float = 0.0


def plan_depth_and_width(evidence: Evidence, choosing: SelectionOptions, amount: Amount) -> Plan:
    """The plan of the candidate with the lowest held-out loss after its repair.

    Args:
        evidence: of the model; its criterion is that of the groups.
        choosing: of the groups, by ``uniform``.
    Raises:
        UserError: the amount cannot be met, or is one of quality or of a number of units.
    """
    if amount.remove is not None:
        raise UserError(f"layers and groups are counted in parameters: give {argument('ratio')}", remove=amount.remove)
    model, record = evidence.model, evidence.record
    settled, basis = resolve_amount(amount, record, evidence.dtype)
    units = model.units(LAYER_WIDTH)
    _, wanted = check_amount(settled, record, units, range(len(units)))
    by_group = replace(evidence, kind=WIDTH)
    with parts({"candidates": 1.0} | {f"repair {number + 1}": 1.0 for number in range(REPAIRED)}) as part:
        load_weights(model)
        with part("candidates"):
            drafts = _drafts(evidence, by_group, choosing, wanted)
            if not drafts:
                raise UserError(f"{amount.name or 'the amount'} cannot be met by layers and width together: lower it")
            found = by_group.losses([NOTHING, *(one.plan.removal for one in drafts)], "candidates")
            dense, *losses = found.nan_to_num(BROKEN, BROKEN).clamp(max=BROKEN).tolist()
            drafts = _best_of_each_depth(replace(one, loss=loss) for one, loss in zip(drafts, losses, strict=True))
        how = RepairOptions(calibration=replace(evidence.calibration, samples=FITTED, at_most=True))
        candidates: list[tuple[_Draft, Candidate]] = []
        for number, draft in enumerate(sorted(drafts, key=lambda one: one.loss)):
            told = None
            if number < REPAIRED:
                with part(f"repair {number + 1}"):
                    _, report = fit_repair(model, draft.plan.removal, how)
                told = report.loss
            candidates.append((draft, _candidate(draft, dense, told)))
    repaired = [(draft, one) for draft, one in candidates if one.repaired is not None]
    best, _ = min(repaired, key=lambda pair: pair[1].repaired.after)
    return replace(
        best.plan,
        calibration=by_group.scores.calibration,
        criterion=by_group.scores.criterion,
        settings=by_group.scores.settings | choosing.settings,
        assumed=basis,
        candidates=sorted((one for _, one in candidates), key=lambda one: len(one.layers)),
    )


def _drafts(evidence: Evidence, by_group: Evidence, choosing: SelectionOptions, wanted: float) -> list[_Draft]:
    """Every depth with the layers that each way names, made as narrow as the amount asks; each set of layers once."""
    record, units = evidence.record, evidence.model.units(LAYER_WIDTH)
    found: dict[tuple[int, ...], _Draft] = {}
    depths = _depths(wanted, max(record.layer_parameters), record.layers)
    for gone in _sets_of_layers(evidence, depths):
        numbers = _numbers(units, by_group, choosing, gone, wanted) if gone.layers not in found else None
        if numbers is not None:
            found[gone.layers] = _Draft(gone, plan_of(record, numbers, choosing.selection, units=units))
    return [*found.values()]


def _sets_of_layers(evidence: Evidence, depths: list[int]) -> Iterator[Removal]:
    """Sets of layers of these sizes, by each of the ways that the model can be walked for."""
    yield from [NOTHING] if 0 in depths else []
    for criterion, selection in DEPTHS.items():
        layers = replace(evidence, criterion=criterion, settings=None, kind=LAYER, given=None)
        try:
            for depth in filter(None, depths):
                yield choose_plan(layers, SelectionOptions(selection), Amount(remove=depth)).removal
        except Refusal as refusal:  # of one way: the others go on
            say(f"no depth by {criterion}: {refusal}")


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


def _best_of_each_depth(drafts: Iterator[_Draft]) -> list[_Draft]:
    """One draft for every number of layers, that with the lowest loss."""
    best: dict[int, _Draft] = {}
    for draft in sorted(drafts, key=lambda one: one.loss):
        best.setdefault(len(draft.gone.layers), draft)
    return [*best.values()]


def _candidate(draft: _Draft, dense: float, repaired: HeldOutLoss | None) -> Candidate:
    """What is told of a draft."""
    return Candidate(
        layers=list(draft.gone.layers),
        narrowed=str(Removal(tuple(unit for unit in draft.plan.removal.units if unit.part))),
        share=draft.plan.share,
        loss_dense=dense,
        loss=draft.loss,
        repaired=repaired,
        expected_speedup=draft.plan.expected_speedup,
    )
