"""Export record: a model in another format, how it was made, and what was proven."""

from dataclasses import field
from typing import Literal

from ..runtime.provenance import Provenance
from .model import ModelRecord
from .record import SCHEMA, NonNegative, Size, TypedRecord, record


@record
class ExportProof(TypedRecord):
    """Proof of an exported file: llama.cpp gives of it the log-probabilities that transformers gives of the model."""

    by: str
    """Runtime of the file, with its version."""
    difference: NonNegative
    """Largest difference of a log-probability, as a share of the largest."""
    divergence: NonNegative
    """KL divergence of the file from the model in nats, the largest of the prompts."""
    same_next: bool
    """True where both have the same likeliest token behind every prompt."""
    prompts: list[Size]
    """Tokens of the prompts."""


@record
class Exported(TypedRecord):
    """Model in another format."""

    model: ModelRecord
    """Model that was exported."""
    file: str
    """Name of the file."""
    to: Literal["gguf"]
    """Format."""
    type: str
    """Type of the numbers in it."""
    bytes: Size
    """Bytes of the file."""
    changes: list[str] = field(default_factory=list)
    """Metadata that the converter leaves out, and that were added."""
    proof: ExportProof | None = None
    """What was proven; null where that was skipped."""
    seconds: NonNegative = 0.0
    """Seconds of converting."""
    provenance: Provenance = field(default_factory=Provenance.now)
    """Origin of the file."""
    kind: Literal["exported"] = "exported"
    """Kind of the file."""
    schema: Literal[2] = SCHEMA
    """Version of the form."""

    def __repr__(self) -> str:
        said = f"proven in {self.proof.by}" if self.proof else "not verified"
        return f"<Exported {self.file}: {self.model!r} as {self.type}, {said}>"
