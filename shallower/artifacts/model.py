"""Model record: which model an artifact speaks of."""

from dataclasses import dataclass, field
from pathlib import Path


@dataclass(frozen=True)
class ModelRecord:
    """Which model an artifact speaks of.

    ``original`` maps its layers to those of its first, dense ancestor; ``lookup_parameters`` are those of an input
    embedding that is not the head too, of which a token reads one row. ``weight_bytes`` are those of its stored
    weights, in all and by layer, ``storage`` how they are stored. Of a .gguf file they are those of the plain model
    that it is unpacked to; ``packed_bytes`` and ``packed_storage`` are its own, else 0 and nothing.
    """

    source: str
    family: str
    layers: int
    parameters: int
    layer_parameters: list[int]
    fingerprint: str
    original: list[int]
    lookup_parameters: int = 0
    weight_bytes: int = 0
    layer_bytes: list[int] = field(default_factory=list)
    storage: str = ""
    packed_bytes: int = 0
    packed_storage: str = ""

    def __repr__(self) -> str:
        name = Path(self.source).name or self.source
        return f"<{name}: {self.family}, {self.layers} layers, {self.parameters / 1e6:.1f}M parameters>"


def wrong_model(model: ModelRecord) -> str | None:
    if not len(model.layer_parameters) == len(model.original) == model.layers > 0:
        return f"the model's lists do not have {model.layers} entries"
    if min(model.layer_parameters) < 0 or not 0 < sum(model.layer_parameters) <= model.parameters:
        return "the model's parameter counts do not add up"
    if model.layer_bytes and (
        len(model.layer_bytes) != model.layers or not 0 <= sum(model.layer_bytes) <= model.weight_bytes
    ):
        return "the model's bytes do not add up"
    if min(model.original) < 0 or model.original != sorted(set(model.original)):
        return "original must hold rising numbers of layers"
    return None
