"""Model record: which model an artifact speaks of."""

from dataclasses import field
from pathlib import Path

from .record import Count, Size, TypedRecord, check, record


@record
class ModelRecord(TypedRecord):
    """Model that an artifact speaks of; of a .gguf file, the plain model that it is unpacked to."""

    source: str
    """Folder, Hub id or .gguf file that was given."""
    family: str
    """Model type of the config."""
    layers: Size
    """Layers of the decoder stack."""
    parameters: Size
    """Parameters in all."""
    layer_parameters: list[Count]
    """Parameters of each layer."""
    fingerprint: str
    """Hash of the config, of every byte of every weight file, and of code that comes with the model and runs; empty
    where only the header of a .gguf file was read."""
    original: list[Count]
    """Layers in the numbering of the first, dense ancestor."""
    lookup_parameters: Count = 0
    """Parameters of an input embedding that is not the head too, of which a token reads one row."""
    weight_bytes: Count = 0
    """Bytes of the stored weights."""
    layer_bytes: list[Count] = field(default_factory=list)
    """Bytes of each layer's weights."""
    storage: str = ""
    """Types of numbers that the weights are stored in."""
    packed_bytes: Count = 0
    """Bytes of the .gguf file's own weights, else 0."""
    packed_storage: str = ""
    """Types of numbers in the .gguf file, else nothing."""

    @check
    def _check(self) -> "ModelRecord":
        if not len(self.layer_parameters) == len(self.original) == self.layers:
            raise ValueError(f"the model's lists do not have {self.layers} entries")
        if not 0 < sum(self.layer_parameters) <= self.parameters:
            raise ValueError("the model's parameter counts do not add up")
        if self.layer_bytes and (len(self.layer_bytes) != self.layers or sum(self.layer_bytes) > self.weight_bytes):
            raise ValueError("the model's bytes do not add up")
        if self.original != sorted(set(self.original)):
            raise ValueError("original must hold rising numbers of layers")
        return self

    def __repr__(self) -> str:
        name = Path(self.source).name or self.source
        return f"<{name}: {self.family}, {self.layers} layers, {self.parameters / 1e6:.1f}M parameters>"
