"""Prove a written checkpoint: reloaded from disk, it is the virtually pruned model, with the unpruned one as control."""

from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import GenerationConfig, LogitsProcessor, LogitsProcessorList

from .anatomy.bypass import bypass
from .anatomy.loading import check_whole, one_line, open_checkpoint, quiet
from .anatomy.model import Model
from .anatomy.stack import check_causal, dry_tokens
from .artifacts import Plan
from .errors import Refusal, UserError

TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 3e-2, torch.float16: 4e-3}  # of the largest logit, where not bit for bit
CACHED_TOLERANCE = 1e-3  # fp32: one product of many rows against many of one row
PROBE = (2, 32)
PROBE_PREFIX = 12


def verify(model: Model, plan: Plan, folder: Path, sources: dict[str, str], save_dtype: torch.dtype | None = None) -> dict:
    """Reload the written files with plain transformers and prove them equal to the virtual removal.

    Checked, with the unpruned model as control: no missing, mismatched or new unexpected keys; logits equal to those of
    the unpruned model with the layers bypassed (bit for bit, else within a stated tolerance per dtype); logits of cached
    decoding of given tokens equal to those of one uncached forward, in fp32.

    Args:
        folder: the written checkpoint.
        sources: its tensor names -> those of the unpruned model.
        save_dtype: what it was stored in; None for as before.
    Returns:
        What was compared and how far apart it was, for ``shallower.json``.
    Raises:
        UserError: a check failed, for the unpruned or for the pruned model.
    """
    dense, dense_info = model.checkpoint.load_reporting(dtype=save_dtype, device=model.device)
    check_whole(model.checkpoint.source, dense_info)
    check_causal(dense)
    stack, dtype = model.outline.of(dense), dense.dtype  # the check of the cache turns the model into fp32
    tokens = dry_tokens(model.vocabulary, *PROBE).to(model.device)
    try:
        with bypass(stack, plan.removed):
            wanted = _logits(dense, tokens)
        if not torch.isfinite(wanted).all():
            raise UserError("the virtually pruned model yields NaN or infinite logits; another removal or dtype may help")
    except RuntimeError as error:  # shapes that no longer fit; what is missing altogether is refused by the bypass itself
        reason = f"other layers need what they make ({one_line(error)})"
        raise Refusal(f"the model does not run without layers {plan.removed}: {reason}") from error
    control = cached_difference(dense, tokens, "the unpruned model")
    del dense, stack
    written = open_checkpoint(folder, trust_remote_code=model.checkpoint.trust_remote_code)
    pruned, info = written.load_reporting(dtype=save_dtype, device=model.device)
    check_whole("the written model", info)
    _check_unexpected(info, sources, dense_info)
    try:
        got = _logits(pruned, tokens)
    except (RuntimeError, KeyError, IndexError, AttributeError, TypeError, ValueError) as error:
        raise UserError(f"the written model does not run ({one_line(error)}): nothing was kept") from error
    difference = _check_logits(wanted, got, dtype)
    cached = cached_difference(pruned, tokens, "the written model")
    return {
        "logits": "bit for bit" if difference == 0 else f"within {TOLERANCE[dtype]:g} of the largest logit",
        "logits_difference": difference,
        "cached_difference": cached,
        "cached_difference_unpruned": control,
        "cached_tolerance": CACHED_TOLERANCE,
        "missing_keys": 0,
        "unexpected_keys": len(info["unexpected_keys"]),
        "dtype": str(dtype).removeprefix("torch."),
        "tokens": list(PROBE),
    }


@torch.no_grad()
def _logits(model: nn.Module, tokens: Tensor) -> Tensor:
    return model(input_ids=tokens, use_cache=False).logits


def _check_unexpected(info: dict, sources: dict[str, str], control: dict) -> None:
    """Raise if the written model has weights without a place, but for those that the unpruned model ignores too."""
    new = {sources.get(key, key) for key in info["unexpected_keys"]} - set(control["unexpected_keys"])
    if new:
        raise UserError(f"the written model has weights that its config does not know ({min(new)}): nothing was kept")


def _check_logits(wanted: Tensor, got: Tensor, dtype: torch.dtype) -> float:
    """The largest difference as a share of the largest logit; raises where it is beyond the dtype's tolerance."""
    if torch.equal(wanted, got):
        return 0.0
    difference = float((wanted.float() - got.float()).abs().max() / wanted.float().abs().max())
    if not difference <= TOLERANCE.get(dtype, 1e-4):
        raise UserError(
            f"the written model is not the intended one (logits differ by {difference:.2g} of the largest): "
            "its architecture depends on the layer index in a way that files cannot express; nothing was kept"
        )
    return difference


class _Forced(LogitsProcessor):
    """Makes generation follow given tokens."""

    def __init__(self, tokens: Tensor):
        self.tokens = tokens

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        wanted = self.tokens[:, input_ids.shape[1]]
        return torch.full_like(scores, -torch.inf).scatter(1, wanted[:, None], 0.0)


@torch.no_grad()
def cached_difference(model: nn.Module, tokens: Tensor, who: str) -> float:
    """How far cached decoding of given tokens is from one uncached forward, as a share of the largest logit, in fp32.

    The model is converted to fp32 in place: bf16 rounding alone can exceed any useful tolerance.

    Raises:
        UserError: beyond CACHED_TOLERANCE, or decoding fails.
    """
    model.float()
    full = _logits(model, tokens)[:, PROBE_PREFIX - 1 : -1]
    settings = GenerationConfig(
        max_new_tokens=tokens.shape[1] - PROBE_PREFIX,
        do_sample=False,
        use_cache=True,
        output_logits=True,
        return_dict_in_generate=True,
        pad_token_id=0,
    )
    try:
        with quiet():
            result = model.generate(
                input_ids=tokens[:, :PROBE_PREFIX],
                attention_mask=torch.ones_like(tokens[:, :PROBE_PREFIX]),
                generation_config=settings,
                logits_processor=LogitsProcessorList([_Forced(tokens)]),
            )
    except Exception as error:  # caches fail in many ways
        reason = f"{who} cannot generate with its cache ({one_line(error)})"
        raise UserError(f"{reason}: nothing was kept; --no-verify writes it all the same") from error
    step = torch.stack(result.logits, dim=1).float()
    difference = float((full.float() - step).abs().max() / full.float().abs().max())
    if not difference <= CACHED_TOLERANCE:
        raise UserError(
            f"{who} decodes differently with its cache than without (by {difference:.2g} of the largest logit): "
            "nothing was kept; --no-verify writes it all the same"
        )
    return difference
