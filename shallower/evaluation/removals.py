"""Perplexity of many virtual removals of one model: all are walked together and share what they have in common."""

from collections.abc import Sequence

from ..anatomy.model import Model
from ..artifacts import Perplexity
from ..artifacts.removal import Removal
from ..errors import UserError, argument
from ..walk.removals import LossWalk
from ..walk.run import journal_of
from .perplexity import Segments, figures_of


def removals_perplexity(
    model: Model, segments_by_name: dict[str, Segments], removals: Sequence[Removal], label: str
) -> list[dict[str, Perplexity]]:
    """Perplexity by text, for every removal.

    Raises:
        UserError: segments that overlap, or a model that yields NaN.
    """
    rows: list[dict[str, Perplexity]] = [{} for _ in removals]
    for name, segments in segments_by_name.items():
        if not segments.counted.all():
            raise UserError(
                f"{argument('stride')} has no meaning here: many removals are measured on segments that do not overlap"
            )
        walk = LossWalk(model, segments.tokens, journal_of(model, None, text=segments.description["hash"]))
        with model.check_length(segments.tokens.shape[1]):
            totals = walk(removals, f"{label}, {name}")
        for row, total in zip(rows, totals.tolist(), strict=True):
            row[name] = figures_of(segments, total)
    return rows
