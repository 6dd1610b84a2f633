"""Writing a trained model: plain files, reloaded and compared, with what is known of it beside them."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..anatomy.loading import FLOATS, Checkpoint, hub_of, open_checkpoint, quiet
from ..anatomy.model import SIDE_FILE, Model
from ..anatomy.stack import dry_tokens
from ..artifacts import Healing, dumps, load
from ..errors import UserError
from ..files import new_folder
from ..proof import TOLERANCE
from ..reporting.card import write_card
from ..reporting.figures import learning
from ..surgery import copy_side_files
from ..tables import losses
from ..training.checkpoints import write_tensors

PROBE = (2, 32)
CARRIED = ("compensation.json", "compensation.png")  # of the same model, as it was before
STATE_FILE = Path("training/optimizer.safetensors")  # where it is asked for: for a training that goes on


def write_healed(
    model: Model, result: Healing, finish: Callable[[Path], None], out: Path, *, state: dict[str, Tensor] | None = None, overwrite: bool
) -> Healing:
    """Write the model, reload it, and put what is known of it beside it; ``state`` is what its optimiser kept, where that is to stay.

    Raises:
        UserError: the reloaded model is not the trained one; nothing is left at ``out``.
    """
    checkpoint, module = model.checkpoint, model.module
    with new_folder(out, overwrite=overwrite) as folder:
        finish(folder)
        module.requires_grad_(False).eval()
        kind = _stored(checkpoint)
        for tensor in module.parameters():
            tensor.data = tensor.data.to(kind)
        with quiet():
            module.save_pretrained(folder)
        copy_side_files(checkpoint.folder, folder, python=checkpoint.trust_remote_code)
        shutil.copyfile(checkpoint.folder / "config.json", folder / "config.json")
        for path in folder.rglob("*.safetensors"):  # written for the owner's eyes only
            path.chmod((folder / "config.json").stat().st_mode)
        for name in CARRIED:
            if (checkpoint.folder / name).is_file():
                shutil.copyfile(checkpoint.folder / name, folder / name)
        written = open_checkpoint(folder, trust_remote_code=checkpoint.trust_remote_code)
        result = replace(result, fingerprint=written.fingerprint, reloaded=_reloaded(model, written))
        (folder / "healing.json").write_text(dumps(result), encoding="utf-8")
        (folder / "healing.png").write_bytes(learning(result).png())
        _carry(checkpoint, result, folder, out)
        if state is not None:
            (folder / STATE_FILE).parent.mkdir()
            write_tensors(state, folder / STATE_FILE, {"optimizer": result.recipe["optimizer"]})
        (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in result.rows), encoding="utf-8")
    return result


def _stored(checkpoint: Checkpoint) -> torch.dtype:
    """What most of the model's weights are stored in."""
    sizes: dict[torch.dtype, int] = {}
    for entry in checkpoint.tensors.values():
        if entry.dtype in FLOATS:
            sizes[FLOATS[entry.dtype]] = sizes.get(FLOATS[entry.dtype], 0) + entry.count
    return max(sizes, key=sizes.get, default=torch.float32)


@torch.no_grad()
def _reloaded(model: Model, written: Checkpoint) -> dict[str, Any]:
    """How far the logits of the written files, loaded the ordinary way, are from those of the trained model.

    Raises:
        UserError: further than its dtype explains, or weights are missing; nothing is kept.
    """
    tokens = dry_tokens(model.vocabulary, *PROBE).to(model.device)
    wanted = model.module(input_ids=tokens, use_cache=False).logits
    got = written.load(device=model.device)(input_ids=tokens, use_cache=False).logits
    difference = float((wanted.float() - got.float()).abs().max() / wanted.float().abs().max())
    allowed = TOLERANCE.get(got.dtype, 1e-4)
    if not difference <= allowed:
        raise UserError(f"the written model is not the trained one (logits differ by {difference:.2g} of the largest): nothing was kept")
    exact = torch.equal(wanted, got)
    return {"logits": "bit for bit" if exact else f"within {allowed:g} of the largest logit", "difference": difference}


def _carry(checkpoint: Checkpoint, result: Healing, folder: Path, out: Path) -> None:
    """Carry ``shallower.json`` on, if the model was pruned, and make its card anew."""
    side = checkpoint.folder / SIDE_FILE
    if not side.is_file():
        return
    pruned, (first, last) = load(side, "pruned"), losses(result)
    told = {"method": result.method, "settings": result.settings, "source": result.data["source"], "hash": result.data["hash"]}
    told |= {"train_tokens": result.train_tokens, "steps": result.steps, "loss": {"first": first, "last": last}}
    told["reloaded"] = result.reloaded["logits"]
    pruned = replace(pruned, fingerprint=result.fingerprint, healing=[*pruned.healing, told])
    (folder / SIDE_FILE).write_text(dumps(pruned), encoding="utf-8")
    write_card(folder, pruned, out.resolve().name, source=checkpoint.folder, hub_id=hub_of(pruned.plan.model.source))
