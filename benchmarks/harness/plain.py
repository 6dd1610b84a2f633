"""What the benchmarks compare with: plain transformers and torch, nothing of shallower, for models built like Llama.

As a script, ``python plain.py FOLDER TOKENS.npy``, one bf16 forward and backward of the whole model.
"""

import copy
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from transformers import AutoModelForCausalLM


def loaded(folder: str | Path, dtype: torch.dtype) -> nn.Module:
    """The model in eval mode, without gradients, every weight read."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype).eval().requires_grad_(False)
    _ = [
        weight.sum() for weight in model.parameters()
    ]  # weights only mapped so far would count as the first forward's work
    return model


def stays(model: nn.Module, removed: Iterable[int]) -> nn.ModuleList:
    """The layers that are left."""
    return nn.ModuleList(layer for index, layer in enumerate(model.model.layers) if index not in set(removed))


def pruned_copy(model: nn.Module, removed: Iterable[int]) -> nn.Module:
    """A copy without these layers: deleted, the others renumbered, the config shortened."""
    made = copy.deepcopy(model)
    made.model.layers = stays(made, removed)
    for index, layer in enumerate(made.model.layers):
        layer.self_attn.layer_idx = index
    made.config.num_hidden_layers = len(made.model.layers)
    return made


@contextmanager
def bypassed(model: nn.Module, removed: Iterable[int]) -> Iterator[None]:
    """The model itself without these layers while inside."""
    every = model.model.layers
    model.model.layers = stays(model, removed)
    try:
        yield
    finally:
        model.model.layers = every


def loss(model: nn.Module, tokens: Tensor) -> Tensor:
    """Mean NLL of all predicted tokens, from the full logits of one forward; tokens (batch, position)."""
    logits = model(input_ids=tokens, use_cache=False).logits[:, :-1].float()
    return cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten())


@torch.no_grad()
def perplexities(model: nn.Module, tokens: Tensor, candidates: Iterable[int]) -> tuple[dict[int, float], float]:
    """Perplexity without each candidate, as published: a pruned copy each, one sample at a time.

    And the seconds of copying.
    """
    found, copying = {}, 0.0
    for candidate in candidates:
        started = time.perf_counter()
        made = pruned_copy(model, [candidate])
        copying += time.perf_counter() - started
        found[candidate] = float(torch.stack([loss(made, sample[None]).double() for sample in tokens]).mean().exp())
    return found, copying


@torch.no_grad()
def greedy(model: nn.Module, tokens: Tensor, allowed: list[int], removed: list[int], few: int | None) -> dict:
    """One whole forward per candidate of every step.

    Args:
        removed: what goes, step by step; empty lets the losses decide, which needs all candidates.
        few: measure so many candidates per step and scale; None measures all.
    """
    order, steps = [], []
    for step in range(len(removed)):
        candidates = [index for index in allowed if index not in order]
        some = candidates if few is None else candidates[:: max(1, len(candidates) // few)][:few]
        took, losses = [], {}
        for candidate in some:
            started = time.perf_counter()
            with bypassed(model, [*order, candidate]):
                losses[candidate] = float(loss(model, tokens))
            took.append(time.perf_counter() - started)
        steps.append(
            {"candidates": len(candidates), "measured": len(some), "seconds": sum(took), "best_seconds": min(took)}
        )
        order.append(removed[step] if few else min(losses, key=losses.get))
    return {
        "order": order,
        "steps": steps,
        "seconds": sum(step["seconds"] * step["candidates"] / step["measured"] for step in steps),
    }


def backward(model: nn.Module, tokens: Tensor) -> float:
    """Forward and backward of everything; the gradients are left in ``grad``."""
    model.zero_grad(set_to_none=True)
    model.requires_grad_(True)
    value = loss(model, tokens)
    value.backward()
    return float(value.detach())


if __name__ == "__main__":
    given = torch.from_numpy(np.load(sys.argv[2])).long()
    started = time.perf_counter()
    print(backward(loaded(sys.argv[1], torch.bfloat16), given), f"{time.perf_counter() - started:.1f} s")
