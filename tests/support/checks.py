"""The verdict on a pruned checkpoint again, without surgery's own comparison: another input, plain transformers."""

from dataclasses import dataclass
from pathlib import Path

import torch
import zoo
from transformers import AutoModelForCausalLM

from shallower.anatomy.units import without
from shallower.artifacts import Removal

LOGITS_TOLERANCE = 1e-5  # of the largest logit
EFFECT = 1e-2  # a removal that changes less shows nothing


@dataclass(frozen=True)
class Compared:
    """What plain transformers says about a written checkpoint.

    Attributes:
        difference: largest difference of a logit to the virtual removal, as a share of the largest logit.
        effect: largest change of a logit that the removal makes.
        keys: names of weights that were missing, unexpected or of another shape.
        parameters: how many the written model has.
    """

    difference: float
    effect: float
    keys: list[str]
    parameters: int


@torch.no_grad()
def compare(model, removal: Removal, out: Path, *, code: bool = False) -> Compared:
    """The written checkpoint beside the dense model with the same layers bypassed and parts silent.

    Args:
        code: whether the code in the folder is run.
    """
    tokens = zoo.tokens(seed=7)
    loaded, info = AutoModelForCausalLM.from_pretrained(
        out, output_loading_info=True, dtype="auto", trust_remote_code=code
    )
    with without(model.stack, removal) if removal.kind == "layer" else model.without(removal):
        wanted = model.module(input_ids=tokens, use_cache=False).logits
    dense = model.module(input_ids=tokens, use_cache=False).logits
    got = loaded.eval()(input_ids=tokens, use_cache=False).logits
    keys = sorted(str(key) for kind in ("missing_keys", "mismatched_keys", "unexpected_keys") for key in info[kind])
    parameters = sum(parameter.numel() for parameter in loaded.parameters())
    return Compared(
        float((got - wanted).abs().max() / wanted.abs().max()), float((dense - wanted).abs().max()), keys, parameters
    )
