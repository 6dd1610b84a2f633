"""What the verbs begin and end with: how to compute, opening a model, checking that artifacts fit it, keeping results."""

from dataclasses import dataclass
from pathlib import Path

from .. import ranks
from ..anatomy.loading import parse_dtype
from ..anatomy.model import Model, checked_device
from ..artifacts import ModelRecord, save
from ..errors import UserError

Source = str | Path | Model


@dataclass(frozen=True)
class Compute:
    """Where and in what to compute.

    Attributes:
        dtype: fp32, bf16 or fp16; None is the stored one.
        device: None is CUDA where there is one.
        trust_remote_code: run code that comes with the model.
        layered: keep one layer in memory, the others on disk; None does so where the weights would not fit.
        max_batch_tokens: tokens that run through a layer at once; None follows from the device and its total memory.
    """

    dtype: str | None = None
    device: str | None = None
    trust_remote_code: bool = False
    layered: bool | None = None
    max_batch_tokens: int | None = None

    def __post_init__(self) -> None:
        parse_dtype(self.dtype)
        checked_device(self.device)
        if self.max_batch_tokens is not None and self.max_batch_tokens < 1:
            raise UserError(f"--max-batch-tokens {self.max_batch_tokens}: a number of tokens, 1 or more")


def open_model(source: Source, compute: Compute | None = None) -> Model:
    """A model by folder, Hub id or .gguf file; a Model is handed through, so that stages can share one loaded model."""
    if isinstance(source, Model):
        return source
    return Model(source, **vars(compute or Compute()))


def check_same_model(one: ModelRecord, other: ModelRecord, what: str) -> None:
    """Raise a UserError unless both records are of the same weights."""
    if one.fingerprint != other.fingerprint or one.layers != other.layers:
        raise UserError(
            f"{what} was made for another model ({one.source}, {one.layers} layers, fingerprint {one.fingerprint}) "
            f"than {other.source} ({other.layers} layers, fingerprint {other.fingerprint}): make one for this model"
        )


def kept(record, out: str | Path | None):
    if out is not None and ranks.rank() == 0:
        save(record, out)
    return record
