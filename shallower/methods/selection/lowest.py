"""Lowest: remove the layers with the lowest scores.

One-shot scores the dense model once. With ``--iterative`` the lowest layer goes, the rest is scored anew, and so on;
one-shot is the same schedule with a single step. With ``--refit NAME`` the rest is repaired by that compensation before
it is scored anew: fitted to the dense model after every removal but the last, on 64 samples or more, so that
each of them costs a repair more. Ties go to the earlier layer. With ``--units width`` the groups of all
layers are held against each other, as they are scored.

Source: Shortened LLaMA (arXiv 2402.02834), one-shot; iterative re-scoring is the option for comparison; the refit
after each removal, by ``magnitude``, is Prune&Comp's (arXiv 2507.18212). That it is fitted to the dense model each time
and taken only if the loss on held-out tokens falls is our reconstruction.
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
