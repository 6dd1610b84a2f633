"""Sweep record: one plan for every number of layers (sweep.json)."""

from dataclasses import field
from typing import ClassVar, Literal

from ..runtime.format import layers
from ..runtime.provenance import Provenance
from .calibration import CalibrationRecord
from .evaluation import Perplexity
from .model import ModelRecord
from .record import SCHEMA, Count, NonNegative, SettingValues, Size, TypedRecord, check, record
from .removal import check_units


@record
class SweepRow(TypedRecord):
    """Quality without so many layers."""

    LEFT_OUT: ClassVar[tuple[str, ...]] = ("units",)

    removed: Count
    """Number of layers that went."""
    layers: list[Count]
    """Layers that went."""
    parameters: Size
    """Parameters that are left."""
    perplexity: dict[str, Perplexity]
    """Perplexity by text, without its parts."""
    units: dict[str, Count] = field(default_factory=dict)
    """Units that went, such as `5.mlp`, with the parameters of each; empty for whole layers. Then `removed` counts
    these."""

    @check
    def _check(self) -> "SweepRow":
        if len(self.units or self.layers) != self.removed:
            raise ValueError(f"layers must name {self.removed} layers")
        return self

    @property
    def what(self) -> str:
        """What went, in words."""
        return ", ".join(self.units) or layers(self.layers)


@record
class Sweep(TypedRecord):
    """Quality against layers removed."""

    model: ModelRecord
    """Model that layers were taken out of, virtually."""
    order: list[Count]
    """Layers of the largest removal, in the order of removal."""
    selection: str
    """Name of the selection."""
    criterion: str | None
    """Name of the criterion whose scores decided, or null."""
    settings: SettingValues
    """Settings of the criterion and of the selection."""
    calibration: CalibrationRecord | None
    """Tokens that the choice rests on, or null."""
    rows: list[SweepRow]
    """Figures by number of layers that went, the model as it is first."""
    seconds: NonNegative
    """Seconds in all, loading left out."""
    dtype: str
    """Type of numbers that was computed in."""
    provenance: Provenance = field(default_factory=Provenance.now)
    """Origin of the file."""
    kind: Literal["sweep"] = "sweep"
    """Kind of the file."""
    schema: Literal[2] = SCHEMA
    """Version of the form."""

    @check
    def _check(self) -> "Sweep":
        if not self.rows or self.rows[0].removed:
            raise ValueError("rows must begin with the model as it is")
        known = set(range(self.model.layers))
        removals = [self.order, *(row.layers for row in self.rows)]
        if not all(set(removed) < known for removed in removals):
            raise ValueError(f"layers beyond the {self.model.layers} of the model are named")
        for row in self.rows:
            check_units(row.units, row.layers, self.model.layers)
        return self

    def __repr__(self) -> str:
        counts = ", ".join(str(row.removed) for row in self.rows)
        return f"<Sweep of {self.model!r} by {self.selection}: {counts} layers removed>"
