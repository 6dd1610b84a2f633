"""GGUF files as transformers sees them, unpacked: the model, and its log-probabilities without some layers."""

import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float

from ..anatomy.model import Model
from ..artifacts.removal import Removal


@contextmanager
def unpacked(file: Path, *, keep: bool = False) -> Iterator[Model]:
    """The model that a file is unpacked to, in float32 on the CPU; ``keep`` leaves that in the user's cache."""
    model = Model(file, dtype="fp32", device="cpu", layered=False)
    try:
        yield model
    finally:
        model.unload()
        if not keep:
            shutil.rmtree(model.checkpoint.folder)


@torch.no_grad()
def log_probabilities(
    file: Path, removed: Sequence[int], prompts: list[list[int]], *, keep: bool = False
) -> Float[np.ndarray, "prompt token"]:
    """Log-probability of every token behind every prompt.

    Args:
        removed: layers to leave out virtually.
    """
    with unpacked(file, keep=keep) as model, model.without(Removal.of_layers(removed)):
        rows = [model.module(torch.tensor([prompt])).logits[0, -1].log_softmax(-1) for prompt in prompts]
    return torch.stack(rows).double().numpy()
