"""Give a criterion the evidence it asks for, and read its scores."""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import ModuleType

import torch
from jaxtyping import Int
from torch import Tensor

from ..anatomy.model import Model
from ..errors import UserError
from ..journal import NO_JOURNAL, Journal
from ..progress import track
from .backward import flow_sums, gradient_sums
from .evidence import Losses, Place, Weights
from .forward import stream_sums
from .losses import LossWalk
from .sums import Sums

DATA = ("streams", "gradients", "flows", "losses")  # kinds of evidence that need calibration tokens


@dataclass(frozen=True)
class Gathered:
    """Scores by layer (the layers that were left out are absent) and, where the criterion has them, of all windows."""

    scores: dict[int, float]
    windows: list[list[float]] | None = None


def gather(
    criterion: ModuleType,
    model: Model,
    tokens: Int[Tensor, "sample position"] | None,
    *,
    settings=None,
    removed: tuple[int, ...] = (),
    journal: Journal = NO_JOURNAL,
) -> Gathered:
    """Scores of the layers that stay, from one walk of the kind that the criterion names in ``EVIDENCE``.

    Raises:
        UserError: a score is not finite; names the layer.
    """

    def own(function: Callable) -> Callable:
        return function if settings is None else lambda given: function(given, settings)

    measure, score = own(criterion.measure), own(criterion.score)
    windows = None
    kind = criterion.evidence(settings) if hasattr(criterion, "evidence") else criterion.EVIDENCE
    if kind == "streams":
        spans = getattr(criterion, "SPANS", False) and not removed
        last = getattr(criterion, "POSITIONS", "all") == "last"
        totals = stream_sums(model, tokens, measure, removed=removed, spans=spans, last=last, journal=journal)
        scores = {start: score(sums) for (start, end), sums in totals.items() if end == start + 1}
        windows = _windows(totals, score, len(model.stack)) if spans else None
    elif kind == "gradients":
        totals = gradient_sums(model, tokens, measure, own(criterion.condense), removed=removed, journal=journal)
        scores = {index: score(sums) for index, sums in totals.items()}
    elif kind == "flows":
        totals = flow_sums(model, tokens, measure, removed=removed, journal=journal)
        scores = {index: score(sums) for index, sums in totals.items()}
    elif kind == "losses":
        scores = {item.index: score(Sums.of(measure(item))) for item in _losses(LossWalk(model, tokens, journal), removed)}
    else:
        kinds = {"weights": _weights, "place": _places}
        scores = {index: score(Sums.of(measure(item))) for index, item in kinds[kind](model, removed)}
    for index, value in scores.items():
        if not math.isfinite(value):
            raise UserError(f"the score of layer {index} is {value}: are the weights whole, and does the dtype suffice?")
    return Gathered(dict(sorted(scores.items())), windows)


def _windows(totals: dict, score, layers: int) -> list[list[float]]:
    return [[score(totals[start, start + size]) for start in range(layers - size + 1)] for size in range(1, layers)]


def _stays(layers: int, removed: tuple[int, ...]) -> list[int]:
    return [index for index in range(layers) if index not in removed]


def _losses(walk: LossWalk, removed: tuple[int, ...]) -> Iterator[Losses]:
    stays = _stays(len(walk.model.stack), removed)
    masks = torch.zeros(len(stays), len(walk.model.stack), dtype=torch.bool)
    masks[:, list(removed)] = True
    masks[range(len(stays)), stays] = True
    for index, nll in zip(stays, walk(masks).tolist(), strict=True):
        yield Losses(index, nll, walk.predictions)


def _weights(model: Model, removed: tuple[int, ...]) -> Iterator[tuple[int, Weights]]:
    stays = _stays(len(model.stack), removed)
    for index in track(stays, "weights", len(stays)):
        yield index, Weights(index, {name: p.detach() for name, p in model.layer(index).named_parameters()})


def _places(model: Model, removed: tuple[int, ...]) -> Iterator[tuple[int, Place]]:
    for index in _stays(model.record.layers, removed):
        yield index, Place(index)
