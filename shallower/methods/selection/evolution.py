"""Evolution: sets of removed layers change a little or are recombined, and the best of all that were seen stay as
parents.

    mutation       S - R + Q, R of one or two layers in S, Q of as many allowed ones that are not in S
    recombination  what both S and T remove, filled up by drawing from what one of them removes
    P_g            the ``population`` sets with the lowest objective of all up to generation g

The objective is the loss over the calibration tokens, or the mean KL divergence from the dense model's predictions
there. The first generation is greedy's set and mutations of it, so the result is never worse than greedy's on that
objective. The new sets of a generation are walked together, none twice. The seed decides everything, unless a time
budget ends the search with the best so far. The order is greedy's as far as the sets agree; the trace is the best
value after each generation.

Source: ours; a mutation that keeps the amount is EvoPress's (arXiv 2410.14649), which knows no recombination.
"""

import random
from dataclasses import dataclass
from typing import Literal

from ...errors import UserError
from ...planning.problem import Choice, Problem
from ...runtime.progress import say

NEEDS = "losses"
SEARCHES = True
DRAWS = 20  # draws per wanted child before a generation stays smaller: few sets are left that are new


@dataclass(frozen=True)
class Settings:
    population: int = 16
    generations: int = 20
    objective: Literal["loss", "kl"] = "loss"
    seed: int = 1234

    def __post_init__(self) -> None:
        for name in ("population", "generations"):
            if getattr(self, name) < 1:
                raise UserError(f"evolution: {name}={getattr(self, name)}: at least 1")


def select(problem: Problem) -> Choice:
    settings = problem.settings
    order = problem.start.order
    chance = random.Random(settings.seed)
    greedy = frozenset(order)
    values: dict[frozenset[int], float] = {}
    best = [greedy]
    trace = []
    for generation in range(1, settings.generations + 1):
        label = f"evolution, generation {generation} of {settings.generations}"
        first = [] if values else [greedy]
        new = first + _children(problem, best, {greedy, *values}, settings.population - len(first), chance)
        if not new:
            break
        if not problem.affords(len(new)):
            stays = "greedy's choice" if best[0] == greedy else "the best choice so far"
            say(f"the time ends before {label}: {stays} stays")
            break
        values |= problem.values(new, label)
        best = sorted(values, key=values.__getitem__)[: settings.population]
        trace.append(values[best[0]])
    common = [index for index in order if index in best[0]]
    return Choice((*common, *sorted(best[0].difference(common))), tuple(trace) or problem.start.trace)


def _children(
    problem: Problem, parents: list[frozenset[int]], known: set, count: int, chance: random.Random
) -> list[frozenset[int]]:
    """So many sets that are not known yet.

    Fewer where few are left. Better parents (they stand first) are drawn more often.
    """
    children: dict[frozenset[int], None] = {}
    for _ in range(DRAWS * count):
        one, other = (parents[min(chance.randrange(len(parents)), chance.randrange(len(parents)))] for _ in range(2))
        child = _child(problem.allowed, one, other, chance)
        if child not in known and len(children) < count and problem.meets(child):
            children[child] = None
    return list(children)


def _child(
    allowed: tuple[int, ...], one: frozenset[int], other: frozenset[int], chance: random.Random
) -> frozenset[int]:
    common, either = one & other, sorted(one ^ other)
    if either and chance.random() < 0.5:  # recombination
        return common.union(chance.sample(either, len(one) - len(common)))
    free = [index for index in allowed if index not in one]
    count = min(chance.randint(1, 2), len(one), len(free))
    return one.difference(chance.sample(sorted(one), count)).union(chance.sample(free, count))
