"""Checkpoint rewrite, file to file, without building the model.

The result counts only once it is proven (``proof``).
"""

import json
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from ..anatomy.config import Solved
from ..anatomy.config_file import Edited
from ..anatomy.custom import family_content
from ..anatomy.decoding import cache_growth
from ..anatomy.loading import Checkpoint, parse_dtype
from ..anatomy.model import SIDE_FILE, Model
from ..anatomy.modeling_shallower import OURS
from ..anatomy.names import TensorName
from ..anatomy.patch import Edit, Patch
from ..anatomy.quantised import StackNames, check_rewritable, renumber_metadata, renumber_modules, stack_names
from ..anatomy.sources import open_checkpoint
from ..artifacts import Plan, Proof, Pruned, RepairReport, Unverified, dumps, published
from ..errors import Refusal, argument
from ..runtime.progress import say
from ..runtime.provenance import versions
from ..settings.quantities import bytes_of
from ..settings.writing import Writing
from ..storage.files import check_space, new_folder
from ..storage.hashes import remember
from ..storage.index import TensorEntry, read_metadata
from ..storage.journal import Journal, journaled
from ..storage.ownership import check_apart
from ..storage.paths import files_below, short_list
from ..storage.writer import Content, write_shards
from .contents import changed_contents
from .forms import Form, choose_form
from .proof import verify
from .side_files import carry_side_files
from .width import (
    LayerShapes,
    biased_config,
    check_experts,
    new_biases,
    uniform_config,
)

UNIFORM_FORMATS = ("auto", "plain")  # in which what is as narrow everywhere is a plain checkpoint


@dataclass(frozen=True)
class Renaming:
    """Where each tensor of the pruned checkpoint comes from (new name -> old name), and how many layers beyond the
    stack are left out.
    """

    sources: dict[str, str]
    dropped_beyond: int


def solve_removal(
    model: Model,
    plan: Plan,
    out: Path,
    *,
    save_dtype: torch.dtype | None = None,
    changed: bool = False,
    format: str = "auto",
    biases: LayerShapes | None = None,
) -> tuple[Solved, Renaming, Form]:
    """Config, names and form of what stays, before any long work begins.

    Args:
        changed: weights of what stays are going to be changed.
        format: form that is asked for (see ``Writing``).
        biases: layer -> names and shapes of biases that it gets and has not yet.
    Raises:
        Refusal: the config cannot describe the kept layers, or no form holds what is left of them.
        UserError: ``out`` holds the model itself, or its weights are quantised and cannot be stored as asked.
    """
    checkpoint = model.checkpoint
    check_apart(out, [checkpoint.folder, *(path for path in checkpoint.folder.iterdir() if path.is_file())])
    how = {"repaired": changed, "converted": save_dtype is not None}
    check_rewritable(checkpoint.source, checkpoint.quantised, **how)
    solved = model.solver.solve(plan.removal.layers)
    if not plan.removal.layers:
        solved = replace(solved, changes=())
    if plan.removal.narrows:
        stored = save_dtype or checkpoint.config.dtype or torch.float32
        check_experts(model, plan, torch.empty(0, dtype=stored).element_size())
    narrowed = uniform_config(model, plan, solved) if plan.removal.narrows and format in UNIFORM_FORMATS else None
    if narrowed is not None and biases:
        narrowed = biased_config(model, plan, narrowed, biases)
    solved = narrowed or solved
    renaming = rename(
        checkpoint.tensors, model.solver.places(), plan.kept, plan.model.layers, model.solver.moved_tensors(plan.kept)
    )
    form = choose_form(model, plan, solved, format, save_dtype, uniform=narrowed is not None, biases=biases)
    sources = {form.renamed.get(new, new): old for new, old in renaming.sources.items() if old not in form.lost}
    return solved, replace(renaming, sources=sources), form


