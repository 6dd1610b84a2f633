"""Export: a checkpoint in another format, converted, completed and proven."""

import os
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..anatomy.custom import is_custom
from ..anatomy.model import Model
from ..anatomy.modeling_shallower import DECI_TYPE
from ..anatomy.quantised import refuse
from ..artifacts import published, save
from ..artifacts.exported import Exported, ExportProof
from ..errors import Refusal, UserError, argument
from ..runtime.progress import parts, say
from ..settings.export import DEFAULT_TYPE, FEWER_BITS, TYPES, ExportSettings
from ..storage.gguf import SUFFIX, read_gguf
from ..storage.ownership import check_recorded, record_place
from ..storage.paths import place
from ..surgery.convert import convert, converter, missing_patterns, quantise, quantiser, with_changes
from ..surgery.gguf_rules import layer_count
from ..surgery.llama_cpp import PACKAGE, llama_cpp_version
from .common import resolve_settings
from .export_like import Written, written_like
from .export_proof import proof_of_conversion, proof_of_copy, rounding_cost


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
    _check_provable(settings)
    made, whole = (out.with_name(f".{out.stem}.{os.getpid()}.{name}{SUFFIX}") for name in ("made", "whole"))
    try:
        with parts({"convert": 1.0, **({"prove": 1.0} if settings.verify else {})}) as part:
            started = time.monotonic()
            with part("convert"):
                written = _written(opened, settings, script, whole)
            seconds = time.monotonic() - started
            proof = None
            if settings.verify:
                with part("prove"):
                    proof = _proof(opened, settings, written, whole)
            if program is not None:
                quantise(program, whole, made, settings.type)
                proof = proof and replace(proof, rounded=rounding_cost(opened, made))
            else:
                whole.replace(made)
            result = Exported(
                model=opened.record,
                file=out.name,
                to="gguf",
                type=settings.type or (DEFAULT_TYPE if written.copied is None else ""),
                storage=read_gguf(made).storage,
                bytes=made.stat().st_size,
                changes=written.changes,
                copied=written.copied,
                proof=proof,
                seconds=seconds,
            )
            record_place(out).unlink(missing_ok=True)  # an older one does not speak of the new file
            made.replace(out)
            save(published(result), record_place(out))
    finally:
        made.unlink(missing_ok=True)
        whole.unlink(missing_ok=True)
    return result


def _written(model: Model, settings: ExportSettings, script: Path | None, whole: Path) -> Written:
    """Write the file, copied or converted, before it is rounded to fewer bits."""
    if script is None:
        kind = settings.type and settings.type.upper()
        return written_like(model, settings.like, whole, kind, verify=settings.verify)
    kind = settings.type if settings.type in TYPES else DEFAULT_TYPE
    return Written(_converted(model, script, whole, kind))


def _proof(model: Model, settings: ExportSettings, written: Written, file: Path) -> ExportProof:
    """Proof of what was written."""
    if written.copied is not None:
        return proof_of_copy(model, file, written.roundings)
    return proof_of_conversion(model, file, exact=settings.type == "f32")


def _converted(model: Model, script: Path, made: Path, kind: str) -> list[str]:
    """Convert a checkpoint, and add what the converter leaves out; says what."""
    converted = made.with_suffix(f".converted{SUFFIX}")
    folder = model.checkpoint.folder
    try:
        say(f"converting {folder} by {script}")
        convert(script, folder, converted, kind, deci=is_custom(model.checkpoint.raw))
        header = read_gguf(converted)
        if layer_count(header) != model.record.layers:
            raise Refusal(f"the converter has written {layer_count(header)} layers of {model.record.layers}")
        changes = missing_patterns(header, model.checkpoint.config)
        if changes:
            with_changes(header, changes, made)
        else:
            converted.replace(made)
    finally:
        converted.unlink(missing_ok=True)
    return [f"{key} = {value.value}" for key, value in changes.items()]


def _check_target(out: Path, settings: ExportSettings) -> None:
    """Raise a UserError unless a file may be written at ``out``."""
    if out.suffix != SUFFIX:
        raise UserError(f"the name of a {SUFFIX} file is needed", out=out)
    if settings.like is not None and out.resolve() == settings.like.resolve():
        raise UserError("it is the file that is copied from: give another name", out=out)
    check_recorded(out, "exported", overwrite=settings.overwrite)
    out.parent.mkdir(parents=True, exist_ok=True)


def _check_provable(settings: ExportSettings) -> None:
    """Raise a UserError where a proof is asked for and llama.cpp is not there."""
    if settings.verify and llama_cpp_version() is None:
        raise UserError(
            f"the file is proven in llama.cpp: pip install {PACKAGE} (extra [export]), or leave the proof out by "
            f"{argument('verify', False)}"
        )


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
