"""Literal transcriptions that several tests share."""

import copy
from functools import cache

import numpy as np
import torch
import zoo
from transformers import AutoModelForCausalLM

from shallower import Compute, open_model
from shallower.walk.removals import LossWalk


@cache
def plain(folder):
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


def blocks(model):
    return model.transformer.h if hasattr(model, "transformer") else model.model.layers


def without(model, index):
    """A copy whose list of layers is shorter by one."""
    model = copy.deepcopy(model)
    del blocks(model)[index]
    if getattr(model.config, "layer_types", None):
        del model.config.layer_types[index]
    return model


TOKENS = zoo.tokens(batch=5, length=20)


@cache
def literal_kl(folder, removed: tuple[int, ...]) -> float:
    """Σ over samples and positions of Σ_v p_v (log p_v - log q_v): p of the dense model, q of one whose list of layers
    is shorter.
    """
    dense = pruned = plain(folder)
    for index in sorted(removed, reverse=True):
        pruned = without(pruned, index)
    total = 0.0
    with torch.no_grad():
        for sample in TOKENS:
            p, q = (
                model(input_ids=sample[None], use_cache=False).logits[0].double().softmax(-1).numpy()
                for model in (dense, pruned)
            )
            for place in range(len(sample) - 1):
                total += float(np.sum(p[place] * (np.log(p[place]) - np.log(q[place]))))
    return total


def walk_of(folder, limit: int | None = None) -> LossWalk:
    return LossWalk(open_model(folder, Compute(device="cpu", max_batch_tokens=limit)), TOKENS)
