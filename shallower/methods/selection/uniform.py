"""Uniform: the same share of the groups goes from every layer, those with the lowest scores of its attention and MLP.

All layers become as narrow, so that what is written is a plain checkpoint. The share of heads is rounded to whole ones;
neurons make up for it, so that as many parameters go as are asked for. With ``--multiple-of`` as many neurons stay as
divide by it. By the criterion ``activation`` MLPs alone are narrowed unless ``parts`` says otherwise.

Source: the schedule of Wanda-sp (arXiv 2306.11695), of LLM-Pruner (arXiv 2305.11627; ``--keep-first 4 --keep-last 2``,
so that the layers differ) and of 2SSP's first stage (arXiv 2501.17771; ``parts = mlp``). How heads are rounded is ours.
"""

from dataclasses import dataclass
from typing import Literal

from ...artifacts.removal import ATTENTION, MLP
from ...planning.narrowing import lowest_groups, shares
from ...planning.problem import Choice, Problem

NEEDS = "scores"
GROUPS = "only"  # of parts
PROTECT = (0, 0)


@dataclass(frozen=True)
class Settings:
    parts: Literal["both", "mlp", "attention"] = "both"
    multiple_of: int = 1


def select(problem: Problem) -> Choice:
    own = problem.settings
    kinds = (ATTENTION, MLP) if own.parts == "both" else (own.parts,)
    counts = shares(problem, kinds, own.multiple_of)
    return lowest_groups(problem, counts)
