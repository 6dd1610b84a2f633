"""Broken layers, where a model that yields NaN breaks: the first layer whose output is not finite."""

import torch
from jaxtyping import Int
from torch import Tensor

from ..anatomy.model import Model
from ..artifacts.removal import NOTHING, Removal
from ..errors import argument


@torch.no_grad()
def first_broken(model: Model, tokens: Int[Tensor, "sample position"], removal: Removal = NOTHING) -> str:
    """One clause that names the first layer whose output holds NaN or infinity, and what to try."""
    broken: list[int] = []

    def check(index: int):
        def hook(_module, _inputs, output) -> None:
            stream = model.stack.interfaces[index].stream_out(output)
            if not broken and not stream.isfinite().all():
                broken.append(index)

        return hook

    handles = [layer.register_forward_hook(check(index)) for index, layer in enumerate(model.stack.layers)]
    try:
        with model.without(removal):
            model.module(tokens.to(model.device), use_cache=False)
    finally:
        for handle in handles:
            handle.remove()
    where = (
        f"layer {broken[0]} is the first whose output is not finite"
        if broken
        else "every layer's output is finite, so it is the head"
    )
    return f"{where}; are its weights whole, and does the dtype suffice (try {argument('dtype', 'fp32')})?"
