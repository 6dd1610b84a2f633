"""Standardised: the groups of all layers are held against each other, and those with the lowest scores go.

    S' = (S - mean S) / std S       over the groups of each attention and each MLP

unless the scores have that mean already (FLAP's, standardised by channel). Ordered from the highest on, groups stay
until the parameters are spent that may stay; the first one beyond goes with all that are lower. A part keeps its best
group in any case.

Source: FLAP (arXiv 2312.11983), adaptive structure search; cost in parameters and the group at the threshold follow the
authors' code.
"""

from ...planning.narrowing import pooled
from ...planning.problem import Choice, Problem

NEEDS = "scores"
GROUPS = "only"  # of parts
PROTECT = (0, 0)


def select(problem: Problem) -> Choice:
    return pooled(problem)
