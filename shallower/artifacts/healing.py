"""Healing record: how a model was trained further (healing.json)."""

from dataclasses import dataclass, field
from typing import Any

from ..runtime.provenance import Provenance
from .model import ModelRecord


@dataclass(frozen=True)
class Healing:
    """How a model was trained further; ``model`` is the one given, ``fingerprint`` that of the written one.

    ``rows`` holds step, tokens, loss (mean NLL in nats), lr, grad_norm, tokens_per_second (that bore a loss) and
    all_tokens_per_second, seconds and now and then ``eval``: per text nll, value (perplexity) and tokens; the first is
    before training. ``terms`` of a distillation are means too; ``control`` holds the rows with ``eval`` of the
    dense model, trained the same. ``reloaded`` says how far the logits of the reloaded files are from those of the
    trained model.
    """

    method: str
    settings: dict[str, Any]
    recipe: dict[str, Any]
    model: ModelRecord
    fingerprint: str
    data: dict[str, Any]
    train_tokens: int
    steps: int
    batch_tokens: int
    micro_batch: int
    processes: int
    trained_parameters: int
    rows: list[dict[str, Any]]
    reloaded: dict[str, Any]
    seconds: float
    peak_memory_bytes: int
    dtype: str
    teacher: str | None = None
    control: list[dict[str, Any]] | None = None
    files: list[str] = field(default_factory=list)
    provenance: Provenance = field(default_factory=Provenance.now)
    kind: str = "healing"
    schema: int = 1

    def __repr__(self) -> str:
        return f"<Healing of {self.model!r} by {self.method}: {self.steps} steps, {self.train_tokens} tokens>"
