"""Compensation record: how what is left of a model was repaired (compensation.json)."""

from dataclasses import field
from typing import ClassVar, Literal

from pydantic import JsonValue

from ..runtime.provenance import Provenance
from .calibration import CalibrationRecord
from .model import ModelRecord
from .record import SCHEMA, Count, Finite, NonNegative, SettingValues, TypedRecord, check, record
from .removal import check_units


@record
class HeldOutLoss(TypedRecord):
    """Mean NLL in nats on held-out calibration tokens."""

    dense: Finite
    """Loss of the dense model."""
    before: Finite
    """Loss of the pruned model, not repaired."""
    after: Finite
    """Loss of the pruned model, repaired."""


@record
class StreamDrift(TypedRecord):
    """Distance of the pruned stream from the dense one behind a retained layer."""

    layer: Count
    """Number of the layer."""
    shift: NonNegative
    """Distance of the mean streams."""
    relative_shift: NonNegative
    """Distance of the mean streams as a share of the length of the dense mean."""
    error: NonNegative
    """Root of the mean squared distance, as a share of the root of the mean squared length of the dense stream."""


@record
class LayerDrift(TypedRecord):
    """Drift behind one retained layer before and after the repair, on the held-out tokens."""

    layer: Count
    """Number of the layer."""
    before: StreamDrift
    """Drift that the removal makes."""
    after: StreamDrift
    """Drift that the repair leaves."""


@record
class TrainedLayer(TypedRecord):
    """Local training of one layer.

    Errors are of the stream behind it against the dense one that is wanted there, on samples that are only watched.
    """

    layer: Count
    """Number of the layer."""
    error_before: NonNegative
    """Error with the weights of the dense model."""
    error_closed_form: NonNegative
    """Error after the closed form that the training begins with."""
    error: NonNegative
    """Error of the weights that are kept."""
    steps: Count = 0
    """Steps that were trained."""
    kept_step: Count = 0
    """Step whose weights are kept; 0 for those that the training began with."""
    curve: list[tuple[Count, NonNegative | None, NonNegative]] = field(default_factory=list)
    """Step, mean error of the training since the point before, and error."""


@record
class RepairReport(TypedRecord):
    """Brief report of a compensation inside `shallower.json`; the rest is in `compensation.json`."""

    LEFT_OUT: ClassVar[tuple[str, ...]] = ("trained_layers",)

    method: str
    """Name of the method."""
    settings: SettingValues
    """Settings of the method."""
    calibration: CalibrationRecord
    """Tokens that were fitted on and decided by."""
    loss: HeldOutLoss
    """Loss over all held-out samples."""
    by_source: dict[str, HeldOutLoss] = field(default_factory=dict)
    """Loss by text of which a sample was held out."""
    changed: list[str] = field(default_factory=list)
    """Names of the changed weights; none where nothing helped."""
    trained_layers: Count | None = None
    """Layers that were trained, each by itself; not there for a closed form."""


@record
class Compensation(TypedRecord):
    """Repair of a pruned model, in closed form or by training single layers."""

    LEFT_OUT: ClassVar[tuple[str, ...]] = ("units", "trained")

    method: str
    """Name of the method."""
    settings: SettingValues
    """Settings of the method."""
    model: ModelRecord
    """Dense model."""
    removed: list[Count]
    """Layers that were taken out of it."""
    calibration: CalibrationRecord
    """Tokens that were fitted on and decided by."""
    fitted_tokens: Count
    """Tokens that were fitted on."""
    held_out_tokens: Count
    """Tokens that decided whether the repair is kept."""
    loss: HeldOutLoss
    """Loss over all held-out samples."""
    changed: list[str]
    """Names of the changed weights; none where nothing helped."""
    layers: list[LayerDrift]
    """Drift of the stream behind every retained layer."""
    notes: dict[str, JsonValue]
    """Notes of the method on what it tried; each method has its own."""
    seconds: NonNegative
    """Seconds in all, loading left out."""
    peak_memory_bytes: Count
    """Peak of the memory in bytes."""
    dtype: str
    """Type of numbers that was computed in."""
    by_source: dict[str, HeldOutLoss] = field(default_factory=dict)
    """Loss by text of which a sample was held out."""
    fitted_width: Count = 0
    """Features, at most, that one fit solves for."""
    units: dict[str, Count] = field(default_factory=dict)
    """Units that were taken out, such as `5.mlp`, with the parameters of each; empty for whole layers."""
    trained: list[TrainedLayer] = field(default_factory=list)
    """Local training of the layers in order, taken in the end or not."""
    provenance: Provenance = field(default_factory=Provenance.now)
    """Origin of the file."""
    kind: Literal["compensation"] = "compensation"
    """Kind of the file."""
    schema: Literal[2] = SCHEMA
    """Version of the form."""

    @check
    def _check(self) -> "Compensation":
        if not set(self.removed) < set(range(self.model.layers)):
            raise ValueError(f"removed names layers {self.removed} of {self.model.layers}")
        check_units(self.units, self.removed, self.model.layers)
        if not {one.layer for one in [*self.layers, *self.trained]} <= set(range(self.model.layers)) - {*self.removed}:
            raise ValueError("layers must name retained layers only")
        return self

    def brief(self) -> RepairReport:
        """The report of it for ``shallower.json``."""
        trained = sum(one.kept_step > 0 for one in self.trained)
        told = (self.method, self.settings, self.calibration, self.loss, self.by_source, self.changed)
        return RepairReport(*told, trained or None)

    def __repr__(self) -> str:
        return f"<Compensation by {self.method}: held-out loss {self.loss.before:.4f} -> {self.loss.after:.4f} nats>"
