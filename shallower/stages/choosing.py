"""Choice of a plan: a selection with its settings, run on the evidence until the amount is met."""

import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial

from .. import methods
from ..artifacts import Candidate, HeldOutLoss, ModelRecord, Plan, Removal
from ..artifacts.units import LAYER
from ..errors import UserError
from ..planning.amount import allowed_numbers, check_amount, protection, resolve_amount
from ..planning.choice import Method, agreement, choices, meet, problem_of
from ..planning.plans import plan_of
from ..runtime.progress import say
from ..settings.amount import Amount
from .evidence import Evidence
from .score import seeded_settings
from .selection_options import REPAIRED, SelectionOptions


def choose_plan(evidence: Evidence, choosing: SelectionOptions, amount: Amount) -> Plan:
    """The plan that meets the amount."""
    method = selection_method(choosing, evidence)
    if evidence.refit:
        _ = evidence.rescore  # refused before anything is scored
    record = evidence.record
    protected = _protected_ends(method, choosing, record)
    if amount.max_ppl_increase is None:  # refused before anything is scored
        allowed = allowed_numbers(evidence.units, protected)
        check_amount(resolve_amount(amount, record, evidence.dtype)[0], record, evidence.units, allowed)
    chosen = next(_plans(evidence, choosing, method, protected, amount))
    if not evidence.repaired or amount.max_ppl_increase is not None:
        return chosen
    return _best_repaired(evidence, choosing, amount, chosen)


def _best_repaired(evidence: Evidence, choosing: SelectionOptions, amount: Amount, chosen: Plan) -> Plan:
    """Of a plan chosen for the repaired model and those that are known without that, the best as ``sequential`` leaves
    it, on samples that this is not fitted on; the table of them goes with it.
    """
    plain = replace(evidence, repaired=False, criterion=None, settings=None)
    ways = [SelectionOptions("window")] if evidence.kind == LAYER else []
    if choosing.selection != "window" and choosing.budget is None:
        ways.append(SelectionOptions("greedy"))
    plans = [chosen]
    for way in ways:
        own = replace(way, keep_first=choosing.keep_first, keep_last=choosing.keep_last)
        try:
            plans.append(choose_plan(plain, own, amount))
        except UserError as error:  # it cannot meet the amount
            say(f"not compared with {way.selection}: {error}")
    distinct = list({plan.removal: plan for plan in reversed(plans)}.values())
    started = time.monotonic()
    losses = [evidence.repair_of(plan.removal)[1].loss for plan in distinct]
    best = min(range(len(distinct)), key=lambda place: losses[place].after)
    rows = [_candidate(plan, loss) for plan, loss in zip(distinct, losses, strict=True)]
    seconds = chosen.seconds + time.monotonic() - started
    settings = chosen.settings if distinct[best] is chosen else distinct[best].settings | {"objective": REPAIRED}
    return replace(distinct[best], settings=settings, candidates=rows, seconds=seconds)


def _candidate(plan: Plan, loss: HeldOutLoss) -> Candidate:
    """What is told of a plan that was repaired to be compared."""
    return Candidate(
        layers=list(plan.removal.layers),
        narrowed=str(Removal(tuple(unit for unit in plan.removal.units if unit.part))),
        share=plan.share,
        loss_dense=loss.dense,
        loss=loss.before,
        repaired=loss,
        expected_speedup=plan.expected_speedup,
    )


def nested_plans(evidence: Evidence, choosing: SelectionOptions, sizes: Sequence[int]) -> Iterator[Plan]:
    """A plan per size, the model scored once."""
    method = selection_method(choosing, evidence)
    protected = _protected_ends(method, choosing, evidence.record)
    for size in (min(sizes), max(sizes)):
        allowed = allowed_numbers(evidence.units, protected)
        check_amount(Amount(remove=size), evidence.record, evidence.units, allowed)
    return _plans(evidence, choosing, method, protected, sizes)


def selection_method(choosing: SelectionOptions, evidence: Evidence) -> Method:
    """The selection with its settings."""
    selection = methods.find("selection", choosing.selection)
    return Method(
        selection,
        methods.find("selection", "greedy"),
        seeded_settings(selection, choosing.settings, evidence.calibration),
        by_losses=evidence.repaired,
    )


def _protected_ends(method: Method, choosing: SelectionOptions, record: ModelRecord) -> tuple[int, int]:
    return protection(record.layers, method.selection, choosing.keep_first, choosing.keep_last)


def _plans(
    evidence: Evidence,
    choosing: SelectionOptions,
    method: Method,
    protected: tuple[int, int],
    wanted: Amount | Sequence[int],
) -> Iterator[Plan]:
    """One plan for an amount, or one per size."""
    needs = method.needs
    make = partial(problem_of, method, evidence, protected, iterative=choosing.iterative, budget=choosing.budget)
    scores = evidence.scores if needs == "scores" else None
    started = time.monotonic()
    if isinstance(wanted, Amount):
        results = iter([meet(method, wanted, make, evidence, evidence.record)])
    else:
        results = ((choice, "") for choice in choices(method, make, wanted))
    for choice, assumed in results:
        yield replace(
            plan_of(
                evidence.record,
                choice.order,
                choosing.selection,
                units=evidence.units,
                calibration=evidence.used(needs),
                trace=list(choice.trace),
            ),
            criterion=scores.criterion if scores else None,
            scores=scores.scores if scores and not evidence.units.narrow else None,
            scored=[*scores.units] if scores and not evidence.units.narrow else [],
            settings=(scores.settings if scores else {})
            | (vars(method.settings) if method.settings else {})
            | ({"objective": REPAIRED} if evidence.repaired else {}),
            keep_first=protected[0],
            keep_last=protected[1],
            iterative=choosing.iterative,
            refit=evidence.refit,
            budget=choosing.budget,
            assumed=assumed,
            agreement=agreement(method.selection, make(), choice, scores)
            if scores and not choosing.iterative
            else None,
            seconds=time.monotonic() - started + (scores.seconds if scores else 0.0),
        )
