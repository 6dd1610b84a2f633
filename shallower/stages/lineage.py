"""Lineage, what a training takes from an earlier model: the dense one it came from, and what an optimiser kept."""

import json
import os
from contextlib import suppress
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from torch import Tensor

from ..anatomy.loading import hub_of
from ..anatomy.model import SIDE_FILE, Model
from ..artifacts import ModelRecord, Recipe, load
from ..errors import UserError, argument
from ..settings.compute import Compute
from ..storage.files import write_atomic
from ..storage.paths import cache_folder, parse_json, place
from ..surgery.trained import STATE_FILE
from ..training.checkpoints import STATE, read_tensors
from ..training.distillation import layer_pairs


def remember_model(model: Model) -> None:
    """Keep where a model lies, by its fingerprint.

    What is published with a pruned model names no folder of this machine.
    """
    source = model.checkpoint.source
    place = source if model.checkpoint.hub_id else str(Path(source).expanduser().absolute())
    with suppress(OSError, UserError):
        write_atomic(_record_of_place(model.record.fingerprint), json.dumps({"source": place}) + "\n")


def _record_of_place(fingerprint: str) -> Path:
    return cache_folder() / "models" / f"{fingerprint}.json"


def _places(record: ModelRecord, pruned: Path) -> list[str]:
    """Where the model of a record may lie.

    Where it lay when it was pruned here, as the record says, beside the pruned one.
    """
    near = []
    with suppress(OSError, UserError, AttributeError):
        remembered = parse_json(_record_of_place(record.fingerprint).read_bytes(), "the cache").get("source")
        near += [remembered] if isinstance(remembered, str) else []
    near += [record.source, str(pruned.resolve().parent / Path(record.source).name)]
    places = [place for place in near if hub_of(place) or os.path.exists(Path(place).expanduser())]
    return [place for place in dict.fromkeys(places) if Path(place).expanduser().resolve() != pruned.resolve()] or [
        record.source
    ]


def dense_model(model: Model, given: str, compute: Compute, dtype: str) -> Model:
    """The model that this one was pruned from, or the one given.

    Raises:
        UserError: it is not known or not there, has changed since, or has another vocabulary.
    """
    side = model.checkpoint.folder / SIDE_FILE
    places = [given]
    wanted = None
    if not given:
        if not side.is_file():
            raise UserError(
                f"{model.checkpoint.source}: no {SIDE_FILE} says which model it was pruned from; "
                f"{argument('teacher', 'MODEL')} says so"
            )
        record = load(side, "pruned").plan.model
        places = _places(record, side.parent)
        wanted = record.fingerprint
    dense = None
    failure = None
    for candidate in places:
        try:
            dense = Model(
                candidate,
                dtype=dtype,
                device=compute.device,
                trust_remote_code=compute.trust_remote_code,
                layered=False,
            )
            if wanted in (None, dense.record.fingerprint):
                break
        except UserError as error:
            failure = failure or UserError(
                f"the dense model {candidate} cannot be opened ({error}); {argument('teacher', 'MODEL')} names it"
            )
    if dense is None:
        raise failure
    source = dense.checkpoint.source
    if wanted and dense.record.fingerprint != wanted:
        raise UserError(
            f"{source} is no longer the model that {model.checkpoint.source} was pruned from; "
            f"{argument('teacher', 'MODEL')} names it"
        )
    if dense.vocabulary != model.vocabulary:
        raise UserError(
            f"{source} knows {dense.vocabulary} tokens, {model.checkpoint.source} {model.vocabulary}: it "
            "cannot be its teacher"
        )
    dense.checkpoint.check_loadable()
    return dense


def teacher_named(own: str, given: str | None) -> str:
    """The teacher by a method's own setting or by the option for all methods; empty where neither names one.

    Raises:
        UserError: both name one, and not the same.
    """
    if own and given and own != given:
        raise UserError(f"{argument('settings', {'teacher': own})} names another one: give one of them", teacher=given)
    return own or given or ""


def unpruned_model(model: Model, given: str, compute: Compute, dtype: str) -> Model:
    """The model that nothing was removed from: the one given, else the first of those that this one came from.

    Raises:
        UserError: as ``dense_model``, of any of them.
    """
    dense = dense_model(model, given, compute, dtype)
    while not given and (dense.checkpoint.folder / SIDE_FILE).is_file():
        dense = dense_model(dense, "", compute, dtype)
    return dense


def state_from(folder: str | Path | None, model: Model, recipe: Recipe) -> tuple[str | None, dict[str, Tensor]]:
    """(fingerprint of the model it is of, what its optimiser kept, by the names of this model).

    Layers are found by their origin.

    Raises:
        UserError: none was kept there, by another optimiser, or of another model.
    """
    if folder is None:
        return None, {}
    folder = place(folder)
    path = folder / STATE_FILE
    if not path.is_file():
        leaves = f"heal with {argument('keep_optimizer', True)} leaves one"
        raise UserError(f"no {STATE_FILE} in it; {leaves}", optimizer_from=folder)
    try:
        tensors, header = read_tensors(path)
    except (SafetensorError, OSError) as error:
        raise UserError(f"{STATE_FILE} is not readable", optimizer_from=folder) from error
    if header.get("optimizer") != recipe.optimizer:
        raise UserError(
            f"it is that of {header.get('optimizer')}, this training uses {recipe.optimizer}", optimizer_from=folder
        )
    other = Model(folder, device="cpu")
    names = {
        f"model.{other.outline.name}.{theirs}.": f"model.{model.outline.name}.{own}."
        for own, theirs in enumerate(layer_pairs(model, other))
    }
    within = f"model.{other.outline.name}."
    return other.record.fingerprint, dict(_rename_layers(tensors, names, within))


def _rename_layers(tensors: dict[str, Tensor], names: dict[str, str], within: str) -> Any:
    """Labels with the numbers of this model's layers; of layers that it has not, nothing."""
    for label, tensor in tensors.items():
        kind, _, name = label.removeprefix(STATE).partition(":")
        if name.startswith(within):
            before = within + name.removeprefix(within).partition(".")[0] + "."
            if before not in names:
                continue
            name = names[before] + name.removeprefix(before)
        yield f"{STATE}{kind}:{name}", tensor
