"""Speed record: seconds and memory of cached decoding (speed.json)."""

from dataclasses import dataclass, field
from typing import Any

from ..runtime.provenance import Provenance
from .model import ModelRecord


@dataclass(frozen=True)
class Speed:
    """Measured speed of MODEL and, interleaved with it, of the model that it is held against.

    ``analytic`` and ``rows`` speak of ``model`` and ``against``. A row holds ``of``, batch, prompt, new, and in seconds
    ``prefill``, ``decode`` (per step) and ``latency`` (of the whole), each as median, p10 and p90; tokens_per_second,
    peak_memory_bytes, runs, and ``bound``: the share of the measured memory bandwidth that decoding reaches.
    ``analytic`` holds parameters, weight_bytes, read_bytes_per_token, kv_bytes_per_token and flops_per_token.
    ``speedups`` holds, per setting, the medians of the ratios of neighbouring runs (prefill, decode, latency) and the
    ``ideal`` ratio of bytes read.
    """

    model: ModelRecord
    against: ModelRecord | None
    protocol: str
    settings: dict[str, Any]
    device: str
    threads: int
    analytic: dict[str, dict[str, float]]
    rows: list[dict[str, Any]]
    speedups: list[dict[str, Any]]
    bandwidth: float | None
    seconds: float
    dtype: str
    provenance: Provenance = field(default_factory=Provenance.now)
    kind: str = "speed"
    schema: int = 1

    def __repr__(self) -> str:
        gained = [f"{row['decode']:.3f}x at batch {row['batch']}" for row in self.speedups]
        return f"<Speed of {self.model!r} on {self.device}: decode {', '.join(gained) or 'measured alone'}>"
