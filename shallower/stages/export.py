"""Export: a checkpoint in another format, converted, completed and proven."""

import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..anatomy.custom import is_custom
from ..anatomy.model import Model
from ..anatomy.quantised import refuse
from ..artifacts import published, save
from ..artifacts.exported import Exported, ExportProof
from ..errors import Refusal, UserError, argument
from ..runtime.progress import parts, say
from ..settings.export import ExportSettings
from ..storage.gguf import SUFFIX, read_gguf
from ..storage.ownership import check_recorded, record_place
from ..storage.paths import place
from ..surgery.convert import convert, converter, missing_patterns, with_changes
from ..surgery.gguf_proof import probe_prompts, vocabulary_size
from ..surgery.gguf_rules import layer_count
from ..surgery.llama_cpp import PACKAGE, llama_cpp_version, log_probabilities
from .common import resolve_settings

EXACT, CLOSE = 1e-4, 0.05  # of an f32 file: relative difference; of other types: KL divergence in nats


def export(model: str | Path, *, out: str | Path, settings: ExportSettings | None = None, **plain: Any) -> Exported:
    """Write a checkpoint as a .gguf file by llama.cpp's own converter, add what that leaves out, and prove it: in
    llama.cpp the file gives what the model gives in transformers.

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
    script = converter(settings.llama_cpp)
    if settings.verify and llama_cpp_version() is None:
        raise UserError(
            f"the file is proven in llama.cpp: pip install {PACKAGE} (extra [export]), or leave the proof out by "
            f"{argument('verify', False)}"
        )
    converted, finished = (out.with_name(f".{out.stem}.{name}{SUFFIX}") for name in ("converted", "finished"))
    costs = {"convert": 1.0, "prove": 1.0 if settings.verify else 0}
    try:
        with parts({name: cost for name, cost in costs.items() if cost}) as part:
            started = time.monotonic()
            with part("convert"):
                say(f"converting {folder} by {script}")
                convert(script, folder, converted, settings.type)
                header = read_gguf(converted)
                if layer_count(header) != opened.record.layers:
                    raise Refusal(f"the converter has written {layer_count(header)} layers of {opened.record.layers}")
                changes = missing_patterns(header, opened.checkpoint.config)
                made = with_changes(header, changes, finished) if changes else converted
            seconds = time.monotonic() - started
            proof = None
            if settings.verify:
                with part("prove"):
                    proof = _proof(opened, made, settings.type)
            made.replace(out)
    finally:
        for path in (converted, finished):
            path.unlink(missing_ok=True)
    result = Exported(
        model=opened.record,
        file=out.name,
        to="gguf",
        type=settings.type,
        bytes=out.stat().st_size,
        changes=[f"{key} = {value.value}" for key, value in changes.items()],
        proof=proof,
        seconds=seconds,
    )
    save(published(result), record_place(out))
    return result


def _check_target(out: Path, settings: ExportSettings) -> None:
    """Raise a UserError unless a file may be written at ``out``."""
    if out.suffix != SUFFIX:
        raise UserError(f"the name of a {SUFFIX} file is needed", out=out)
    check_recorded(out, "exported", overwrite=settings.overwrite)
    out.parent.mkdir(parents=True, exist_ok=True)


def _check_plain(model: Model) -> None:
    """Raise a Refusal for what the converter would take for something else."""
    checkpoint = model.checkpoint
    if is_custom(checkpoint.raw):
        raise Refusal(
            f"{checkpoint.source} is in the custom form, which llama.cpp does not know: write it in the form deci, or "
            "remove whole layers"
        )
    refuse(checkpoint.source, checkpoint.quantised, "export the unquantised model, as the type that you want")
    if checkpoint.packed[0]:
        raise Refusal(f"{checkpoint.source} is a {SUFFIX} file already: prune writes another one of it")


def _proof(model: Model, file: Path, kind: str) -> ExportProof:
    """Proof of the file.

    Raises:
        Refusal: it gives other values than the model.
    """
    header = read_gguf(file)
    prompts = probe_prompts(header)
    found = log_probabilities(file, prompts, vocabulary_size(header), exact=True)
    with torch.no_grad():
        logits = [model.module(torch.tensor([prompt])).logits[0, -1] for prompt in prompts]
    wanted = torch.stack(logits).double().log_softmax(-1).numpy()
    found = found[:, : wanted.shape[1]]
    divergence = float((np.exp(wanted) * (wanted - found)).sum(-1).max().clip(0))
    difference = float(np.abs(found - wanted).max() / np.abs(wanted).max())
    proof = ExportProof(
        by=f"llama.cpp ({PACKAGE} {llama_cpp_version()})",
        difference=difference,
        divergence=divergence,
        same_next=bool((found.argmax(-1) == wanted.argmax(-1)).all()),
        prompts=[*map(len, prompts)],
    )
    if not (difference <= EXACT if kind == "f32" else divergence <= CLOSE):
        raise Refusal(
            f"llama.cpp gives other values for the file than transformers for the model (difference {difference:.3g}, "
            f"KL {divergence:.3g} nats): it computes {header.architecture} with {layer_count(header)} layers "
            "otherwise, or the converter has left something out"
        )
    return proof
