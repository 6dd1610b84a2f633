"""Greedy: at each step remove the layer whose removal raises the loss least, given those already removed.

    n_t = argmin_n L( model without n_1 … n_{t-1} and n )    over the calibration tokens

All candidates of a step are walked together and share what they have in common.

Source: SLEB (arXiv 2402.09025).
"""

from ...planning.problem import Choice, Problem

NEEDS = "losses"
NESTED = True


def select(problem: Problem) -> Choice:
    order: list[int] = []
    trace: list[float] = []
    while problem.goes_on(order):
        candidates = [index for index in problem.allowed if index not in order]
        sets = [frozenset((*order, index)) for index in candidates]
        losses = [*problem.values(sets, f"greedy {problem.progress(order)}", bounded=1).values()]
        best = losses.index(min(losses))
        order.append(candidates[best])
        trace.append(losses[best])
    return Choice(tuple(order), tuple(trace))
