"""Trained checkpoint.

Plain files, reloaded and compared with what was trained, with what is known of it beside them.
"""

import json
import math
import shutil
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..anatomy.custom import FILE, code_text, is_custom
from ..anatomy.disk import kept_as_they_were, stored_dtypes, trained_contents
from ..anatomy.loading import Checkpoint
from ..anatomy.model import SIDE_FILE, Model
from ..anatomy.offload import read_tensor
from ..anatomy.sources import open_checkpoint
from ..anatomy.stack import dry_tokens, sound_tokens
from ..artifacts import (
    Healing,
    HealingReport,
    LossChange,
    Pruned,
    ReloadedModel,
    TrainingRow,
    dumps,
    load,
    plain,
    published,
)
from ..errors import UserError
from ..results.healing import losses
from ..runtime.progress import say
from ..storage.files import new_folder
from ..storage.hashes import remember
from ..storage.paths import files_below, short_list
from ..storage.writer import write_shards
from ..training.checkpoints import write_tensors
from .proof import LOGITS_TOLERANCE
from .side_files import carry_side_files

TRAINED_PROBE = (2, 32)
TRAINED_SHARD = 5 * 10**9
CARRIED_FILES = ("compensation.json", "compensation.png")  # of the same model, as it was before
STATE_FILE = Path("training/optimizer.safetensors")  # where it is asked for: for a training that goes on


@dataclass(frozen=True)
class TrainedOutput:
    """Where a trained model goes, and what is to be known of it there.

    Attributes:
        finish: puts into the folder what the method keeps beside the weights, and leaves plain trained weights in the
            model.
        rows: the figures of all steps.
        measure: perplexities of a model, in the training's own precision of products.
        card: puts a model card into the folder, given the record of the pruning.
        picture: of the training, as PNG; None where that cannot be made.
        state: what the optimiser kept, where that is to stay.
        inputs: what was read, so that none of it is replaced.
    """

    out: Path
    finish: Callable[[Path], None]
    rows: Sequence[TrainingRow]
    measure: Callable[[nn.Module], dict[str, Any]]
    card: Callable[[Path, Pruned], None]
    picture: Callable[[Healing], bytes | None]
    state: dict[str, Tensor] | None = None
    overwrite: bool = False
    inputs: Iterable[Any] = ()


def write_healed(model: Model, make_record: Callable[..., Healing], how: TrainedOutput) -> Healing:
    """Write the model, reload it, measure what the files give, and put what is known of it beside it.

    Args:
        make_record: makes the record of ``rows``, ``fingerprint`` and ``reloaded``, which the written files settle.
    Raises:
        UserError: the reloaded model is not the trained one; nothing is left at ``how.out``.
    """
    checkpoint = model.checkpoint
    with new_folder(how.out, overwrite=how.overwrite, inputs=how.inputs) as folder:
        how.finish(folder)
        model.module.requires_grad_(False).eval()
        contents, meant = trained_contents(checkpoint, model.module)
        if kept := kept_as_they_were(checkpoint, meant):
            say(f"not part of the model, carried as they were: {short_list(kept)}")
        hashes = write_shards(folder, contents, max_bytes=TRAINED_SHARD)
        contents.clear()
        left = carry_side_files(checkpoint.folder, folder, python=checkpoint.trust_remote_code)
        shutil.copyfile(checkpoint.folder / "config.json", folder / "config.json")
        if is_custom(checkpoint.config):
            (folder / FILE).write_text(code_text(), encoding="utf-8")
        for name in CARRIED_FILES:
            if (checkpoint.folder / name).is_file():
                shutil.copyfile(checkpoint.folder / name, folder / name)
        written = open_checkpoint(folder, trust_remote_code=checkpoint.trust_remote_code)
        written = replace(written, hashes={folder / name: digest for name, digest in hashes.items()})
        result = make_record(fingerprint=written.fingerprint, **_check_written(model, written, meant, how))
        if (picture := how.picture(result)) is not None:
            (folder / "healing.png").write_bytes(picture)
        lines = "".join(json.dumps(plain(row)) + "\n" for row in result.rows)
        (folder / "metrics.jsonl").write_text(lines, encoding="utf-8")
        if how.state is not None:
            (folder / STATE_FILE).parent.mkdir()
            write_tensors(how.state, folder / STATE_FILE, {"optimizer": result.recipe.optimizer})
        pruned = _carry_record_on(checkpoint, result, folder, how.card)
        names = sorted({*(path.relative_to(folder).as_posix() for path in files_below(folder)), "healing.json"})
        result = published(replace(result, files=names))
        (folder / "healing.json").write_text(dumps(result), encoding="utf-8")
        if pruned is not None:
            pruned = replace(pruned, files=names, left_behind=left, weight_bytes=written.bytes)
            (folder / SIDE_FILE).write_text(dumps(published(pruned)), encoding="utf-8")
    remember({how.out / name: digest for name, digest in hashes.items()})
    if left:
        say(f"left behind, as nothing tells whether they hold for the trained model: {short_list(left)}")
    return result


