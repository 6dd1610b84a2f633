"""GGUF files as transformers sees them, unpacked: log-probabilities behind prompts, without some layers."""

import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float

from ..anatomy.model import Model
from ..artifacts.removal import Removal


@torch.no_grad()
def log_probabilities(
    file: Path, removed: Sequence[int], prompts: list[list[int]], *, keep: bool = False
) -> Float[np.ndarray, "prompt token"]:
    """Log-probability of every token behind every prompt, in float32 on the CPU.

    Args:
        removed: layers to leave out virtually.
        keep: leave what it is unpacked to in the user's cache.
    """
    model = Model(file, dtype="fp32", device="cpu", layered=False)
    try:
        with model.without(Removal.of_layers(removed)):
            rows = [model.module(torch.tensor([prompt])).logits[0, -1].log_softmax(-1) for prompt in prompts]
        return torch.stack(rows).double().numpy()
    finally:
        model.unload()
        if not keep:
            shutil.rmtree(model.checkpoint.folder)
