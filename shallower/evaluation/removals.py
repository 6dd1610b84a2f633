"""Perplexity of many virtual removals of one model: all are walked together and share what they have in common."""

from collections.abc import Sequence

import torch

from ..anatomy.model import Model
from ..artifacts import Perplexity
from ..errors import UserError
from ..walk.removals import LossWalk
from ..walk.run import journal_of
from .perplexity import Segments, figures_of


def removals_perplexity(
    model: Model, named: dict[str, Segments], removals: Sequence[Sequence[int]], label: str
) -> list[dict[str, Perplexity]]:
    """Perplexity by text, for every set of removed layers.

    Raises:
        UserError: segments that overlap, or a model that yields NaN.
    """
    rows: list[dict[str, Perplexity]] = [{} for _ in removals]
    masks = torch.zeros(len(removals), model.record.layers, dtype=torch.bool)
    for mask, removed in zip(masks, removals, strict=True):
        mask[list(removed)] = True
    for name, segments in named.items():
        if not segments.counted.all():
            raise UserError("--stride has no meaning here: many removals are measured on segments that do not overlap")
        walk = LossWalk(model, segments.tokens, journal_of(model, None, text=segments.description["hash"]))
        with model.check_length(segments.tokens.shape[1]):
            totals = walk(masks, f"{label}, {name}")
        for row, total in zip(rows, totals.tolist(), strict=True):
            row[name] = figures_of(segments, total)
    return rows
