"""Write a pruned checkpoint file to file, without building the model; it counts only once it is proven (``proof``)."""

import json
import re
import shutil
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import PreTrainedConfig

from .anatomy.config import Solved
from .anatomy.loading import FLOATS, open_checkpoint, quiet
from .anatomy.model import SIDE_FILE, Model
from .anatomy.names import Place, names_in_model
from .anatomy.patch import Edit, Patch
from .artifacts import Plan, Pruned, dumps
from .errors import DiskError, Refusal, UserError
from .files import new_folder
from .journal import Journal, journaled
from .progress import say
from .proof import verify
from .provenance import versions
from .quantities import bytes_of
from .reporting.card import CARD, write_card
from .shards import Content, Cut, stored, write_shards
from .tensors import INDEX, ITEM_BYTES, PICKLES, Entry

# of an earlier repair or healing, of the model that is written anew now
PICTURES = ("compensation.json", "compensation.png", "healing.json", "healing.png", "metrics.jsonl")


@dataclass(frozen=True)
class Renaming:
    """Where each tensor of the pruned checkpoint comes from (new name -> old name), and how many layers beyond the stack are left out."""

    sources: dict[str, str]
    dropped_beyond: int


def checked_removal(model: Model, plan: Plan, out: Path) -> tuple[Solved, Renaming]:
    """The config and the names of what stays, before any long work begins.

    Raises:
        Refusal: the config cannot describe the kept layers.
        UserError: ``out`` holds the model itself, or the files hold more layers than the config says.
    """
    checkpoint = model.checkpoint
    if checkpoint.folder.resolve().is_relative_to(out.resolve()):
        raise UserError(f"--out {out} is or holds the model itself; give another folder")
    solved = model.solver.solve(tuple(plan.removed))
    renaming = rename(checkpoint.tensors, model.solver.places(), plan.kept, plan.model.layers, model.solver.moved(plan.kept))
    announced = getattr(checkpoint.config.get_text_config(), "num_nextn_predict_layers", None) or 0
    if renaming.dropped_beyond > announced:
        found = plan.model.layers + renaming.dropped_beyond
        raise UserError(f"{checkpoint.source} has the weights of {found} layers and a config for {plan.model.layers}: mend one of them")
    return solved, renaming


def prune_files(model: Model, plan: Plan, out: str | Path, **options) -> Pruned:
    """Write the pruned model to ``out``; it appears there only when complete and, unless asked otherwise, proven.

    Args:
        model: the unpruned model.
        plan: which layers go, in the model's own numbering.
        out: the folder to write.
        patch: changes of kept layers' weights, in the model's own numbering.
        report: what is to be told about them in ``shallower.json``.
        files: further files by name, such as pictures.
        overwrite: replace a non-empty folder.
        verify: reload and compare (see ``verify``).
        save_dtype: convert floating tensors (torch dtype); None keeps each one's own.
        max_shard_size: such as ``5GB``.
    Raises:
        Refusal: the config cannot describe the kept layers.
        UserError: the disk, or the proof failed; nothing is left at ``out``.
    """
    overwrite, check, patch = options.get("overwrite", False), options.get("verify", True), options.get("patch") or {}
    save_dtype, shard = options.get("save_dtype"), bytes_of(str(options.get("max_shard_size", "5GB")))
    checkpoint = model.checkpoint
    out = Path(out)
    if not check and getattr(checkpoint.config, "is_decoder", None) is False:
        _ = model.module  # loading tells an encoder from a decoder; this config alone does not
    solved, renaming = checked_removal(model, plan, out)
    cuts = {name: Cut(axis, plan.model.layers, tuple(plan.kept)) for name, axis in model.solver.on_disk(solved.tables).items()}
    key = {"write": list(plan.removed), "model": checkpoint.fingerprint, "dtype": str(save_dtype), "shard": shard, "versions": versions()}
    contents = {new: stored(checkpoint.tensors[old], cuts.get(old)) for new, old in renaming.sources.items()}
    contents = {name: converted(content, save_dtype) for name, content in contents.items()}
    for name, edit in edits_on_disk(model, patch, renaming.sources).items():
        contents[name] = changed(contents[name], edit)
        key["patch"] = key.get("patch", "") + edit.digest()
    with journaled(out):
        journal = Journal(key)
        try:
            with new_folder(out, overwrite=overwrite, at=journal.folder) as folder:
                copy_side_files(checkpoint.folder, folder, python=checkpoint.trust_remote_code)
                write_config(solved.config, checkpoint.config, renaming, plan, folder, save_dtype)
                _write(folder, contents, shard, journal, out)
                proof = (
                    verify(model, plan, folder, renaming.sources, save_dtype=save_dtype, patch=patch)
                    if check
                    else {"skipped": "--no-verify was given"}
                )
                written = open_checkpoint(folder, trust_remote_code=checkpoint.trust_remote_code)
                changes = _changes(solved, renaming)
                pruned = Pruned(plan, proof, plan.original(), written.fingerprint, changes, options.get("report"))
                for name, content in options.get("files", {}).items():
                    (folder / name).write_bytes(content)
                (folder / SIDE_FILE).write_text(dumps(pruned), encoding="utf-8")
                write_card(folder, pruned, out.resolve().name, source=checkpoint.folder, hub_id=checkpoint.hub_id)
        except Exception:
            journal.drop()
            raise
    return pruned


