"""Tables of scores of groups, of which there are too many to name: a row for each attention and MLP."""

import itertools
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from ..artifacts import Scores, Units
from .grid import grid

SHARE = 0.2  # of the groups of each part, which are looked at as those that go first


def group_scores_table(console: Console, scores: Scores) -> None:
    """Least, median and greatest score of each part, and how far the halves of the samples agree on the lowest."""
    parts = _parts(scores)
    rows = []
    for name, numbers in parts.items():
        values = sorted(scores.scores[number] for number in numbers)
        told = (values[0], values[len(values) // 2], values[-1])
        rows.append((name, f"{len(values):,}", *(f"{value:.4g}" for value in told)))
    heading = f"{scores.criterion} on {Path(scores.model.source).name}"
    grid(console, ("part", "groups", "least", "median", "greatest"), rows, heading=heading)
    if len(scores.halves) == 2:
        agreed, every = _agreement(parts, *scores.halves)
        console.print(
            f"of the lowest {SHARE:.0%} of each part the two halves of the samples agree on {agreed / every:.0%}",
            soft_wrap=True,
        )


def several_group_scores(console: Console, scores: Sequence[Scores], names: Sequence[str]) -> None:
    """How far criteria agree on the lowest groups of each part."""
    parts = _parts(scores[0])
    for (one, mine), (other, theirs) in itertools.combinations(zip(names, scores, strict=True), 2):
        agreed, every = _agreement(parts, mine.scores, theirs.scores)
        console.print(
            f"of the lowest {SHARE:.0%} of each part {one} and {other} agree on {agreed / every:.0%}", soft_wrap=True
        )


def _parts(scores: Scores) -> dict[str, list[int]]:
    units = Units.named(scores.units, scores.model.layer_parameters)
    return {str(part): numbers for part, numbers in units.by_part.items()}


def _agreement(parts: dict[str, list[int]], one: Sequence[float], other: Sequence[float]) -> tuple[int, int]:
    """(groups that are among the lowest of their part by both, by one)."""
    agreed = every = 0
    for numbers in parts.values():
        size = max(1, round(SHARE * len(numbers)))
        lowest = [{*sorted(numbers, key=values.__getitem__)[:size]} for values in (one, other)]
        agreed += len(lowest[0] & lowest[1])
        every += size
    return agreed, every
