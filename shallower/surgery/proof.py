"""Proof of a written checkpoint.

Reloaded from disk, it is the virtually pruned model, with the dense one as control.
"""

import contextlib
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn
from transformers import GenerationConfig, LogitsProcessor, LogitsProcessorList

from ..anatomy.fingerprint import shared_tensors
from ..anatomy.kernels import exact_products
from ..anatomy.loading import Checkpoint, check_whole, one_line, quiet
from ..anatomy.model import RESIDENT_SHARE, Model
from ..anatomy.patch import Patch, patched
from ..anatomy.sources import open_checkpoint
from ..anatomy.stack import check_causal, dry_tokens, sound_tokens
from ..anatomy.units import without
from ..artifacts import Plan, Proof, Removal
from ..errors import Refusal, UserError, argument
from ..runtime.memory import total_memory

LOGITS_TOLERANCE = {
    torch.float64: 1e-5,  # some norms and rotary tables are fp32 all the same
    torch.float32: 1e-4,
    torch.bfloat16: 3e-2,
    torch.float16: 4e-3,
}  # of the largest logit, where not bit for bit
CACHED_TOLERANCE = 1e-3  # fp32: one product of many rows against many of one row
PACKED_TOLERANCE = 5e-2  # where quantised weights cannot be widened, and activations may be rounded by rows too
PROOF_PROBE = (2, 32)
PROBE_LAYERED = (2, 16)  # each decoded token reads all weights
PROBE_PREFIX = 12


@exact_products()
def verify(
    model: Model,
    plan: Plan,
    folder: Path,
    sources: dict[str, str],
    *,
    save_dtype: torch.dtype | None = None,
    patch: Patch | None = None,
) -> Proof:
    """Reload the written files with plain transformers and prove them equal to the virtual removal.

    Checked, with the dense model as control: no missing, mismatched or new unexpected keys; logits equal to those of
    the dense model with the layers bypassed (bit for bit, else within a stated tolerance per dtype); logits of
    cached decoding of given tokens equal to those of one uncached forward, in fp32. Narrower layers run other kernels
    than masked ones, whose rounding adds up: they are compared in fp64, with the weights as they are stored, where the
    model is resident and that fits, else in fp32; read layer by layer, what is rounded on writing is not rounded in the
    virtual model, and may differ as far as the stored dtype does.

    Args:
        folder: the written checkpoint.
        sources: its tensor names -> those of the dense model.
        save_dtype: what it was stored in; None for as before.
        patch: the changes of weights that the written model is meant to have; the virtual one gets them too.
    Returns:
        What was compared and how far apart it was, for ``shallower.json``.
    Raises:
        UserError: a check failed, for the dense or for the pruned model.
    """
    layered = model.layered or _too_wide(model)
    probe = PROBE_LAYERED if layered else PROOF_PROBE
    open_module = partial(_open, device=model.device, layered=layered)
    reference = _reference(model, plan.removal, patch or {}, partial(open_module, model.checkpoint), save_dtype, probe)
    written = open_checkpoint(folder, trust_remote_code=model.checkpoint.trust_remote_code)
    how = {"dtype": torch.float32, "lean": reference.tokens} if reference.widened else {"dtype": save_dtype}
    try:
        pruned, info = open_module(written, **how)
    except UserError as error:  # which names a folder that will be gone
        raise UserError(str(error).replace(str(written.source), "the written model")) from error
    check_whole("the written model", info)
    got = _logits_of_written(pruned, reference, exact=plan.removal.narrows and "close" not in info)
    _check_unexpected(info, sources, reference.unexpected)
    kind = _tolerated(model, reference, save_dtype, patch)
    difference = _check_logits(reference.logits, got, kind)
    cached, _ = _cached_difference(pruned, partial(open_module, written), reference.tokens, "the written model", info)
    within = f"within {LOGITS_TOLERANCE[kind]:g} of the largest logit"
    return Proof(
        logits="bit for bit" if difference == 0 else within,
        logits_difference=difference,
        cached_difference=cached,
        cached_difference_unpruned=reference.control,
        cached_tolerance=PACKED_TOLERANCE if max(cached, reference.control) > CACHED_TOLERANCE else CACHED_TOLERANCE,
        missing_keys=0,
        unexpected_keys=len(info["unexpected_keys"]),
        dtype=str(reference.dtype).removeprefix("torch."),
        tokens=probe,
        layered=layered,
        changed_weights=len(patch or {}),
    )


def _logits_of_written(pruned: nn.Module, reference: "_Reference", *, exact: bool) -> Tensor:
    try:
        return _logits_as(pruned, reference.dtype, reference.tokens) if exact else _logits(pruned, reference.tokens)
    except Exception as error:  # constants by layer that no config field holds
        raise UserError(
            f"the written model does not run ({type(error).__name__}: {one_line(error)}): nothing was kept"
        ) from error


