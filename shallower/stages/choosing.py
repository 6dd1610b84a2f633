"""Choice of a plan: a selection with its settings, run on the evidence until the amount is met."""

import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial

from .. import methods
from ..artifacts import ModelRecord, Plan
from ..planning.amount import allowed_numbers, check_amount, protection, resolve_amount
from ..planning.choice import Method, agreement, choices, meet, problem_of
from ..planning.plans import plan_of
from ..settings.amount import Amount
from .evidence import Evidence
from .score import seeded_settings
from .selection_options import SelectionOptions


def choose_plan(evidence: Evidence, choosing: SelectionOptions, amount: Amount) -> Plan:
    """The plan that meets the amount."""
    method = selection_method(choosing, evidence)
    record = evidence.record
    protected = _protected_ends(method, choosing, record)
    if amount.max_ppl_increase is None:  # refused before anything is scored
        allowed = allowed_numbers(evidence.units, protected)
        check_amount(resolve_amount(amount, record, evidence.dtype)[0], record, evidence.units, allowed)
    return next(_plans(evidence, choosing, method, protected, amount))


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
    needs = method.selection.NEEDS
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
            settings=(scores.settings if scores else {}) | (vars(method.settings) if method.settings else {}),
            keep_first=protected[0],
            keep_last=protected[1],
            iterative=choosing.iterative,
            budget=choosing.budget,
            assumed=assumed,
            agreement=agreement(method.selection, make(), choice, scores)
            if scores and not choosing.iterative
            else None,
            seconds=time.monotonic() - started + (scores.seconds if scores else 0.0),
        )
