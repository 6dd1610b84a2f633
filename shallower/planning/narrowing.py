"""Narrowing: which groups of attentions and MLPs go, as many from every layer or by one order of all."""

from collections.abc import Sequence

import numpy as np

from ..artifacts.removal import ATTENTION, MLP, Unit
from ..errors import UserError, argument
from .problem import Choice, Problem

CENTRED = 1e-6  # of the spread: a mean below it is none


def shares(problem: Problem, kinds: Sequence[str], multiple_of: int = 1) -> dict[Unit, int]:
    """Part -> how many of its groups go, the same share of every part of a kind.

    Heads are rounded to whole ones, and neurons make up for it.

    Raises:
        UserError: so much cannot go from these, or the multiple leaves no width.
    """
    if multiple_of < 1:
        raise UserError("a number of neurons, 1 or more", multiple_of=multiple_of)
    parts = {part: numbers for part, numbers in _parts(problem).items() if part.part in kinds}
    if not problem.wanted:
        raise UserError(
            f"the same share of every layer is a share of the parameters: give {argument('ratio')} or "
            f"{argument('target_params')}"
        )
    every = sum(len(numbers) * _size(problem, numbers) for numbers in parts.values())
    if problem.wanted >= every:
        raise UserError(
            f"{problem.wanted:,.0f} parameters should go, and all groups of the {' and '.join(kinds)}s that may go "
            f"have {every:,.0f}: lower the amount, {_all_parts(kinds)}or remove layers too"
        )
    share = problem.wanted / every
    counts = dict.fromkeys(parts, 0)
    for part, numbers in parts.items():
        if part.part == ATTENTION:
            counts[part] = min(len(numbers) - 1, round(share * len(numbers)))
    heads = sum(count * _size(problem, parts[part]) for part, count in counts.items())
    neurons = sum(len(numbers) * _size(problem, numbers) for part, numbers in parts.items() if part.part == MLP)
    share = max(0.0, problem.wanted - heads) / neurons if neurons else 0.0
    for part, numbers in parts.items():
        if part.part == MLP:
            counts[part] = len(numbers) - _left(len(numbers), share, multiple_of)
    return counts


def _all_parts(kinds: Sequence[str]) -> str:
    """What else to do where one kind of part is narrowed alone."""
    return f"give {argument('settings', {'parts': 'both'})}, " if len(kinds) == 1 else ""


def _left(count: int, share: float, multiple_of: int) -> int:
    """How many of so many neurons stay without a share of them."""
    left = round((1 - share) * count)
    if multiple_of > 1:
        if multiple_of >= count:
            raise UserError(f"an MLP of {count} neurons holds no smaller multiple of it", multiple_of=multiple_of)
        left = min(count // multiple_of, max(1, round((1 - share) * count / multiple_of))) * multiple_of
    if left < 1:
        raise UserError(f"no neuron of {count} would be left in an MLP: lower the amount, or remove layers too")
    return left


def lowest_groups(problem: Problem, counts: dict[Unit, int]) -> Choice:
    """So many of each part's groups, those with the lowest scores; ties go to the earlier one."""
    order: list[int] = []
    for part, numbers in _parts(problem).items():
        ranked = sorted(numbers, key=lambda number: (problem.scores[number], number))
        order += ranked[: counts.get(part, 0)]
    return Choice(tuple(order))


def pooled(problem: Problem, *, standardise: bool = True) -> Choice:
    """The lowest of all groups, held against each other by scores that are standardised within each part."""
    parts = _parts(problem)
    scores = {}
    for numbers in parts.values():
        values = np.array([problem.scores[number] for number in numbers])
        spread = values.std(ddof=1) if len(values) > 1 else 0.0
        if standardise and abs(values.mean()) > CENTRED * max(spread, 1e-300):
            values = (values - values.mean()) / (spread or 1.0)
        scores |= dict(zip(numbers, values.tolist(), strict=True))
    best = {max(numbers, key=lambda number: (scores[number], number)) for numbers in parts.values()}
    ranked = sorted(scores, key=lambda number: (-scores[number], number))
    sizes = np.array([problem.units.listing[number].parameters for number in ranked], dtype=float)
    wanted = problem.wanted or sizes[-problem.amount :].sum()
    if wanted >= sizes.sum():
        raise UserError(
            f"{wanted:,.0f} parameters should go, and all groups that may go have {sizes.sum():,.0f}: lower the "
            "amount, or remove layers too"
        )
    threshold = int(np.argmin(np.abs(np.cumsum(sizes) - (sizes.sum() - wanted))))
    return Choice(tuple(number for number in reversed(ranked[threshold:]) if number not in best))


def _parts(problem: Problem) -> dict[Unit, list[int]]:
    """Part -> numbers of its groups, of layers that are not protected."""
    allowed = {*problem.allowed}
    parts = ((part, [one for one in numbers if one in allowed]) for part, numbers in problem.units.by_part.items())
    return {part: numbers for part, numbers in parts if numbers}


def _size(problem: Problem, numbers: Sequence[int]) -> int:
    """Parameters of each of a part's groups."""
    return problem.units.listing[numbers[0]].parameters
