"""Beam: greedy that keeps several sets of removed layers at every step instead of one, and the best of them at the end.

    B_t = the ``width`` sets of t layers with the lowest objective among { S + n : S in B_{t-1}, n allowed, n not in S }

The objective is the loss over the calibration tokens, or the mean KL divergence from the dense model's predictions
there. Sets that are equal count once; all of a step are walked together and share what they have in common, and a set
that is seen not to be among the best is dropped. Greedy's set competes in the last step on the same objective, so the
result is never worse than greedy's; if a time budget ends before that, it is greedy's: then it depends on the time.
The trace is the objective along the path, or only its last value where no path of the beam led to greedy's set.

Source: ours; greedy is SLEB (arXiv 2402.09025), beam search a common technique.
"""

import math
from dataclasses import dataclass
from typing import Literal

from ...errors import UserError
from ...planning.problem import Choice, Problem
from ...runtime.progress import say

NEEDS = "losses"
SEARCHES = True

OrderBySet = dict[frozenset[int], tuple[int, ...]]


@dataclass(frozen=True)
class Settings:
    width: int = 4
    objective: Literal["loss", "kl"] = "loss"

    def __post_init__(self) -> None:
        if self.width < 1:
            raise UserError(f"beam: width={self.width}: at least 1 set of layers")


def select(problem: Problem) -> Choice:
    width = problem.settings.width
    greedy = problem.start.order
    beam: list[tuple[int, ...]] = [()]
    losses: dict[frozenset[int], float] = {}
    for step in range(1, len(greedy) + 1):
        label = f"beam, {problem.units.word} {step} of {len(greedy)}"
        last = step == len(greedy)
        paths = _longer(beam, problem.allowed, {frozenset(greedy): greedy} if last else {})
        if last:
            paths = {numbers: order for numbers, order in paths.items() if problem.meets(numbers)}
        if not problem.affords(len(paths)):
            say(f"the time ends before {label}: greedy's choice stays")
            return problem.start
        values = problem.values(paths, label, bounded=1 if last else width)
        beam = [paths[layers] for layers in sorted(values, key=values.__getitem__)[:width]]
        losses |= values
    return Choice(beam[0], _trace(beam[0], losses))


def _longer(beam: list[tuple[int, ...]], allowed: tuple[int, ...], first_paths: OrderBySet) -> OrderBySet:
    """Every set that is one layer larger than one of the beam, with the first path that leads there."""
    paths = dict(first_paths)
    for order in beam:
        for index in allowed:
            if index not in order:
                paths.setdefault(frozenset((*order, index)), (*order, index))
    return paths


def _trace(order: tuple[int, ...], losses: dict[frozenset[int], float]) -> tuple[float, ...]:
    values = tuple(losses.get(frozenset(order[:count]), math.inf) for count in range(1, len(order) + 1))
    return values if math.isfinite(sum(values)) else values[-1:]
