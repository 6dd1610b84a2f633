"""Inspection record: what a model is, and which layers may go (inspection.json)."""

from dataclasses import field
from typing import Literal

from ..runtime.provenance import Provenance
from .model import ModelRecord
from .record import SCHEMA, Count, TypedRecord, check, record


@record
class Inspection(TypedRecord):
    """Structure of a model: where its stack lies, what each layer holds, and which single layers may go."""

    model: ModelRecord
    """Model that was inspected."""
    architecture: str
    """Class of the model by name."""
    stack: str
    """Place of the decoder stack, by the name of its module."""
    dtype: str
    """Types of numbers that the weights are stored in."""
    tied_embeddings: bool
    """The head is the input embedding."""
    layer_kinds: list[str]
    """Kind of each layer; equal texts are layers that are built alike."""
    removable: list[Count]
    """Layers that may go, each alone."""
    refusals: dict[str, str]
    """Reasons by layer why it may not go."""
    provenance: Provenance = field(default_factory=Provenance.now)
    """Origin of the file."""
    kind: Literal["inspection"] = "inspection"
    """Kind of the file."""
    schema: Literal[2] = SCHEMA
    """Version of the form."""

    @check
    def _check(self) -> "Inspection":
        if len(self.layer_kinds) != self.model.layers:
            raise ValueError(f"layer_kinds must have {self.model.layers} entries")
        if not set(self.removable) <= set(range(self.model.layers)):
            raise ValueError(f"removable names layers beyond the {self.model.layers} of the model")
        return self

    def __repr__(self) -> str:
        return f"<Inspection of {self.model!r}: {len(self.removable)} layers may go alone>"
