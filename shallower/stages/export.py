"""Export: a checkpoint in another format, converted, completed and proven."""

import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..anatomy.custom import is_custom
from ..anatomy.model import Model
from ..anatomy.modeling_shallower import DECI_TYPE
from ..anatomy.quantised import refuse
from ..artifacts import published, save
from ..artifacts.exported import Exported, ExportProof
from ..errors import Refusal, UserError, argument
from ..runtime.progress import parts, say
from ..settings.export import DEFAULT_TYPE, FEWER_BITS, ExportSettings
from ..storage.gguf import SUFFIX, read_gguf
from ..storage.ownership import check_recorded, record_place
from ..storage.paths import place
from ..surgery.convert import convert, converter, missing_patterns, quantise, quantiser, with_changes
from ..surgery.gguf_proof import probe_prompts, vocabulary_size
from ..surgery.gguf_rules import layer_count
from ..surgery.gguf_unpacked import log_probabilities
from ..surgery.llama_cpp import PACKAGE, judged, llama_cpp_version
from .common import resolve_settings
from .export_like import written_like

TEXTS = (
    "The ship left at 7:45, didn't it?",
    "def add(a, b):\n\treturn a + b  # 12345",
    "Überraschung in 北京: naïve!",
)
EXACT = 1e-4  # of an f32 file: relative difference
CLOSE, LOOSE = 0.05, 0.1  # of other types, and of those of few bits: KL divergence in nats


def export(model: str | Path, *, out: str | Path, settings: ExportSettings | None = None, **plain: Any) -> Exported:
    """Write a checkpoint as a .gguf file by llama.cpp's own converter, add what that leaves out, and prove it: in
    llama.cpp the file gives what the model gives in transformers.

    With ``like``, the .gguf file that the model was made of, nothing is converted: header, tokenizer and all weights
    that no repair or training has changed are copied from it.

    Example: ``shallower.export("my-model-shallow", out="small.gguf", type="q8_0", llama_cpp="llama.cpp")``.

    Args:
        model: a folder in a plain form.
        settings: or its fields as keywords.
    Raises:
        UserError: no converter, a model that it does not take, or a file that gives other values; nothing is left at
            ``out``.
    """
    (settings,) = resolve_settings(plain, "export", settings=(ExportSettings, settings))
    out, folder = place(out), place(model)
    _check_target(out, settings)
    opened = Model(folder, dtype="fp32", device="cpu", layered=False)
    _check_plain(opened)
    script = converter(settings.llama_cpp) if settings.like is None else None
    program = quantiser(settings.llama_cpp) if settings.type in FEWER_BITS else None
    if settings.verify and llama_cpp_version() is None:
        raise UserError(
            f"the file is proven in llama.cpp: pip install {PACKAGE} (extra [export]), or leave the proof out by "
            f"{argument('verify', False)}"
        )
    made = out.with_name(f".{out.stem}.made{SUFFIX}")
    costs = {"convert": 1.0, "prove": 1.0 if settings.verify else 0}
    copied, proof = None, None
    try:
        with parts({name: cost for name, cost in costs.items() if cost}) as part:
            started = time.monotonic()
            with part("convert"):
                if script is None:
                    kind = settings.type and settings.type.upper()
                    copied, changes = written_like(opened, settings.like, made, kind, verify=settings.verify)
                else:
                    changes = _converted(opened, script, made, settings.type or DEFAULT_TYPE, program)
            seconds = time.monotonic() - started
            if settings.verify:
                with part("prove"):
                    how = {"exact": settings.type == "f32", "rounded": settings.type in FEWER_BITS}
                    how = how if copied is None else {"rounded": True, "words": False}
                    proof = _proof(opened, made, **how)
            made.replace(out)
    finally:
        made.unlink(missing_ok=True)
    result = Exported(
        model=opened.record,
        file=out.name,
        to="gguf",
        type=(settings.type or DEFAULT_TYPE) if copied is None else read_gguf(out).storage,
        bytes=out.stat().st_size,
        changes=changes,
        copied=copied,
        proof=proof,
        seconds=seconds,
    )
    save(published(result), record_place(out))
    return result


