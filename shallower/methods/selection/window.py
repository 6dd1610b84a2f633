"""Window: remove the contiguous run of layers that costs least.

A criterion that scores whole runs (angular) is read directly; for others a run costs the sum of its layers' scores.
With ``objective = repaired`` it costs the loss without it, what stands in front of it repaired in closed form.

Source: The Unreasonable Ineffectiveness of the Deeper Layers (arXiv 2403.17887) for angular; the sum over a run for
other criteria is ours.
"""

from ...errors import UserError, argument
from ...planning.problem import Choice, Problem

NEEDS = "scores"
LOSSES = True  # or losses, where these are asked for
WHOLE_LAYERS = True


def select(problem: Problem) -> Choice:
    size = problem.amount
    allowed = set(problem.allowed)
    starts = [s for s in range(problem.layers - size + 1) if allowed.issuperset(range(s, s + size))]
    if not starts:
        raise UserError(
            f"no run of {size} neighbouring layers is free of protected ones; lower {argument('remove')}, "
            f"{argument('keep_first')} or {argument('keep_last')}"
        )
    if problem.losses is not None:
        runs = {frozenset(range(start, start + size)): start for start in starts}
        values = problem.values(runs, f"runs of {size} layers", bounded=1)
        costs = {runs[run]: value for run, value in values.items()}
    else:
        costs = {start: _cost(problem, start, size) for start in starts}
    best = min(costs, key=lambda start: (costs[start], start))
    return Choice(tuple(range(best, best + size)), (costs[best],))


def _cost(problem: Problem, start: int, size: int) -> float:
    return problem.windows[size - 1][start] if problem.windows else sum(problem.scores[start : start + size])
