"""Comparison record: models side by side (comparison.json)."""

from dataclasses import dataclass, field
from typing import Any

from ..runtime.provenance import Provenance


@dataclass(frozen=True)
class Comparison:
    """Models side by side, the first is the base.

    A row holds name, source, fingerprint, removed (left out virtually), how (it was made), layers, parameters and
    ``figures``: column -> value, low and high (95 % interval), delta to the base with its own delta_low and delta_high
    where items could be resampled in pairs, ``effect`` (whether deltas are a ratio or a difference), ``clear`` (the
    interval of the delta leaves out that there is none), ``better`` (lower or higher) and ``best``. What is not known
    is None. Columns are layers, parameters, "perplexity TEXT", perplexity_ratio (the mean over texts), "bits_per_byte
    TEXT", "task TASK", task_mean, decode_ms, prefill_ms, tokens_per_second, peak_memory_bytes and weight_bytes;
    figures that may not be held against the others are left out, and ``notes`` say so.
    """

    base: str
    columns: list[str]
    rows: list[dict[str, Any]]
    notes: list[str]
    files: list[str] = field(default_factory=list)
    provenance: Provenance = field(default_factory=Provenance.now)
    kind: str = "comparison"
    schema: int = 1

    def __repr__(self) -> str:
        return f"<Comparison of {', '.join(str(row['name']) for row in self.rows)}>"
