"""Comparison record: models side by side (comparison.json)."""

from dataclasses import field
from typing import ClassVar, Literal

from ..runtime.provenance import Provenance
from .record import SCHEMA, Count, Finite, Size, TypedRecord, check, record


@record
class ComparedFigure(TypedRecord):
    """Figure of one model in one column, with its difference from the base; null is what is not known."""

    value: int | Finite
    """Value."""
    low: Finite | None
    """Lower end of the 95 % interval of the value."""
    high: Finite | None
    """Upper end of the 95 % interval of the value."""
    delta: Finite | None
    """Difference from the base: a ratio or a difference, as `effect` says."""
    delta_low: Finite | None
    """Lower end of the 95 % interval of the delta, where items could be resampled in pairs."""
    delta_high: Finite | None
    """Upper end of the 95 % interval of the delta."""
    clear: bool | None
    """True where the interval of the delta leaves out that there is no effect."""
    effect: Literal["ratio", "difference"]
    """Meaning of the delta."""
    better: Literal["lower", "higher"]
    """Direction that is better."""
    best: bool
    """True for the best of the column; nowhere where all are alike."""

    @check
    def _check(self) -> "ComparedFigure":
        if (self.low is None) != (self.high is None) or (self.delta_low is None) != (self.delta_high is None):
            raise ValueError("an interval must have two ends")
        return self


@record
class ComparedModel(TypedRecord):
    """Model in a comparison."""

    LEFT_OUT: ClassVar[tuple[str, ...]] = ("units",)

    name: str
    """Name in the table."""
    source: str
    """Folder, Hub id or file that it came from."""
    fingerprint: str
    """Fingerprint of the model."""
    removed: list[Count] = field(default_factory=list, kw_only=True)
    """Layers that were left out virtually."""
    units: list[str] = field(default_factory=list, kw_only=True)
    """Units that were left out virtually, where parts of layers are among them."""
    how: str
    """Account of how it was made, where that is known."""
    layers: Size
    """Layers that are left."""
    parameters: Size
    """Parameters that are left."""
    figures: dict[str, ComparedFigure]
    """Figures by column; those that may not be held against the others are left out."""


@record
class Comparison(TypedRecord):
    """Models side by side, the first of which is the base.

    Columns are layers, parameters, `perplexity TEXT`, perplexity_ratio (the mean over texts), `bits_per_byte TEXT`,
    `task TASK`, task_mean, `agreement FIGURE`, decode_ms, prefill_ms, tokens_per_second, peak_memory_bytes and
    weight_bytes.
    """

    base: str
    """Name of the base."""
    columns: list[str]
    """Columns of the table, in order."""
    rows: list[ComparedModel]
    """Models, the base first."""
    notes: list[str]
    """Remarks, on what was left out and why."""
    files: list[str] = field(default_factory=list)
    """Files beside it."""
    provenance: Provenance = field(default_factory=Provenance.now)
    """Origin of the file."""
    kind: Literal["comparison"] = "comparison"
    """Kind of the file."""
    schema: Literal[2] = SCHEMA
    """Version of the form."""

    @check
    def _check(self) -> "Comparison":
        if not self.rows or self.rows[0].name != self.base:
            raise ValueError("rows must begin with the base")
        if unknown := [name for row in self.rows for name in row.figures if name not in self.columns]:
            raise ValueError(f"columns lack {unknown[0]}")
        return self

    def __repr__(self) -> str:
        return f"<Comparison of {', '.join(row.name for row in self.rows)}>"
