"""Scores of layers by one criterion (scores.json)."""

import html
import math
from dataclasses import dataclass, field
from typing import Any

from ..runtime.provenance import Provenance
from .calibration import CalibrationRecord
from .model import ModelRecord


@dataclass(frozen=True)
class Scores:
    """One score per layer; the lowest is removed first. ``windows[n-1][s]`` scores removing layers s … s+n-1 at once.

    ``halves`` and ``halves_windows`` hold the same from either half of the calibration samples, where they could be
    told apart.
    """

    criterion: str
    settings: dict[str, Any]
    scores: list[float]
    model: ModelRecord
    calibration: CalibrationRecord | None
    seconds: float
    peak_memory_bytes: int
    dtype: str
    windows: list[list[float]] | None = None
    halves: list[list[float]] = field(default_factory=list)
    halves_windows: list[list[list[float]]] = field(default_factory=list)
    provenance: Provenance = field(default_factory=Provenance.now)
    kind: str = "scores"
    schema: int = 1

    @property
    def ranks(self) -> list[int]:
        """By layer: 1 for the one that goes first."""
        order = sorted(range(len(self.scores)), key=self.scores.__getitem__)
        return [order.index(index) + 1 for index in range(len(order))]

    def __repr__(self) -> str:
        first = sorted(range(len(self.scores)), key=self.scores.__getitem__)[:6]
        return f"<Scores by {self.criterion} of {self.model!r}; first to go: {', '.join(map(str, first))}>"

    def _repr_html_(self) -> str:
        rows = zip(range(len(self.scores)), self.scores, self.ranks, strict=True)
        cells = "".join(f"<tr><td>{index}</td><td>{value:.6g}</td><td>{rank}</td></tr>" for index, value, rank in rows)
        head = f"<tr><th>layer</th><th>{html.escape(self.criterion)}</th><th>rank (1 goes first)</th></tr>"
        return f"<table>{head}{cells}</table>"


def wrong_scores(scores: Scores) -> str | None:
    layers = scores.model.layers
    if len(scores.scores) != layers or not all(map(math.isfinite, scores.scores)):
        return f"expected {layers} finite scores, found {len(scores.scores)}"
    if scores.windows and [len(row) for row in scores.windows] != list(range(layers, 1, -1)):
        return f"windows must hold {layers - 1} lists, from {layers} entries down to 2"
    return None
