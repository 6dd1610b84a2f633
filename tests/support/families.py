"""Every causal-LM type of transformers: remove layers, reload, compare; ``make families`` writes what happened.

Each type is built tiny from its config (``shrinking.py``), with its layer rules set awkwardly, and pruned three times,
once with layer 0 among the removed, and once more without an attention and an MLP; its layers are scored with one in
memory and with all, by a criterion of each kind of evidence. What generic shrinking cannot guess stands in
``settings.py``. Each type runs in a
process of its own with a time limit, and its result is written before the next one starts, so the command can be
stopped and resumed: a result is kept as long as the versions, the type's settings and the code that decides are what
they were.
"""

import argparse
import hashlib
import json
import logging
import multiprocessing
import os
import platform
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")
sys.path.insert(0, str(Path(__file__).parents[2]))  # this checkout's package, whatever is installed

import numpy as np
import shrinking
import torch
import transformers
import zoo
from checks import EFFECT, LOGITS_TOLERANCE, compare
from settings import Setting, setting
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from shallower import Calibration, Compute, UserError, drop, open_model, prune, score
from shallower.artifacts.removal import ATTENTION, MLP
from shallower.storage.files import write_atomic

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "benchmarks" / "results" / "families.json"
SECONDS = 240  # per type
DECIDING = (
    "shallower/anatomy",
    "shallower/surgery/rewrite.py",
    "shallower/surgery/proof.py",
    "shallower/surgery/forms.py",
    "shallower/storage/writer.py",
    "shallower/storage/index.py",
    "shallower/walk",
    "shallower/methods/criteria",
    "tests/support/checks.py",
)
SCORED = ("magnitude", "block_influence", "taylor", "perplexity")  # one for weights, streams, gradients and losses


# ---------------------------------------------------------------- one type


def settings_hash(name: str) -> str:
    """Changes with anything that decides how the type is tried."""
    sizes = json.dumps([shrinking.SMALL, shrinking.AWKWARD, shrinking.MIXED, shrinking.PART])
    return _digest(f"{setting(name)}{sizes}")


def code_hash() -> str:
    """Changes with the code that writes and judges checkpoints."""
    files = [
        path
        for name in DECIDING
        for path in sorted((ROOT / name).rglob("*.py") if (ROOT / name).is_dir() else [ROOT / name])
    ]
    return _digest("".join(path.read_text(encoding="utf-8") for path in files))


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def versions() -> dict[str, str]:
    return {"python": platform.python_version(), "torch": torch.__version__, "transformers": transformers.__version__}


def try_type(name: str, folder: Path) -> dict:
    """Build the type, prune it in every way of its setting, and say what happened."""
    wanted = setting(name)
    if wanted.absent:
        return {"status": "not built", "reason": wanted.absent}
    try:
        source = save_dense(name, wanted, folder / "dense")
    except Exception as error:  # constructors raise anything
        return {"status": "not built", "reason": f"{type(error).__name__}: {_line(error)}"}
    try:
        model = open_model(source)
        layers = len(model.outline)
    except UserError as error:
        return {"status": "refused", "reason": _line(error)}
    sets = [try_set(model, removed, folder / str(number)) for number, removed in enumerate(wanted.removals)]
    refusals = [try_set(model, removed, folder / f"illegal{number}") for number, removed in enumerate(wanted.illegal)]
    layered = try_layered(source, folder)
    parts = try_parts(source, folder / "parts")
    wrong = "DIFFERS" in layered.values() or parts["outcome"] in ("WRONG", "crash")
    status = "WRONG" if wrong else _status(sets, refusals)
    return {
        "status": status,
        "layers": layers,
        "kinds": "".join(model.solver.kinds()),
        "sets": sets,
        "illegal": refusals,
        "layered": layered,
        "parts": parts,
    }


def try_parts(source: Path, out: Path) -> dict:
    """The first attention and, of a later layer, an MLP, written as custom code: exact, refused with the reason, WRONG
    or crash.
    """
    try:
        model = open_model(source)
        units = model.units("sublayer")
        names = [units.name(number) for number in range(len(units)) if units.listing[number].unit.part]
        first = next((name for name in names if name.endswith(ATTENTION)), None)
        later = [name for name in names if name.endswith(MLP) and name.split(".")[0] != (first or "").split(".")[0]]
        wanted = [*filter(None, (first, *later[1:2]))]
        if not wanted:
            return {"outcome": "refused", "reason": "none of its layers has an attention and an MLP"}
        return {"removed": wanted} | _tried(model, drop(model, wanted), out, code=True)
    except UserError as refusal:
        return {"outcome": "refused", "reason": _line(refusal)}


def try_layered(source: Path, folder: Path) -> dict[str, str]:
    """Criterion -> equal (bit for bit, one layer in memory or all), refused (layered only, resident only, or both) and
    why, or DIFFERS.
    """
    np.save(folder / "tokens.npy", zoo.tokens(4, 16).numpy())
    calibration, found = Calibration(tokens=str(folder / "tokens.npy")), {}
    for criterion in SCORED:
        scores, refused = {}, {}
        for way, layered in (("resident", False), ("layered", True)):
            try:
                model = open_model(source, Compute(device="cpu", layered=layered))
                scores[way] = score(model, criterion=criterion, calibration=calibration).scores
            except UserError as refusal:
                refused[way] = _line(refusal)
        if refused:
            found[criterion] = f"refused ({' and '.join(refused)}): {next(iter(refused.values()))[:160]}"
        else:
            found[criterion] = "equal" if scores["resident"] == scores["layered"] else "DIFFERS"
    return found


