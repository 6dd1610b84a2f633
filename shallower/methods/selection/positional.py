"""Positional: which layers go depends on their place alone; the first and the last always stay.

For N layers and m removed, with one kept at each end: ``max-gap`` keeps round(linspace(0, N-1, N-m)); ``input`` removes
1 … m; ``output`` removes N-1-m … N-2; ``middle`` the m in the middle; ``both`` half after the first layer (the larger
half where m is odd) and half before the last.

Source: LayerCHOP (arXiv 2305.14864). The index sets are our reconstruction: the paper shows them in a figure.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np

from ...planning.problem import Choice, Problem

NEEDS = "nothing"
WHOLE_LAYERS = True
PROTECT = (1, 1)


@dataclass(frozen=True)
class Settings:
    strategy: Literal["max-gap", "input", "output", "middle", "both"] = "max-gap"


def select(problem: Problem) -> Choice:
    allowed = problem.allowed
    size = problem.amount
    first = allowed[0]
    count = len(allowed)
    middle = min(max((problem.layers - size) // 2 - first, 0), count - size)
    near = (size + 1) // 2
    strategies = {
        "max-gap": lambda: _spread(problem),
        "input": lambda: allowed[:size],
        "output": lambda: allowed[count - size :],
        "middle": lambda: allowed[middle : middle + size],
        "both": lambda: allowed[:near] + allowed[count - (size - near) :],
    }
    return Choice(tuple(strategies[problem.settings.strategy]()))


def _spread(problem: Problem) -> tuple[int, ...]:
    """Everything between the kept layers, which are spread evenly from one protected end to the other."""
    low, high = max(problem.allowed[0] - 1, 0), min(problem.allowed[-1] + 1, problem.layers - 1)
    inside = high - low + 1 - problem.amount
    if inside == 1:  # one end is not protected: keep the other
        return tuple(range(low, high)) if problem.allowed[-1] < high else tuple(range(low + 1, high + 1))
    kept = set(np.round(np.linspace(low, high, inside)).astype(int).tolist())
    return tuple(index for index in range(low, high + 1) if index not in kept)