@dataclass(frozen=True)
class Beside:
    """What goes with the weights of a pruned model.

    Attributes:
        patch: changes of kept layers' weights, in the model's own numbering.
        report: what is to be said about them in ``shallower.json``.
        files: further files by name, such as pictures.
        card: puts a model card into the folder, given the record; None for none.
    """

    patch: Patch = field(default_factory=dict)
    report: RepairReport | None = None
    files: dict[str, bytes] = field(default_factory=dict)
    card: Callable[[Path, Pruned], None] | None = None


def prune_files(
    model: Model, plan: Plan, out: str | Path, writing: Writing | None = None, beside: Beside | None = None
) -> Pruned:
    """Write the pruned model to ``out``; it appears there only when complete and, unless asked otherwise, proven.

    Args:
        model: the dense model.
        plan: which layers go, in the model's own numbering.
        out: the folder to write.
        writing: how; by default as in the source, and proven (see ``verify``).
        beside: what goes with the weights.
    Raises:
        Refusal: the config cannot describe the kept layers.
        UserError: the disk, or the proof failed; nothing is left at ``out``.
    """
    writing = writing or Writing()
    beside = beside or Beside()
    save_dtype = parse_dtype(writing.save_dtype)
    shard = bytes_of(writing.max_shard_size, "max_shard_size")
    checkpoint = model.checkpoint
    patch = beside.patch
    out = Path(out)
    if not writing.verify and getattr(checkpoint.config, "is_decoder", None) is False:
        _ = model.module  # loading tells an encoder from a decoder; this config alone does not
    how = {"save_dtype": save_dtype, "changed": bool(patch), "biases": new_biases(model, plan, patch)}
    solved, renaming, form = solve_removal(model, plan, out, format=writing.format, **how)
    contents, edits = changed_contents(model, plan, solved, renaming.sources, form, (patch, save_dtype))
    with journaled(out):
        journal = Journal(_journal_key(model, plan, save_dtype, shard, edits, form))
        try:
            with new_folder(out, overwrite=writing.overwrite, at=journal.folder) as folder:
                numbers = LayerNumbers(model, plan.kept)
                python = checkpoint.trust_remote_code
                left = carry_side_files(checkpoint.folder, folder, python=python, renumber=numbers.renumber)
                notes = write_config(folder, model, solved, renaming, plan, numbers, save_dtype, form)
                for name, text in form.files.items():
                    (folder / name).write_text(text, encoding="utf-8")
                hashes = _write(folder, contents, shard, journal, out, numbers.metadata())
                proof: Proof | Unverified = Unverified(f"{argument('verify', False)} was given")
                if writing.verify:
                    proof = verify(model, plan, folder, renaming.sources, save_dtype=save_dtype, patch=patch)
                written = open_checkpoint(folder, trust_remote_code=python)
                written = replace(written, hashes={folder / name: digest for name, digest in hashes.items()})
                changes = _changes(solved, renaming, notes, form)
                weights = {"left_behind": left, "weight_bytes": written.bytes, "format": form.name, "zeros": form.zeros}
                weights |= _cache_bytes(checkpoint, written) if plan.units else {}
                pruned = Pruned(plan, proof, plan.original(), written.fingerprint, changes, beside.report, **weights)
                pruned = _write_beside(folder, pruned, beside)
        except Exception:
            journal.drop()
            raise
    remember({out / name: digest for name, digest in hashes.items()})
    if left:
        say(f"left behind, as nothing tells whether they hold for the pruned model: {short_list(left)}")
    return pruned


def _cache_bytes(dense: Checkpoint, written: Checkpoint) -> dict[str, int]:
    """Bytes that a cache grows by per token before and after, where both can be told."""
    sizes = {
        "cache_bytes_per_token_before": cache_growth(dense, written.config.dtype),
        "cache_bytes_per_token": cache_growth(written, written.config.dtype),
    }
    return sizes if None not in sizes.values() else {}


def _journal_key(
    model: Model, plan: Plan, save_dtype: torch.dtype | None, shard: int, edits: dict[str, Edit], form: Form
) -> dict[str, Any]:
    """Key of the writing's journal: all that decides the written bytes."""
    key = {
        "write": list(plan.removed),
        "model": model.checkpoint.fingerprint,
        "dtype": str(save_dtype),
        "shard": shard,
        "versions": versions(),
    }
    if plan.units:
        key |= {"units": [*plan.units], "form": form.name}
    if edits:
        key["patch"] = "".join(edit.digest() for edit in edits.values())
    return key


