"""What a written model computes, and what the removal that was meant does."""

from pathlib import Path

import torch
import zoo
from transformers import AutoModelForCausalLM, PreTrainedModel

from shallower.anatomy.model import Model


@torch.no_grad()
def virtual_logits(source: Path, plan) -> torch.Tensor:
    model = Model(source, device="cpu")
    with model.without(plan.removal):
        return model.module(input_ids=zoo.tokens(), use_cache=False).logits


@torch.no_grad()
def logits(module: PreTrainedModel) -> torch.Tensor:
    return module.eval()(input_ids=zoo.tokens(), use_cache=False).logits


def generated(module: PreTrainedModel, *, cached: bool) -> list[int]:
    tokens = zoo.tokens(1, 6)
    how = {"max_new_tokens": 12, "do_sample": False, "use_cache": cached, "eos_token_id": None, "pad_token_id": 0}
    return module.generate(tokens, attention_mask=torch.ones_like(tokens), **how)[0].tolist()


def trusted(folder: Path) -> PreTrainedModel:
    return AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True).eval()
