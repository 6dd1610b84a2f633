"""Compensation record: how a pruned model was repaired without training (compensation.json)."""

from dataclasses import dataclass, field
from typing import Any

from ..runtime.provenance import Provenance
from .calibration import CalibrationRecord
from .model import ModelRecord


@dataclass(frozen=True)
class Compensation:
    """How a pruned model was repaired without training.

    ``loss`` holds the mean NLL in nats on held-out calibration tokens: ``dense``, ``before`` and ``after`` (of the
    pruned model); ``by_source`` holds the same for every text of the calibration of which a sample was held out.
    ``fitted_width`` is the most features that one fit solves for. ``changed`` names the changed weights, none where
    nothing helped. ``layers`` holds, per retained layer, the shift and the relative error of the stream behind it
    before and after, on the held-out tokens.
    """

    method: str
    settings: dict[str, Any]
    model: ModelRecord
    removed: list[int]
    calibration: CalibrationRecord
    fitted_tokens: int
    held_out_tokens: int
    loss: dict[str, float]
    changed: list[str]
    layers: list[dict[str, Any]]
    notes: dict[str, Any]
    seconds: float
    peak_memory_bytes: int
    dtype: str
    by_source: dict[str, dict[str, float]] = field(default_factory=dict)
    fitted_width: int = 0
    provenance: Provenance = field(default_factory=Provenance.now)
    kind: str = "compensation"
    schema: int = 1

    def __repr__(self) -> str:
        return (
            f"<Compensation by {self.method}: held-out loss {self.loss['before']:.4f} -> {self.loss['after']:.4f} nats>"
        )
