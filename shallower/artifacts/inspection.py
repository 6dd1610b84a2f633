"""Inspection record: what a model is, and which layers may go."""

from dataclasses import dataclass, field

from ..runtime.provenance import Provenance
from .model import ModelRecord


@dataclass(frozen=True)
class Inspection:
    """What a model is: where its stack lies, what each layer holds, and which single layers may go."""

    model: ModelRecord
    architecture: str
    stack: str
    dtype: str
    tied_embeddings: bool
    layer_kinds: list[str]
    removable: list[int]
    refusals: dict[str, str]
    provenance: Provenance = field(default_factory=Provenance.now)
    kind: str = "inspection"
    schema: int = 1

    def __repr__(self) -> str:
        return f"<Inspection of {self.model!r}: {len(self.removable)} layers may go alone>"
