"""What a training takes from an earlier model: the unpruned one it came from, and what an optimiser kept."""

from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from torch import Tensor

from ..anatomy.model import SIDE_FILE, Model
from ..artifacts import load
from ..errors import UserError
from ..training.checkpoints import STATE, read_tensors
from ..training.distillation import pairs
from ..training.schedule import Recipe
from .healed import STATE_FILE
from .opening import Compute


def unpruned(model: Model, given: str, compute: Compute, dtype: str) -> Model:
    """The model that this one was pruned from, or the one given.

    Raises:
        UserError: it is not known or not there, has changed since, or has another vocabulary.
    """
    side, source, wanted = model.checkpoint.folder / SIDE_FILE, given, None
    if not given:
        if not side.is_file():
            raise UserError(f"{model.checkpoint.source}: no {SIDE_FILE} says which model it was pruned from; --set teacher=MODEL says so")
        record = load(side, "pruned").plan.model
        source, wanted = record.source, record.fingerprint
    try:
        found = Model(source, dtype=dtype, device=compute.device, trust_remote_code=compute.trust_remote_code, layered=False)
    except UserError as error:
        raise UserError(f"the unpruned model {source} cannot be opened ({error}); --set teacher=MODEL names it") from error
    if wanted and found.record.fingerprint != wanted:
        raise UserError(f"{source} is no longer the model that {model.checkpoint.source} was pruned from; --set teacher=MODEL names it")
    if found.vocabulary != model.vocabulary:
        raise UserError(f"{source} knows {found.vocabulary} tokens, {model.checkpoint.source} {model.vocabulary}: it cannot be its teacher")
    return found


def state_from(folder: str | Path | None, model: Model, recipe: Recipe) -> tuple[str | None, dict[str, Tensor]]:
    """(fingerprint of the model it is of, what its optimiser kept, by the names of this model); layers are found by their origin.

    Raises:
        UserError: none was kept there, by another optimiser, or of another model.
    """
    if folder is None:
        return None, {}
    path = Path(folder) / STATE_FILE
    if not path.is_file():
        raise UserError(f"--optimizer-from {folder}: no {STATE_FILE} in it; heal with --keep-optimizer leaves one")
    try:
        tensors, header = read_tensors(path)
    except (SafetensorError, OSError) as error:
        raise UserError(f"--optimizer-from {folder}: {STATE_FILE} is not readable") from error
    if header.get("optimizer") != recipe.optimizer:
        raise UserError(f"--optimizer-from {folder}: it is that of {header.get('optimizer')}, this training uses {recipe.optimizer}")
    other = Model(folder, device="cpu")
    names = {
        f"model.{other.outline.name}.{theirs}.": f"model.{model.outline.name}.{own}." for own, theirs in enumerate(pairs(model, other))
    }
    within = f"model.{other.outline.name}."
    return other.record.fingerprint, dict(_renamed(tensors, names, within))


def _renamed(tensors: dict[str, Tensor], names: dict[str, str], within: str) -> Any:
    """Labels with the numbers of this model's layers; of layers that it has not, nothing."""
    for label, tensor in tensors.items():
        kind, _, name = label.removeprefix(STATE).partition(":")
        if name.startswith(within):
            before = within + name.removeprefix(within).partition(".")[0] + "."
            if before not in names:
                continue
            name = names[before] + name.removeprefix(before)
        yield f"{STATE}{kind}:{name}", tensor