def _write(folder: Path, contents: dict[str, Content], shard: int, journal: Journal, out: Path) -> None:
    """Write the weights, going on where an interrupted process stood."""
    total, written = sum(content.bytes for content in contents.values()), journal.done.get("written", {})
    if journal.resumed:
        say(f"resuming at {sum(written.values()) / 1e9:.2f} of {total / 1e9:.2f} GB")
    _check_space(out, total - sum(written.values()))
    write_shards(folder, contents, max_bytes=shard, written=written, mark=lambda file, at: journal.note("written", file, at))


def _changes(solved: Solved, renaming: Renaming) -> list[str]:
    beyond = [f"{renaming.dropped_beyond} prediction layers after the stack left out"] if renaming.dropped_beyond else []
    return [*solved.changes, *beyond]


def rename(
    tensors: dict[str, Entry], places: dict[str, Place], kept: list[int], layers: int, moved: dict[str, int] | None = None
) -> Renaming:
    """Tensor names of the kept layers with their new numbers; all other tensors keep theirs.

    Prediction layers numbered after the stack no longer fit and are left out.

    Args:
        places: the place of each tensor that has a layer.
        moved: name of a tensor -> the kept layer that takes it over from its own, where layers share it.
    Raises:
        Refusal: no tensor belongs to a layer.
    """
    if not places:
        raise Refusal(f"the weight files name no stack of {layers} layers: shallower cannot tell which tensors belong to which layer")
    new = {old: number for number, old in enumerate(kept)}
    sources, beyond = {}, set()
    for name in tensors:
        if name not in places:
            sources[name] = name
            continue
        layer = (moved or {}).get(name, places[name].layer)
        if layer >= layers:
            beyond.add(layer)
        elif layer in new:
            sources[places[name].name(new[layer])] = name
    return Renaming(sources, len(beyond))