def _check_written(
    model: Model,
    written: Checkpoint,
    meant: dict[str, Callable[[], Tensor]],
    how: TrainedOutput,
) -> dict[str, Any]:
    """Rows with the perplexities that the written files give, and how far these are from what was trained."""
    for name, make in meant.items():
        if not _same(make(), read_tensor(written.tensors[name])):
            raise UserError(f"the written model is not the trained one ({name} differs): nothing was kept")
    tokens = sound_tokens(model.module, dry_tokens(model.vocabulary, *TRAINED_PROBE))
    trained = _logits(model.module, tokens)
    meant.clear()
    model.unload()  # two of them need not fit
    reloaded = written.load(dtype=torch.float32, device=model.device)
    dtypes = stored_dtypes(written.tensors)
    reloading = _compare_logits(trained, _logits(reloaded, tokens), dtypes)
    rows = list(how.rows)
    if rows and rows[-1].eval:
        unrounded = {"eval_unrounded": rows[-1].eval} if dtypes != ["float32"] else {}
        rows[-1] = replace(rows[-1], **how.measure(reloaded), **unrounded)
    return {"rows": rows, "reloaded": reloading}


def _same(one: Tensor, other: Tensor) -> bool:
    return one.dtype == other.dtype and torch.equal(
        one.reshape(-1).view(torch.uint8), other.reshape(-1).view(torch.uint8)
    )


@torch.no_grad()
def _logits(module: nn.Module, tokens: Tensor) -> Tensor:
    return module(input_ids=tokens, use_cache=False).logits.float()


def _compare_logits(trained: Tensor, got: Tensor, dtypes: list[str]) -> ReloadedModel:
    """How far the logits of the written files, loaded the ordinary way in float32, are from those of the trained model.

    Raises:
        UserError: further than rounding to what the files store explains; nothing is kept.
    """
    difference = float((trained - got).abs().max() / trained.abs().max())
    allowed = max((LOGITS_TOLERANCE.get(getattr(torch, name), 1e-4) for name in dtypes), default=1e-4)
    if not (math.isfinite(difference) and difference <= allowed):
        raise UserError(
            f"the written model is not the trained one (logits differ by {difference:.2g} of the largest): "
            "nothing was kept"
        )
    rounding = f", by the rounding to {' and '.join(dtypes)}" if dtypes != ["float32"] else ""
    logits = "bit for bit" if torch.equal(trained, got) else f"within {difference:.1e} of the largest logit{rounding}"
    weights = "bit for bit as trained, rounded to what each is stored in"
    return ReloadedModel(logits, difference, weights, dtypes)


def _carry_record_on(
    checkpoint: Checkpoint, result: Healing, folder: Path, card: Callable[[Path, Pruned], None]
) -> Pruned | None:
    """Carry ``shallower.json`` on, if the model was pruned, and make its card anew."""
    side = checkpoint.folder / SIDE_FILE
    if not side.is_file():
        return None
    pruned = load(side, "pruned")
    first, last = losses(result)
    report = HealingReport(
        method=result.method,
        settings=result.settings,
        source=result.data.source,
        hash=result.data.hash,
        train_tokens=result.train_tokens,
        steps=result.steps,
        loss=LossChange(first, last),
        reloaded=result.reloaded.logits,
        own_answers=result.data.answers and result.data.answers.answers,
    )
    pruned = replace(pruned, fingerprint=result.fingerprint, healing=[*pruned.healing, report])
    (folder / SIDE_FILE).write_text(dumps(pruned), encoding="utf-8")
    card(folder, pruned)
    return pruned
