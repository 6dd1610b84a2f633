"""Pruned model record (shallower.json): its plan and what was proven."""

from dataclasses import dataclass, field
from typing import Any

from ..runtime.provenance import Provenance
from .plan import Plan


@dataclass(frozen=True)
class Pruned:
    """``shallower.json`` in a written model: the plan and what was proven about the files.

    ``healing`` tells, in order, how it was trained since; what was proven is then of the files before that.
    ``left_behind`` names side files of the dense model that were not carried over, ``files`` all that was written,
    ``weight_bytes`` of it the weights.
    """

    plan: Plan
    verified: dict[str, Any]
    original: list[int]
    fingerprint: str
    config_changes: list[str]
    compensation: dict[str, Any] | None = None
    provenance: Provenance = field(default_factory=Provenance.now)
    healing: list[dict[str, Any]] = field(default_factory=list)
    left_behind: list[str] = field(default_factory=list)
    files: list[str] = field(default_factory=list)
    weight_bytes: int = 0
    kind: str = "pruned"
    schema: int = 1

    def __repr__(self) -> str:
        proof = self.verified.get("logits") or self.verified.get("skipped")
        return (
            f"<Pruned: {self.plan!r}, {'proven: logits equal' if 'logits' in self.verified else 'not verified:'} "
            f"{proof}>"
        )