def write_config(
    config: PreTrainedConfig, dense: PreTrainedConfig, renaming: Renaming, plan: Plan, folder: Path, save_dtype: torch.dtype | None
) -> None:
    """Write ``config.json``, with layer numbers inside a quantisation config renumbered and absent prediction layers unset."""
    config.architectures = dense.architectures
    config.dtype = save_dtype or dense.dtype
    with quiet():
        config.save_pretrained(folder)
    path = folder / "config.json"
    content = json.loads(path.read_text(encoding="utf-8"))
    if renaming.dropped_beyond and content.get("num_nextn_predict_layers"):
        content["num_nextn_predict_layers"] = 0
    if "quantization_config" in content:
        content["quantization_config"] = _renumber(content["quantization_config"], plan.kept)
    path.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def _renumber(value, kept: list[int]):
    """Layer numbers in module names (``…layers.12.mlp``) of the kept layers renumbered, those of removed layers dropped."""
    if isinstance(value, dict):
        items = ((_renumber(key, kept), _renumber(item, kept)) for key, item in value.items())
        return {key: item for key, item in items if key is not None}
    if isinstance(value, list):
        return [item for item in (_renumber(entry, kept) for entry in value) if item is not None]
    if isinstance(value, str) and (match := re.search(r"(?<=layers[.])(\d+)(?=[.]|$)", value)):
        index = int(match[1])
        return value[: match.start()] + str(kept.index(index)) + value[match.end() :] if index in kept else None
    return value


def copy_side_files(source: Path, target: Path, *, python: bool = False) -> None:
    """Carry over tokenizer, chat template, generation config, licence and other small files; no weights, no model card (see ``card``)."""
    weights = {path for pattern in ("*.safetensors", "*.gguf", "*.h5", "*.msgpack", "*.onnx", *PICKLES) for path in source.glob(pattern)}
    skipped = {"config.json", INDEX, SIDE_FILE, CARD, "pytorch_model.bin.index.json", *PICTURES}
    for path in sorted(source.iterdir()):
        if not path.is_file() or path in weights or path.name in skipped or path.name.startswith("."):
            continue
        if path.suffix != ".py" or python:
            shutil.copyfile(path, target / path.name)


def edits_on_disk(model: Model, patch: Patch, sources: dict[str, str]) -> dict[str, Edit]:
    """The changes by the names of the tensors to write.

    Raises:
        Refusal: a changed weight is not in the files, or in another form than in memory.
    """
    if not patch:
        return {}
    tensors, shapes = model.checkpoint.tensors, {name: tuple(weight.shape) for name, weight in model.solver.dense.state_dict().items()}
    known = names_in_model(model.solver.dense, tensors)
    new = {old: name for name, old in sources.items()}
    found, reached = {}, set()
    for old, name in known.items():
        if name in patch and old in new:
            found[new[old]] = patch[name].on_disk(old, shapes[name], tensors[old].shape)
            reached.add(name)
    if missing := sorted(patch.keys() - reached):
        raise Refusal(f"{missing[0]} is not in the weight files under a name that tells it apart, so it cannot be changed there")
    return found


def changed(content: Content, edit: Edit) -> Content:
    """The same tensor with an edit applied; it is in memory as a whole while it is written."""
    kind = FLOATS[content.dtype]

    def pieces():
        raw = bytearray().join(content.pieces())
        yield edit.of(torch.frombuffer(raw, dtype=kind).view(content.shape)).view(torch.uint8).numpy().tobytes()

    return Content(content.dtype, content.shape, content.bytes, pieces)


def _check_space(out: Path, needed: int) -> None:
    place = out.absolute().parent
    free = shutil.disk_usage(place).free
    if free < needed:
        raise DiskError(f"not enough space for {needed / 1e9:.2f} GB at {place} ({free / 1e9:.2f} GB free): free some or write elsewhere")


def converted(content: Content, dtype: torch.dtype | None) -> Content:
    """The same tensor in another floating dtype, a piece at a time; None, and tensors that are no floats, stay as they are."""
    target = next((name for name, kind in FLOATS.items() if kind == dtype), content.dtype)
    if target == content.dtype or content.dtype not in FLOATS:
        return content
    kind = FLOATS[content.dtype]

    def pieces():
        for raw in content.pieces():
            yield torch.frombuffer(bytearray(raw), dtype=kind).to(dtype).view(torch.uint8).numpy().tobytes()

    return Content(target, content.shape, content.bytes // ITEM_BYTES[content.dtype] * ITEM_BYTES[target], pieces)