def _write_beside(folder: Path, pruned: Pruned, beside: Beside) -> Pruned:
    """Record as it is published, written with the files and the card that go with the weights."""
    for name, content in beside.files.items():
        (folder / name).write_bytes(content)
    if beside.card is not None:
        beside.card(folder, pruned)
    names = {SIDE_FILE, *(path.relative_to(folder).as_posix() for path in files_below(folder))}
    pruned = published(replace(pruned, files=sorted(names)))
    (folder / SIDE_FILE).write_text(dumps(pruned), encoding="utf-8")
    return pruned


def _write(
    folder: Path, contents: dict[str, Content], shard: int, journal: Journal, out: Path, metadata: dict[str, str]
) -> dict[str, str]:
    """Write the weights, going on where an interrupted process stood; file -> its SHA-256."""
    total = sum(content.bytes for content in contents.values())
    written = journal.done.get("written", {})
    if journal.resumed:
        say(f"resuming at {sum(written.values()) / 1e9:.2f} of {total / 1e9:.2f} GB")
    check_space(out, total - sum(written.values()))
    mark = partial(journal.note, "written")
    return write_shards(folder, contents, max_bytes=shard, written=written, mark=mark, metadata=metadata)


def _changes(solved: Solved, renaming: Renaming, notes: list[str], form: Form) -> list[str]:
    beyond = (
        [f"{renaming.dropped_beyond} prediction layers after the stack left out"] if renaming.dropped_beyond else []
    )
    told = (one for one in (*solved.changes, *beyond, *notes) if not one.startswith(OURS))
    return [*told, *form.changes]


def rename(
    tensors: dict[str, TensorEntry],
    places: dict[str, TensorName],
    kept: list[int],
    layers: int,
    moved: dict[str, int] | None = None,
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
        raise Refusal(
            f"the weight files name no stack of {layers} layers: shallower cannot tell which tensors belong to "
            "which layer"
        )
    new = {old: number for number, old in enumerate(kept)}
    sources: dict[str, str] = {}
    beyond: set[int] = set()
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


class LayerNumbers:
    """The new numbers of the layers that stay, inside quantisation configs."""

    def __init__(self, model: Model, kept: list[int]):
        self.model = model
        self.kept = kept
        self._names: StackNames | None = None

    def renumber(self, value: Any) -> Any:
        return renumber_modules(value, self.names, self.kept)

    def metadata(self) -> dict[str, str]:
        """What the headers of quantised weight files say of their tensors, some methods how these are packed."""
        checkpoint = self.model.checkpoint
        if checkpoint.quantised is None:
            return {}
        about = read_metadata({entry.file for entry in checkpoint.tensors.values()})
        return renumber_metadata(about, self.names, self.kept)

    @property
    def names(self) -> StackNames:
        if self._names is None:
            solver = self.model.solver
            self._names = stack_names(solver.dense, solver.stack_name, solver.places())
        return self._names


def write_config(
    folder: Path,
    model: Model,
    solved: Solved,
    renaming: Renaming,
    plan: Plan,
    numbers: LayerNumbers,
    save_dtype: torch.dtype | None,
    form: Form,
) -> list[str]:
    """Write ``config.json``: the source's own, with what speaks of layers changed, in the form that was chosen.

    Returns what is worth telling of it.
    """
    checkpoint = model.checkpoint
    raw = family_content(checkpoint.raw)
    edited = Edited(raw, checkpoint.config, solved.config, model.solver.path, plan.kept, plan.model.layers)
    if checkpoint.quantised is not None:
        edited.renumber(numbers.names)
    if renaming.dropped_beyond:
        edited.drop_predicted()
    if save_dtype is not None:
        edited.store_as(save_dtype)
    (folder / "config.json").write_text(json.dumps(form.config(edited.content), indent=2) + "\n", encoding="utf-8")
    return edited.changes
