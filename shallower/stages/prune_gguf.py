"""Pruned .gguf files: a .gguf file without some layers, written by copying bytes and proven; no weight is decoded."""

from pathlib import Path
from typing import Any

from ..artifacts import ModelRecord, Plan, load, published, save
from ..artifacts.gguf import PrunedGguf
from ..errors import Refusal, UserError, argument
from ..planning.exchange import named_units
from ..planning.plans import check_same_model, plan_of
from ..settings.writing import Writing
from ..storage.gguf import SUFFIX, GgufHeader, fingerprint_of, origin_of, read_gguf
from ..storage.ownership import check_recorded, record_place
from ..storage.paths import place
from ..surgery.gguf_rules import LAYER, layer_count, original_layers
from ..surgery.gguf_writing import write_without


def prune_gguf(
    model: str | Path,
    plan: Plan | str | Path,
    *,
    out: str | Path,
    writing: Writing | None = None,
    repair: Any = None,
) -> PrunedGguf:
    """Write a .gguf file without the layers that a plan removes: bytes are copied, nothing is requantised, and the
    result is proven in llama.cpp where xllamacpp is installed, else in transformers.

    Example: ``shallower.prune("model.gguf", plan, out="small.gguf")``.

    Args:
        plan: a Plan, or the path of a plan.json; of whole layers.
        repair: tensors to be made anew (a ``RepairedGguf``), as ``prune`` with a compensation finds them.
    Raises:
        UserError: the plan is for another model, llama.cpp would get the result wrong, or the proof fails; nothing is
            left at ``out``.
    """
    writing = writing or Writing()
    out, source = place(out), place(model)
    check_target(out, source, overwrite=writing.overwrite)
    header = read_gguf(source)
    plan = load(place(plan), "plan") if isinstance(plan, (str, Path)) else plan
    record = gguf_record(header)
    check_same_model(plan.model, record, "the plan")
    if plan.units:
        raise Refusal(
            f"a {SUFFIX} file holds whole layers only, and the plan names parts ({next(iter(plan.units))}): give "
            f"{argument('out')} a folder, and export that"
        )
    remade = repair.tensors.remade if repair is not None else {}
    written = write_without(header, sorted(plan.removed), out, remade, verify=writing.verify)
    made = PrunedGguf(
        plan=plan,
        file=out.name,
        bytes_before=source.stat().st_size,
        bytes_after=out.stat().st_size,
        changes=written.changes,
        original=written.original,
        fingerprint=fingerprint_of(origin_of(read_gguf(out))),
        proof=written.proof,
        compensation=repair.report if repair is not None else None,
        rounding=repair.tensors.rounding if remade else None,
        seconds=written.seconds,
    )
    save(published(made), record_place(out))
    return made


def drop_gguf(model: str | Path, layers: Any) -> Plan:
    """A plan that removes exactly these layers of a .gguf file, of which only the header is read.

    Example: ``drop_gguf("model.gguf", "3-5")``.
    """
    record = gguf_record(read_gguf(place(model)))
    names = named_units(layers)
    parts = [name for name in names if not name.isdigit()]
    if parts:
        raise Refusal(f"a {SUFFIX} file holds whole layers only", layers=parts[0])
    numbers = [int(name) for name in names]
    if outside := [number for number in numbers if number >= record.layers]:
        raise UserError(f"the model has the layers 0 to {record.layers - 1}", layers=outside[0])
    if len({*numbers}) == record.layers:
        raise UserError(f"all {record.layers} layers are named; at least one must stay", layers=layers)
    return plan_of(record, numbers, "drop")


def gguf_record(header: GgufHeader, fingerprint: str | None = None) -> ModelRecord:
    """Record of the model in a .gguf file, from its header alone.

    Args:
        fingerprint: None: by the hash of the file, which is read.
    """
    count = layer_count(header)
    sizes, stored = [0] * count, [0] * count
    for tensor in header.tensors:
        if match := LAYER.match(tensor.name):
            sizes[int(match[1])] += tensor.count
            stored[int(match[1])] += tensor.end - tensor.start
    return ModelRecord(
        source=str(header.file),
        family=header.architecture,
        layers=count,
        parameters=header.parameters,
        layer_parameters=sizes,
        fingerprint=fingerprint_of(origin_of(header)) if fingerprint is None else fingerprint,
        original=original_layers(header),
        weight_bytes=header.bytes,
        layer_bytes=stored,
        storage=header.storage,
        packed_bytes=header.bytes,
        packed_storage=header.storage,
    )


def check_gguf_options(model: Any, out: Path, writing: Writing) -> None:
    """Raise a UserError for what a .gguf file is not written with, and unless one may be written at ``out``."""
    folder = f"give {argument('out')} a folder"
    if writing.save_dtype is not None:
        raise Refusal(f"a {SUFFIX} file keeps the types that it has: {folder}", save_dtype=writing.save_dtype)
    if writing.format not in ("auto", "plain"):
        raise Refusal(f"it speaks of folders, and {out} is a {SUFFIX} file: {folder}", format=writing.format)
    source = getattr(getattr(model, "checkpoint", None), "source", model)
    check_target(out, place(source), overwrite=writing.overwrite)


def check_target(out: Path, source: Path, *, overwrite: bool) -> None:
    """Raise a UserError unless a .gguf file may be written at ``out``: nothing is there, or one that we wrote."""
    if source.suffix != SUFFIX or not source.is_file():
        raise UserError(
            f"a {SUFFIX} file is made of a {SUFFIX} file, and {source} is none: give {argument('out')} a folder",
            out=out,
        )
    if out.resolve() == source.resolve():
        raise UserError("it is the file that is read: give another name", out=out)
    check_recorded(out, "pruned_gguf", overwrite=overwrite)
    out.parent.mkdir(parents=True, exist_ok=True)