def _tolerated(
    model: Model, reference: "_Reference", save_dtype: torch.dtype | None, patch: Patch | None
) -> torch.dtype:
    """The dtype whose tolerance counts: that of the stored weights where only the written ones were rounded."""
    own = model.checkpoint.config.dtype
    rounded = patch or save_dtype not in (None, own)
    return save_dtype or own or reference.dtype if reference.widened and rounded else reference.dtype


class _Reference(NamedTuple):
    """What the written model has to be: logits of the virtual removal, and what the dense model does as control."""

    tokens: Tensor
    logits: Tensor
    dtype: torch.dtype
    control: float  # how far its cached decoding is from uncached
    unexpected: set[str]  # weights that it ignores
    widened: bool  # a layered model was opened in float32


def _reference(
    model: Model,
    removal: Removal,
    patch: Patch,
    open_module: Callable[..., tuple[nn.Module, dict]],
    save_dtype: torch.dtype | None,
    probe: tuple[int, int],
) -> _Reference:
    """Open the dense model, remove virtually, and close it again."""
    dense, info = open_module(save_dtype)
    check_whole(model.checkpoint.source, info)
    if "close" not in info:  # a layered one is seen when it is opened
        check_causal(dense)
    stack = model.outline.of(dense)
    dtype = dense.dtype  # the check of the cache turns the model into fp32
    tokens = sound_tokens(dense, dry_tokens(model.vocabulary, *probe))
    wide = removal.narrows and "close" not in info
    widened = removal.narrows and not wide and model.checkpoint.quantised is None
    if widened:
        info["close"]()
        dense, info = open_module(torch.float32, lean=tokens)
        stack, dtype = model.outline.of(dense), torch.float32
    try:
        with patched(dense, patch), without(stack, removal, model.parts_for(removal)):
            logits, dtype = _wide_logits(model, dense, tokens) if wide else (_logits(dense, tokens), dtype)
        if not torch.isfinite(logits).all():
            raise UserError(
                "the virtually pruned model yields NaN or infinite logits; another removal or dtype may help"
            )
    except (
        RuntimeError
    ) as error:  # shapes that no longer fit; what is missing altogether is refused by the removal itself
        reason = f"other layers need what they make ({one_line(error)})"
        raise Refusal(f"the model does not run without {removal.words}: {reason}") from error
    del stack
    control, info = _cached_difference(dense, open_module, tokens, "the dense model", info)
    return _Reference(tokens, logits, dtype, control, set(info["unexpected_keys"]), widened)


def _wide_logits(model: Model, module: nn.Module, tokens: Tensor) -> tuple[Tensor, torch.dtype]:
    """Logits in float64, which the module becomes, and that dtype; in float32 where it does not fit or run."""
    if 8 * model.record.parameters <= RESIDENT_SHARE * total_memory(model.device):
        try:
            return _logits_as(module, torch.float64, tokens), torch.float64
        except RuntimeError:  # some kernels know no float64
            pass
    return _logits_as(module, torch.float32, tokens), torch.float32


def _logits_as(module: nn.Module, dtype: torch.dtype, tokens: Tensor) -> Tensor:
    """Logits of a module that becomes of a dtype; in float64, unknown to grouped products, experts run one by one."""
    before = getattr(module.config, "_experts_implementation", None)
    alone = dtype == torch.float64 and before and hasattr(module, "set_experts_implementation")
    if alone:
        module.set_experts_implementation("eager")
    try:
        return _logits(module.to(dtype), tokens)
    finally:
        if alone:
            module.set_experts_implementation(before)


def _too_wide(model: Model) -> bool:
    """Whether a model that is resident would not be as fp32, in which the cache is checked, and can be read layer by
    layer instead.
    """
    if (
        4 * model.record.parameters <= RESIDENT_SHARE * total_memory(model.device)
        or model.checkpoint.quantised is not None
    ):
        return False
    return not shared_tensors(model.checkpoint.shapes, model.outline.name)


def _open(
    checkpoint: Checkpoint, dtype: torch.dtype | None, *, device: str, layered: bool, lean: Tensor | None = None
) -> tuple[nn.Module, dict]:
    """The model of a checkpoint and the report of its loading, which for a layered one grows as layers are read."""
    if not layered:
        return checkpoint.load_reporting(dtype=dtype, device=device)
    trust = checkpoint.trust_remote_code
    model = Model(checkpoint.folder, dtype=dtype, device=device, trust_remote_code=trust, layered=True, lean=lean)
    return model.module, {"unexpected_keys": model.onloader.unexpected, "close": model.onloader.close}