def _converted(model: Model, script: Path, made: Path, kind: str, program: Path | None) -> list[str]:
    """Convert a checkpoint, add what the converter leaves out, and round it further where a quantiser is given; says
    what was added.
    """
    converted, whole = (made.with_suffix(f".{name}{SUFFIX}") for name in ("converted", "whole"))
    folder = model.checkpoint.folder
    try:
        say(f"converting {folder} by {script}")
        convert(
            script, folder, converted, kind if program is None else DEFAULT_TYPE, deci=is_custom(model.checkpoint.raw)
        )
        header = read_gguf(converted)
        if layer_count(header) != model.record.layers:
            raise Refusal(f"the converter has written {layer_count(header)} layers of {model.record.layers}")
        changes = missing_patterns(header, model.checkpoint.config)
        if changes:
            with_changes(header, changes, whole)
        else:
            converted.replace(whole)
        if program is not None:
            quantise(program, whole, made, kind)
        else:
            whole.replace(made)
    finally:
        converted.unlink(missing_ok=True)
        whole.unlink(missing_ok=True)
    return [f"{key} = {value.value}" for key, value in changes.items()]


def _check_target(out: Path, settings: ExportSettings) -> None:
    """Raise a UserError unless a file may be written at ``out``."""
    if out.suffix != SUFFIX:
        raise UserError(f"the name of a {SUFFIX} file is needed", out=out)
    check_recorded(out, "exported", overwrite=settings.overwrite)
    out.parent.mkdir(parents=True, exist_ok=True)


def _check_plain(model: Model) -> None:
    """Raise a Refusal for what the converter would take for something else."""
    checkpoint = model.checkpoint
    if is_custom(checkpoint.raw) and checkpoint.raw.get("model_type") != DECI_TYPE:
        raise Refusal(
            f"{checkpoint.source} is in the custom form, which llama.cpp does not know: write it in the form deci, or "
            "remove whole layers"
        )
    refuse(checkpoint.source, checkpoint.quantised, "export the unquantised model, as the type that you want")
    if checkpoint.packed[0]:
        raise Refusal(f"{checkpoint.source} is a {SUFFIX} file already: prune writes another one of it")


def _check_tokens(model: Model, found: list[list[int]]) -> None:
    """Raise a Refusal unless llama.cpp makes the same tokens of texts as the model's own tokenizer."""
    for text, tokens in zip(TEXTS, found, strict=True):
        own = model.tokenizer(text, add_special_tokens=False).input_ids
        if own != tokens:
            raise Refusal(
                f"the tokenizer that the converter has written makes other tokens of {text!r} ({tokens[:6]}) than the "
                f"model's own ({own[:6]}): the file would be wrong"
            )


def _proof(model: Model, file: Path, *, exact: bool = False, rounded: bool = False, words: bool = True) -> ExportProof:
    """Proof of the file.

    Args:
        exact: nothing in it is rounded.
        rounded: to so few bits that llama.cpp is held against what the file is unpacked to, and that is compared with
            the model.
        words: its tokenizer is compared too; that of a copy is the one of the file that the model was made of.
    Raises:
        Refusal: it gives other values than the model.
    """
    header = read_gguf(file)
    prompts = probe_prompts(header)
    judge = judged(file, prompts, vocabulary_size(header), exact=True, texts=TEXTS)
    if words:
        _check_tokens(model, judge.tokens)
    with torch.no_grad():
        logits = [model.module(torch.tensor([prompt])).logits[0, -1] for prompt in prompts]
    meant = torch.stack(logits).double().log_softmax(-1).numpy()
    wanted = log_probabilities(file, (), prompts) if rounded else meant
    found = judge.values[:, : wanted.shape[1]]
    divergence, difference = _divergence(wanted, found), float(np.abs(found - wanted).max() / np.abs(wanted).max())
    proof = ExportProof(
        by=f"llama.cpp ({PACKAGE} {llama_cpp_version()})",
        difference=difference,
        divergence=divergence,
        rounded=_divergence(meant, wanted) if rounded else None,
        same_next=bool((found.argmax(-1) == meant.argmax(-1)).all()),
        prompts=[*map(len, prompts)],
    )
    if not (difference <= EXACT if exact else divergence <= (LOOSE if rounded else CLOSE)):
        raise Refusal(
            f"llama.cpp gives other values for the file than transformers for the model (difference {difference:.3g}, "
            f"KL {divergence:.3g} nats): it computes {header.architecture} with {layer_count(header)} layers "
            "otherwise, or the converter has left something out"
        )
    return proof


def _divergence(wanted: np.ndarray, found: np.ndarray) -> float:
    """KL divergence in nats, the largest of the prompts."""
    return float((np.exp(wanted) * (wanted - found)).sum(-1).max().clip(0))
