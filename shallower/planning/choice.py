"""Choice of layers.

Running a selection until the amount is met, be it a number, a size or a quality, and within its time.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from types import ModuleType
from typing import Any, Protocol

from torch import Tensor

from ..artifacts import ModelRecord, Removal, Scores, Units
from ..errors import UserError, argument
from ..runtime import distributed
from ..settings.amount import Amount
from .amount import allowed_numbers, check_amount, resolve_amount
from .problem import Choice, Problem


class Stopwatch:
    """Keeps a search within its time, counted from now on; all processes go by the clock of the first.

    Args:
        budget: seconds, or None for no limit.
    """

    def __init__(self, budget: float | None):
        self.budget = budget
        self.started = time.monotonic()
        self.pace = 0.0

    def timed(self, losses: Callable[..., Tensor]) -> Callable[..., Tensor]:
        """The same losses; the seconds that each variant of the last call took are noted."""

        def call(removals: Sequence[Removal], label: str, **options) -> Tensor:
            started = time.monotonic()
            values = losses(removals, label, **options)
            self.pace = (time.monotonic() - started) / len(removals)
            return values

        return call

    def affords(self, variants: int) -> bool:
        """Whether so many variants would end in time, at the pace of the last call."""
        ends = time.monotonic() - self.started + self.pace * variants
        return self.budget is None or distributed.all_gather(ends)[0] <= self.budget


class ChoiceEvidence(Protocol):
    """What a choice rests on; each part is made when it is first asked for, and once.

    ``scores``, ``losses`` and ``rescore`` are those of ``Problem``. ``growth`` gives, of a choice, the share by which
    the perplexity of evaluation texts grows, at most; ``growth_basis`` says on what.
    """

    @property
    def dtype(self) -> str: ...
    @property
    def units(self) -> Units: ...
    @property
    def scores(self) -> Scores | None: ...
    @property
    def losses(self) -> Callable[..., Tensor] | None: ...
    @property
    def rescore(self) -> Callable[[Removal], dict[int, float]] | None: ...
    @property
    def growth_basis(self) -> str: ...
    def growth(self, choice: Choice) -> float: ...


@dataclass(frozen=True)
class Method:
    """A selection, the one from whose choice it begins where it searches, and its settings.

    Attributes:
        by_losses: whether a selection that reads scores looks at losses instead.
    """

    selection: ModuleType
    start: ModuleType
    settings: Any = None
    by_losses: bool = False

    @property
    def needs(self) -> str:
        """What it rests on: scores or losses."""
        return "losses" if self.by_losses else self.selection.NEEDS

    @property
    def searches(self) -> bool:
        """Whether it starts from another's choice and keeps to a time budget."""
        return searches(self.selection)

    def select(self, problem: Problem, size: int, wanted: float = 0) -> Choice:
        """The choice of so many layers or units, or of as many with which so many parameters go."""
        problem = replace(problem, amount=size, wanted=wanted)
        return self.selection.select(replace(problem, start=self.start.select(problem)) if self.searches else problem)


def problem_of(
    method: Method,
    evidence: ChoiceEvidence,
    protected: tuple[int, int],
    *,
    iterative: bool = False,
    budget: float | None = None,
) -> Problem:
    """The problem that the method solves, with the evidence that it needs; a time budget runs from here on.

    Args:
        protected: how many layers at each end never go.
    """
    needs = method.needs
    scores = evidence.scores if needs == "scores" else None
    losses = evidence.losses if needs == "losses" else None
    watch = Stopwatch(budget)
    return Problem(
        units=evidence.units,
        amount=0,
        allowed=allowed_numbers(evidence.units, protected),
        scores=scores.scores if scores else None,
        windows=scores.windows if scores else None,
        losses=watch.timed(losses) if losses else None,
        rescore=evidence.rescore if iterative else None,
        iterative=iterative,
        settings=method.settings,
        affords=watch.affords,
    )


def meet(
    method: Method, amount: Amount, make: Callable[[], Problem], evidence: ChoiceEvidence, record: ModelRecord
) -> tuple[Choice, str]:
    """The choice that meets the amount, and what a target of memory, speed or quality rests on.

    Args:
        make: the problem, whose time budget begins then.
    Raises:
        UserError: it cannot be met.
    """
    if amount.max_ppl_increase is not None:
        return _within(method, amount.max_ppl_increase, make, evidence)
    amount, basis = resolve_amount(amount, record, evidence.dtype)
    problem = make()
    size, wanted = check_amount(amount, record, problem.units, problem.allowed)
    while True:
        choice = method.select(problem, size, wanted)
        parameters_left = record.parameters - problem.units.parameters(choice.order)
        if wanted or amount.target_params is None or parameters_left <= amount.target_params:
            return choice, basis
        size += 1
        if size > problem.units.most(problem.allowed):
            raise UserError(
                f"{amount.name} cannot be met: without {size - 1} layers "
                f"{parameters_left} parameters are left, and no more may go; raise it, or lower "
                f"{argument('keep_first')} or {argument('keep_last')}"
            )


def choices(method: Method, make: Callable[[], Problem], sizes: Sequence[int]) -> Iterator[Choice]:
    """A choice per size, each within the time budget.

    One run does for all where a smaller removal is the beginning of a larger one.
    """
    if not getattr(method.selection, "NESTED", False):
        yield from (method.select(make(), size) for size in sizes)
        return
    whole = method.select(make(), max(sizes))
    yield from (replace(whole, order=whole.order[:size], trace=whole.trace[:size]) for size in sizes)


def _within(
    method: Method, increase: float, make: Callable[[], Problem], evidence: ChoiceEvidence
) -> tuple[Choice, str]:
    """The choice before the first with which the perplexity of some text grows by more than a share."""
    best = None
    growth = 0.0
    beyond = ""
    problem = make()
    for choice in choices(method, make, range(1, problem.units.most(problem.allowed) + 1)):
        share = evidence.growth(choice)
        size = len(choice.order)
        if share > increase:
            beyond = f"; without {size} it would by {share:+.1%}"
            break
        best, growth = choice, share
    if best is None:
        raise UserError(
            f"one {problem.units.word} less raises the perplexity by {share:.1%} already; allow more",
            max_ppl_increase=f"{increase:.1%}",
        )
    return best, f"perplexity changes by {growth:+.1%} at most ({evidence.growth_basis}){beyond}"


def searches(selection: ModuleType) -> bool:
    """Whether a selection starts from greedy's choice and keeps to a time budget."""
    return getattr(selection, "SEARCHES", False)


def agreement(selection: ModuleType, problem: Problem, choice: Choice, scores: Scores) -> int | None:
    """How many of the chosen layers both halves of the calibration samples choose too, each by itself.

    None without halves.
    """
    if len(scores.halves) != 2:
        return None
    windows = scores.halves_windows or (None, None)
    wanted = problem.units.parameters(choice.order) if problem.units.narrow else 0
    problem = replace(problem, amount=len(choice.order), wanted=wanted)
    orders = [
        selection.select(replace(problem, scores=half, windows=spans)).order
        for half, spans in zip(scores.halves, windows, strict=True)
    ]
    return len(set(choice.order).intersection(*orders))
