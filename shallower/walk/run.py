"""Journal, timer and tokens of a run."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from ..anatomy.model import Model
from ..artifacts.removal import Removal
from ..data.tokens import CalibrationSamples, calibration_samples
from ..runtime import distributed
from ..runtime.memory import Peak
from ..runtime.progress import say
from ..runtime.provenance import device_name, versions
from ..settings.calibration import Calibration
from ..storage.journal import Journal


def journal_of(model: Model, tokens: Any, **what: Any) -> Journal:
    """The journal of work that is decided, to the last bit, by the model, the tokens, how it is computed, and
    ``what``.
    """
    how = {
        "dtype": dtype_name(model),
        "device": "cpu" if model.device == "cpu" else device_name(model.device),
        "batch_tokens": model.batch_tokens,
        "threads": torch.get_num_threads(),
        "processes": distributed.size(),
    }
    tokens = tokens.hash if tokens is not None else None
    return Journal({"model": model.record.fingerprint, "tokens": tokens, "how": how, "versions": versions(), **what})


def removed_of(removal: Removal) -> dict[str, Any]:
    """What a journal is told of what goes: layers, and units where parts of layers are among them."""
    parts = {} if removal.kind == "layer" else {"units": [*map(str, removal.units)]}
    return {"removed": removal.layers, **parts}


def samples_of(model: Model, calibration: Calibration | None) -> CalibrationSamples:
    """Calibration samples, by default of the shipped prose."""
    return calibration_samples(calibration or Calibration(), lambda: model.tokenizer, model.vocabulary)


def load_weights(model: Model) -> None:
    """Load the weights before a clock starts."""
    if not model.loaded:
        say(f"loading {model.checkpoint.source}")
    _ = model.stack


@contextmanager
def timed(model: Model, *, load: bool = True) -> Iterator[Peak]:
    """Seconds and peak memory of what runs inside, the loading of the model left out."""
    if load:
        load_weights(model)
    with Peak(model.device) as peak:
        yield peak


def dtype_name(model: Model) -> str:
    kind = model.dtype or model.checkpoint.config.dtype
    return str(kind).removeprefix("torch.")