def _cached_difference(
    module: nn.Module, open_module: Callable[..., tuple[nn.Module, dict]], tokens: Tensor, who: str, info: dict
) -> tuple[float, dict]:
    """``cached_difference`` of a model in fp32, which a resident one becomes in place.

    A layered one is opened as, and closed.

    Packed weights cannot be made fp32: such a model is compared as it is, more coarsely.
    """
    if "close" not in info:
        if getattr(module, "is_quantized", False):
            return cached_difference(module, tokens, who, PACKED_TOLERANCE), info
        return cached_difference(module.float(), tokens, who), info
    info["close"]()  # both need not fit
    module, info = open_module(torch.float32, lean=tokens)
    difference = cached_difference(module, tokens, who)
    info["close"]()
    return difference, info


@torch.no_grad()
def _logits(model: nn.Module, tokens: Tensor) -> Tensor:
    return model(input_ids=tokens, use_cache=False).logits


def _check_unexpected(info: dict, sources: dict[str, str], control: set[str]) -> None:
    """Raise if the written model has weights without a place, but for those that the dense model ignores too."""
    new = {sources.get(key, key) for key in info["unexpected_keys"]} - control
    if new:
        raise UserError(f"the written model has weights that its config does not know ({min(new)}): nothing was kept")


def _check_logits(wanted: Tensor, got: Tensor, dtype: torch.dtype) -> float:
    """The largest difference as a share of the largest logit; raises where it is beyond the dtype's tolerance."""
    if torch.equal(wanted, got):
        return 0.0
    difference = float((wanted.float() - got.float()).abs().max() / wanted.float().abs().max())
    if not difference <= LOGITS_TOLERANCE.get(dtype, 1e-4):
        raise UserError(
            f"the written model is not the intended one (logits differ by {difference:.2g} of the largest): "
            "its architecture depends on the layer index in a way that files cannot express; nothing was kept"
        )
    return difference


class _ForceTokens(LogitsProcessor):
    """Makes generation follow given tokens."""

    def __init__(self, tokens: Tensor):
        self.tokens = tokens

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        wanted = self.tokens[:, input_ids.shape[1]]
        return torch.full_like(scores, -torch.inf).scatter(1, wanted[:, None], 0.0)


@contextlib.contextmanager
def _neutral(model: nn.Module) -> Iterator[None]:
    """Generation without the model's own defaults.

    End tokens, stop strings, sampling, several sequences, penalties, kinds of cache.
    """
    before = getattr(model, "generation_config", None)
    model.generation_config = GenerationConfig()
    try:
        yield
    finally:
        model.generation_config = before


@torch.no_grad()
def _decode(model: nn.Module, tokens: Tensor, who: str, *, cached: bool) -> Tensor:
    """Logits (batch, position, token) of generating the given tokens after a prefix."""
    settings = GenerationConfig(
        max_new_tokens=tokens.shape[1] - PROBE_PREFIX,
        do_sample=False,
        use_cache=cached,
        output_logits=True,
        return_dict_in_generate=True,
        pad_token_id=0,
    )
    steps = tokens.shape[1] - PROBE_PREFIX
    try:
        with quiet(), _neutral(model):
            result = model.generate(
                input_ids=tokens[:, :PROBE_PREFIX],
                attention_mask=torch.ones_like(tokens[:, :PROBE_PREFIX]),
                generation_config=settings,
                logits_processor=LogitsProcessorList([_ForceTokens(tokens)]),
            )
    except Exception as error:  # caches fail in many ways
        reason = f"{who} cannot generate with{'' if cached else 'out'} its cache ({one_line(error)})"
        raise UserError(f"{reason}: nothing was kept; {argument('verify', False)} writes it all the same") from error
    if len(result.logits) != steps:
        raise UserError(
            f"{who} stops generating after {len(result.logits)} of {steps} tokens: nothing was kept; "
            f"{argument('verify', False)} writes it"
        )
    return torch.stack(result.logits, dim=1).float()


@torch.no_grad()
def cached_difference(model: nn.Module, tokens: Tensor, who: str, tolerance: float = CACHED_TOLERANCE) -> float:
    """How far cached decoding of given tokens is from uncached, as a share of the largest logit, in fp32.

    One row is decoded. Uncached is one forward; where generation without cache differs from that too, it is what
    counts.

    The model should be in fp32: bf16 rounding alone can exceed any useful tolerance.

    Raises:
        UserError: beyond the tolerance, or decoding fails.
    """
    tokens = tokens[:1]  # some caches know one row only
    full = _logits(model, tokens)[:, PROBE_PREFIX - 1 : -1].float()
    step = _decode(model, tokens, who, cached=True)
    difference = float((full - step).abs().max() / full.abs().max())
    if (
        not difference <= tolerance
    ):  # generation may number positions otherwise than a bare forward: ask it without cache
        full = _decode(model, tokens, who, cached=False)
        difference = float((full - step).abs().max() / full.abs().max())
    if not difference <= tolerance:
        raise UserError(
            f"{who} decodes differently with its cache than without (by {difference:.2g} of the largest logit): "
            f"nothing was kept; {argument('verify', False)} writes it all the same"
        )
    return difference
