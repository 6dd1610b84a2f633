"""Lowest: remove the layers with the lowest scores.

One-shot scores the dense model once. With ``--iterative`` the lowest layer goes, the rest is scored anew, and so on;
one-shot is the same schedule with a single step. Ties go to the earlier layer. With ``--units width`` the groups of all
layers are held against each other, as they are scored.

Source: Shortened LLaMA (arXiv 2402.02834), one-shot; iterative re-scoring is the option for comparison.
"""

from ...planning.narrowing import pooled
from ...planning.problem import Choice, Problem

NEEDS = "scores"
NESTED = True
ITERATIVE = True
GROUPS = "too"  # of parts


def select(problem: Problem) -> Choice:
    if problem.units.narrow:
        return pooled(problem, standardise=False)
    scores = dict(enumerate(problem.scores))
    order: list[int] = []
    trace: list[float] = []
    while problem.goes_on(order):
        if problem.iterative and order:
            scores = problem.scores_without(order)
        lowest = min(
            (index for index in problem.allowed if index not in order), key=lambda index: (scores[index], index)
        )
        order.append(lowest)
        trace.append(scores[lowest])
    return Choice(tuple(order), tuple(trace))
