"""Depth and width together: how many layers go and how narrow the others become, by the loss after a repair.

Depths from none to as many layers as meet the amount alone are tried, the layers of each as several criteria name
them; those that stay are made narrower, all alike, until the amount is met. All these candidates are held against each
other by their loss, in one walk. The best of each depth are left; the best two of these are repaired in closed form,
then the neighbours of the best so far, and the one with the lowest loss on held-out calibration text is planned.
"""

import math
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace

from ..artifacts import NOTHING, Candidate, HeldOutLoss, Plan, Removal
from ..artifacts.units import LAYER, LAYER_WIDTH, WIDTH
from ..errors import UserError, argument
from ..planning.amount import allowed_numbers, check_amount, protection, resolve_amount
from ..planning.plans import plan_of
from ..planning.problem import Problem
from ..runtime.progress import parts, say
from ..settings.amount import Amount
from ..walk.run import load_weights
from .choosing import choose_plan, selection_method
from .evidence import Evidence
from .selection_options import SelectionOptions

DEPTHS = {"block_influence": "window", "taylor": "lowest", "perplexity": "lowest"}  # how layers are named
STEPS = 8  # depths between none and all that are tried beside them, at most
FIRST, REPAIRED = 2, 6  # candidates that are repaired: those to begin with, and the most
NEAR = 0.01  # of the parameters that should stay: how far a candidate may be from them
BROKEN = 1000.0  # nats that stand for what is infinite


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
        choosing: of the groups, by ``uniform``; what it protects is protected from either.
    Raises:
        UserError: the amount cannot be met, or is one of quality or of a number of units.
    """
    if amount.remove is not None:
        raise UserError(f"layers and groups are counted in parameters: give {argument('ratio')}", remove=amount.remove)
    search = _Search(evidence, choosing, amount)
    started = time.monotonic()
    with parts({"candidates": 1.0} | {f"repair {number + 1}": 1.0 for number in range(REPAIRED)}) as part:
        load_weights(evidence.model)
        with part("candidates"):
            dense, drafts = search.drafts()
        repaired: dict[int, HeldOutLoss] = {}  # by depth
        while len(repaired) < REPAIRED and (depth := _next_depth(drafts, repaired)) is not None:
            with part(f"repair {len(repaired) + 1}"):
                repaired[depth] = search.repaired(drafts[depth])
    best = drafts[min(repaired, key=lambda depth: repaired[depth].after)]
    scores = search.by_group.scores
    return replace(
        best.plan,
        calibration=search.by_group.used("losses"),
        criterion=scores.criterion,
        settings=scores.settings | vars(search.method.settings),
        keep_first=search.protected[0],
        keep_last=search.protected[1],
        assumed=search.basis,
        candidates=[_candidate(draft, dense, repaired.get(depth)) for depth, draft in sorted(drafts.items())],
        seconds=time.monotonic() - started,
    )


class _Search:
    """Candidates for an amount: which there are, and how good they are.

    Attributes:
        by_group: evidence of the groups.
        wanted: parameters that have to go.
        protected: how many layers at each end neither go nor become narrower.
    """

    def __init__(self, evidence: Evidence, choosing: SelectionOptions, amount: Amount):
        model, record = evidence.model, evidence.record
        settled, self.basis = resolve_amount(amount, record, evidence.dtype)
        self.evidence, self.choosing = evidence, choosing
        self.by_group = replace(evidence, kind=WIDTH)
        self.method = selection_method(choosing, self.by_group)
        self.protected = protection(record.layers, self.method.selection, choosing.keep_first, choosing.keep_last)
        self.units = model.units(LAYER_WIDTH)
        _, self.wanted = check_amount(settled, record, self.units, allowed_numbers(self.units, self.protected))
        self.reason = ""  # why the last candidate that was none cannot be

    def drafts(self) -> tuple[float, dict[int, _Draft]]:
        """(loss of the dense model, the best draft by depth), each draft with its loss."""
        drafts = self._near([*self._every_draft()])
        if not drafts:
            raise UserError(self.reason or "so much cannot go by layers and width together: lower the amount")
        removals = [NOTHING, *(one.plan.removal for one in drafts)]
        dense, *losses = self.by_group.losses(removals, "candidates", bounded=len(removals)).tolist()
        if math.isinf(dense):
            raise UserError(
                "the dense model's loss is NaN or infinite: are the weights whole, and does the dtype suffice?"
            )
        best: dict[int, _Draft] = {}
        told = (replace(one, loss=min(loss, BROKEN)) for one, loss in zip(drafts, losses, strict=True))
        for draft in sorted(told, key=lambda one: one.loss):
            best.setdefault(len(draft.gone.layers), draft)
        return dense, best

    def repaired(self, draft: _Draft) -> HeldOutLoss:
        """Losses of a draft before and after its repair, on samples that it is not fitted on."""
        return self.evidence.repair_of(draft.plan.removal)[1].loss

    def _near(self, drafts: list[_Draft]) -> list[_Draft]:
        """Those that leave about as many parameters as are asked for; where a multiple is too coarse, the nearest."""
        left = self.evidence.record.parameters - self.wanted
        apart = [abs(one.plan.params_after - left) / left for one in drafts]
        limit = max(NEAR, min(apart, default=0))
        return [one for one, far in zip(drafts, apart, strict=True) if far <= limit]

    def _every_draft(self) -> Iterator[_Draft]:
        """Every depth with the layers that each way names, made as narrow as the amount asks; each set once."""
        seen = set()
        for gone in self._sets_of_layers():
            numbers = self._numbers(gone) if gone.layers not in seen else ()
            seen.add(gone.layers)
            if numbers:
                plan = plan_of(self.evidence.record, numbers, self.choosing.selection, units=self.units)
                yield _Draft(gone, plan)

    def _sets_of_layers(self) -> Iterator[Removal]:
        """Sets of layers of all depths, by each of the ways that the model can be walked for."""
        yield NOTHING
        own = {"keep_first": self.choosing.keep_first, "keep_last": self.choosing.keep_last}
        record = self.evidence.record
        for criterion, selection in DEPTHS.items():
            layers = replace(self.evidence, criterion=criterion, settings=None, kind=LAYER, given=None)
            how = SelectionOptions(selection, **own)
            try:
                for depth in _depths(self.wanted, max(record.layer_parameters), record.layers):
                    yield choose_plan(layers, how, Amount(remove=depth)).removal
            except UserError as error:  # so many cannot go, or the model cannot be walked so: the other ways go on
                say(f"no further depth by {criterion}: {error}")

    def _numbers(self, gone: Removal) -> tuple[int, ...]:
        """Numbers of the layers that go and of the groups that go from the others; none where the width cannot make
        up.
        """
        groups, units = self.by_group.units, self.units
        whole = tuple(units.numbers[unit] for unit in gone.units)
        left = self.wanted - units.parameters(whole)
        allowed = tuple(
            number
            for number in allowed_numbers(groups, self.protected)
            if not gone.gone(groups.listing[number].unit.layer)
        )
        if left <= min(one.parameters for one in groups.listing):
            return whole
        problem = Problem(units=groups, amount=len(allowed), allowed=allowed, scores=self.by_group.scores.scores)
        try:
            chosen = self.method.select(replace(problem, settings=self.method.settings), len(allowed), left).order
        except UserError as error:  # narrower than anything that is left
            self.reason = str(error)
            return ()
        return (*whole, *(units.numbers[groups.listing[one].unit] for one in chosen))


def _depths(wanted: float, layer: int, layers: int) -> list[int]:
    """Numbers of layers to try: the most that do not go beyond what is wanted, and some between it and none."""
    most = min(int(wanted // layer), layers - 1)
    steps = min(most, STEPS + 1)
    return sorted({round(most * step / steps) for step in range(1, steps + 1)})


def _next_depth(drafts: dict[int, _Draft], repaired: dict[int, HeldOutLoss]) -> int | None:
    """Depth to repair next: the first few by their loss as it is, then the neighbours of the best, as it is the deeper
    ones that gain most; None when the best has no neighbour left.
    """
    if len(repaired) < FIRST:
        left = drafts.keys() - repaired.keys()
        return min(left, key=lambda depth: drafts[depth].loss, default=None)
    best = min(repaired, key=lambda depth: repaired[depth].after)
    order = sorted(drafts)
    place = order.index(best)
    return next((one for one in (*order[place + 1 : place + 2], *order[:place][-1:]) if one not in repaired), None)


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
