"""Pruned .gguf record: what went, what the file's metadata say since, and what was proven."""

from dataclasses import field
from typing import ClassVar, Literal

from ..runtime.provenance import Provenance
from .compensation import RepairReport
from .plan import Plan
from .record import SCHEMA, Count, NonNegative, Size, TypedRecord, check, record


@record
class GgufProof(TypedRecord):
    """Proof of a written .gguf file: it gives the log-probabilities of the unpruned one whose removed layers add
    nothing to the stream.
    """

    by: Literal["llama.cpp", "transformers"]
    """Runtime that both files were loaded by."""
    version: str
    """Version of its package."""
    difference: NonNegative
    """Largest difference of a log-probability, over the whole vocabulary."""
    prompts: list[Size]
    """Tokens of the prompts, behind which they were compared."""


@record
class PrunedGguf(TypedRecord):
    """Written .gguf file: the plan, and what was proven."""

    LEFT_OUT: ClassVar[tuple[str, ...]] = ("compensation", "rounding")

    plan: Plan
    """Plan that was followed."""
    file: str
    """Name of the file."""
    bytes_before: Size
    """Bytes of the unpruned file."""
    bytes_after: Size
    """Bytes of the written file."""
    changes: list[str]
    """Changes of the metadata in words."""
    original: list[Count]
    """Layers that stay, in the numbering of the first, dense ancestor."""
    fingerprint: str
    """Fingerprint of the written model."""
    proof: GgufProof | None = None
    """What was proven; null where that was skipped."""
    compensation: RepairReport | None = None
    """Repair of what is left, found on the unpacked weights; null for none."""
    rounding: NonNegative | None = None
    """Largest distance of a changed tensor from what was meant, by its type in the file, as a share of its length."""
    seconds: NonNegative = 0.0
    """Seconds of writing, without the proof."""
    provenance: Provenance = field(default_factory=Provenance.now)
    """Origin of the file."""
    kind: Literal["pruned_gguf"] = "pruned_gguf"
    """Kind of the file."""
    schema: Literal[2] = SCHEMA
    """Version of the form."""

    @check
    def _check(self) -> "PrunedGguf":
        if self.original != self.plan.original():
            raise ValueError("original does not fit the plan")
        return self

    def __repr__(self) -> str:
        said = f"proven in {self.proof.by}" if self.proof else "not verified"
        return f"<PrunedGguf {self.file}: {self.plan!r}, {said}>"
