"""Export record: a model in another format, how it was made, and what was proven."""

from dataclasses import field
from typing import Literal

from ..runtime.provenance import Provenance
from .model import ModelRecord
from .record import SCHEMA, Count, NonNegative, Size, TypedRecord, record


@record
class ExportProof(TypedRecord):
    """Proof of an exported file: llama.cpp gives of it the log-probabilities that transformers gives of the model; of a
    copy: it was proven in llama.cpp without the layers that went, and has the model's weights.
    """

    by: str
    """Runtime of the file, with its version."""
    difference: NonNegative
    """Largest difference of a log-probability, as a share of the largest."""
    divergence: NonNegative
    """KL divergence of llama.cpp from transformers in nats, the largest of the prompts; of a copy, both of the file, of
    types of few bits, of the f16 file that they are made of."""
    same_next: bool
    """True where both have the same likeliest token behind every prompt."""
    prompts: list[Size]
    """Tokens of the prompts."""
    rounded: NonNegative | None = None
    """KL divergence in nats that rounding costs, of a copy and of types of few bits; else null."""


@record
class Copied(TypedRecord):
    """Copying from the .gguf file that a model was made of."""

    of: str
    """Name of that file."""
    copied: Count
    """Tensors that are its own."""
    remade: Count
    """Tensors that a repair or a training has changed, stored anew."""
    types: list[str]
    """Types that these are stored in."""
    rounding: NonNegative
    """Largest relative error of rounding one of them."""


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
    """Type of the numbers that was asked for; empty where a copy keeps what there was."""
    bytes: Size
    """Bytes of the file."""
    changes: list[str] = field(default_factory=list)
    """Metadata that the converter leaves out, and that were added; of a copy, all that changed."""
    copied: Copied | None = None
    """Where it was copied from; null where it was converted."""
    proof: ExportProof | None = None
    """What was proven; null where that was skipped."""
    storage: str = ""
    """Types that hold most of the weights."""
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
        return f"<Exported {self.file}: {self.model!r} as {self.storage or self.type}, {said}>"