def save_dense(name: str, wanted: Setting, folder: Path) -> Path:
    """The tiny dense model; its plain forward has to work."""
    config = shrinking.shrink(name, awkward=True, **wanted.config)
    model = zoo.build(name, config)
    with torch.no_grad():
        model(input_ids=zoo.tokens())
    zoo.save(model, folder, with_tokenizer=False)
    if model.config.model_type != name:
        config.save_pretrained(folder)  # published files of a multimodal model hold the config of the whole
    return folder


def _status(sets: list[dict], refusals: list[dict]) -> str:
    outcomes = {item["outcome"] for item in [*sets, *refusals]}
    if outcomes & {"WRONG", "crash"}:
        return "WRONG" if "WRONG" in outcomes else "crash"
    return "exact" if all(item["outcome"] == "exact" for item in sets) else "refused"


def try_set(model, removed: tuple[int, ...], out: Path) -> dict:
    """One removal: exact, refused with the reason, WRONG, or crash."""
    try:
        plan = drop(model, removed)
    except UserError as refusal:
        return {"removed": list(removed), "outcome": "refused", "reason": _line(refusal)}
    return {"removed": list(removed)} | _tried(model, plan, out)


def _tried(model, plan, out: Path, *, code: bool = False) -> dict:
    """What became of a plan, ``code`` says as custom code."""
    try:
        pruned = prune(model, plan, out=out, format="custom" if code else "auto")
    except UserError as refusal:
        return {"outcome": "WRONG" if out.exists() else "refused", "reason": _line(refusal)}
    except Exception as error:  # a bug of ours
        traceback.print_exc()
        return {"outcome": "crash", "reason": f"{type(error).__name__}: {_line(error)}"}
    independent = compare(model, plan.removal, out, code=code)
    difference = max(pruned.verified.logits_difference, independent.difference)
    right = difference <= LOGITS_TOLERANCE and independent.effect > EFFECT and not independent.keys
    return {
        "outcome": "exact" if right else "WRONG",
        "logits": difference,
        "cached": pruned.verified.cached_difference,
        "effect": round(independent.effect, 3),
        "keys": independent.keys[:3],
        "changes": pruned.config_changes,
    }


def _line(error: BaseException) -> str:
    """The error in one line."""
    return " ".join(str(error).split())[:400]


# ---------------------------------------------------------------- all of them


def isolated(name: str, seconds: float) -> dict:
    """``try_type`` in a process of its own: a crash or a hang is a result."""
    context = multiprocessing.get_context("fork")  # torch and transformers are imported once
    receiver, sender = context.Pipe(duplex=False)
    with tempfile.TemporaryDirectory() as folder:
        process = context.Process(target=_child, args=(name, Path(folder), sender))
        process.start()
        sender.close()
        try:
            result = (
                receiver.recv()
                if receiver.poll(seconds)
                else {"status": "crash", "reason": f"not done after {seconds:.0f} s"}
            )
        except EOFError:
            process.join()
            result = {"status": "crash", "reason": f"the process died with status {process.exitcode}"}
        process.kill()
        process.join()
    return json.loads(json.dumps(result).replace(folder + "/", "").replace(folder, ""))


def _child(name: str, folder: Path, sender) -> None:
    os.setpgrp()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    try:
        sender.send(try_type(name, folder))
    except Exception as error:  # recorded; the next type goes on
        traceback.print_exc()
        sender.send({"status": "crash", "reason": f"{type(error).__name__}: {_line(error)}"})


def load() -> dict:
    """The results so far; those made with other versions do not count."""
    if RESULTS.is_file():
        content = json.loads(RESULTS.read_text(encoding="utf-8"))
        if content["versions"] == versions():
            return content
    return {"kind": "families", "versions": versions(), "types": {}}


def save(content: dict) -> None:
    """One line per type, sorted, so that changes read well."""
    lines = [f"{json.dumps(name)}: {json.dumps(content['types'][name])}" for name in sorted(content["types"])]
    head = {key: value for key, value in content.items() if key != "types"}
    body = json.dumps(head, indent=1)[:-2] + ',\n "types": {\n  ' + ",\n  ".join(lines) + "\n }\n}\n"
    write_atomic(RESULTS, body)


def todo(content: dict, only: list[str], again: list[str], keep: bool) -> list[str]:
    """Types without a result of these versions, settings and, unless ``keep``, code."""

    def fresh(name: str) -> bool:
        found = content["types"].get(name, {})
        return found.get("settings") == settings_hash(name) and (keep or found.get("code") == code_hash())

    unknown = {*only, *again} - set(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)
    if unknown:
        sys.exit(f"no causal-LM types of transformers {transformers.__version__}: {', '.join(sorted(unknown))}")
    return [name for name in sorted(only or MODEL_FOR_CAUSAL_LM_MAPPING_NAMES) if name in again or not fresh(name)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--only", nargs="+", default=[], metavar="NAME", help="these types")
    parser.add_argument("--again", nargs="+", default=[], metavar="NAME", help="these types even if they have a result")
    parser.add_argument("--keep", action="store_true", help="keep results that another state of the code gave")
    options = parser.parse_args()
    content, code = load(), code_hash()
    names = todo(content, options.only or options.again, options.again, options.keep)
    for number, name in enumerate(names, 1):
        start = time.monotonic()
        result = isolated(name, SECONDS)
        seconds = round(time.monotonic() - start, 1)
        made = {"seconds": seconds, "settings": settings_hash(name), "code": code}
        content["types"][name] = {"status": result.pop("status"), "note": setting(name).note} | result | made
        save(content)
        print(
            f"{number}/{len(names)} {name}: {content['types'][name]['status']} ({seconds} s) "
            f"{result.get('reason', '')}",
            flush=True,
        )
    print(dict(Counter(result["status"] for result in content["types"].values())))


if __name__ == "__main__":
    main()
