"""What runs share: their tokens, their clock, and the journal of what they have done."""

from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any

import torch

from . import ranks
from .anatomy.model import Model
from .calibration import Calibration, calibration_tokens
from .journal import Journal
from .memory import Peak
from .progress import say
from .provenance import versions


def journal_of(model: Model, tokens: Any, **what: Any) -> Journal:
    """The journal of work that is decided, to the last bit, by the model, the tokens, how it is computed, and ``what``."""
    how = {
        "dtype": dtype_name(model),
        "device": torch.device(model.device).type,
        "batch_tokens": model.batch_tokens,
        "threads": torch.get_num_threads(),
        "processes": ranks.size(),
    }
    tokens = tokens.hash if tokens is not None else None
    return Journal({"model": model.record.fingerprint, "tokens": tokens, "how": how, "versions": versions(), **what})


def tokens_of(model: Model, calibration: Calibration | None):
    """(calibration tokens, the record of them), by default of the shipped text."""
    return calibration_tokens(calibration or Calibration(), lambda: model.tokenizer, model.vocabulary)


def load_weights(model: Model) -> None:
    """Load the weights before a clock starts."""
    if not model.loaded:
        say(f"loading {model.checkpoint.source}")
    _ = model.stack


@contextmanager
def timed(model: Model, method: ModuleType | None = None) -> Iterator[Peak]:
    """Seconds and peak memory of what runs inside, the loading of the model left out."""
    if method is None or method.EVIDENCE != "place":
        load_weights(model)
    with Peak(model.device) as peak:
        yield peak


def dtype_name(model: Model) -> str:
    kind = model.dtype or model.checkpoint.config.dtype
    return str(kind).removeprefix("torch.")
