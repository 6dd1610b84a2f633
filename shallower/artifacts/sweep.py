"""Sweep record: one plan for every number of layers (sweep.json)."""

from dataclasses import dataclass, field
from typing import Any

from ..runtime.provenance import Provenance
from .calibration import CalibrationRecord
from .model import ModelRecord


@dataclass(frozen=True)
class Sweep:
    """Quality against layers removed; the first row is the model as it is, ``order`` that of the largest removal.

    A row holds removed (a number), layers, parameters and perplexity as in an evaluation, without ``parts``.
    """

    model: ModelRecord
    order: list[int]
    selection: str
    criterion: str | None
    settings: dict[str, Any]
    calibration: CalibrationRecord | None
    rows: list[dict[str, Any]]
    seconds: float
    dtype: str
    provenance: Provenance = field(default_factory=Provenance.now)
    kind: str = "sweep"
    schema: int = 1

    def __repr__(self) -> str:
        return (
            f"<Sweep of {self.model!r} by {self.selection}: {', '.join(str(row['removed']) for row in self.rows)} "
            "layers removed>"
        )
