"""The part of the speed benchmark with a model of the shape of Llama 2 7B: random weights, a memory limit, writing to
disk.

As a script, ``python big.py FOLDER OUT 10,11``: prune once without the proof and print the seconds, synced to disk.
"""

import json
import math
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from safetensors import safe_open

from harness.limits import NoGroupError, run_limited
from shallower import UserError, drop, open_model, prune

ROOT = Path(__file__).resolve().parents[2]
HERE = Path(__file__).resolve().parent
BLOCK = 1 << 25  # random numbers made once; every tensor begins elsewhere in them
SHARD = 5 * 10**9
PATIENCE = 1200  # seconds that the plain backward gets
REPAIR = "prune and repair"
LOCAL = "prune and local training"
NARROW = "prune of neurons"
TRAINING = "18m"  # of local training; the proof and writing come on top
WRITERS = {
    "prune": 1.02,
    NARROW: 1.02,
    REPAIR: 2.0,
    LOCAL: 2.0,
}  # commands that write a model, and how much of its bytes they need; a repair keeps changes, too
ENVIRONMENT = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "benchmarks")])}


def shapes(shape: dict) -> dict[str, tuple[int, ...]]:
    """Name -> shape of every tensor."""
    wide, inner, words = shape["hidden"], shape["intermediate"], shape["vocabulary"]
    found = {"model.embed_tokens.weight": (words, wide)}
    for index in range(shape["layers"]):
        at = f"model.layers.{index}."
        found |= {f"{at}self_attn.{name}_proj.weight": (wide, wide) for name in "qkvo"}
        found |= {f"{at}mlp.{name}_proj.weight": (inner, wide) for name in ("gate", "up")}
        found |= {f"{at}mlp.down_proj.weight": (wide, inner)}
        found |= {f"{at}{name}_layernorm.weight": (wide,) for name in ("input", "post_attention")}
    return found | {"model.norm.weight": (wide,), "lm_head.weight": (words, wide)}


def config(shape: dict) -> dict:
    """The config.json."""
    heads = shape["heads"]
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "torch_dtype": "bfloat16",
        "tie_word_embeddings": False,
        "num_hidden_layers": shape["layers"],
        "hidden_size": shape["hidden"],
        "intermediate_size": shape["intermediate"],
        "num_attention_heads": heads,
        "num_key_value_heads": heads,
        "vocab_size": shape["vocabulary"],
        "hidden_act": "silu",
        "max_position_embeddings": 4096,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "bos_token_id": 1,
        "eos_token_id": 2,
    }


def bytes_of(shape: dict) -> int:
    """Bytes of all weights in bf16."""
    return sum(2 * int(np.prod(size)) for size in shapes(shape).values())


def room(work: Path, needed: int, what: str) -> None:
    """Raise a UserError unless the disk has so many bytes left."""
    free = shutil.disk_usage(work).free
    if free < needed:
        raise UserError(
            f"{what} needs {needed / 1e9:.1f} GB in {work}, {free / 1e9:.1f} GB are free: free some, or give "
            "another --work"
        )


def prepare(work: Path, shape: dict) -> Path:
    """The checkpoint, written unless it is there."""
    folder = work / "-".join(["model", *(str(value) for value in shape.values())])
    if (folder / "config.json").is_file():
        return folder
    work.mkdir(parents=True, exist_ok=True)
    shutil.rmtree(folder, ignore_errors=True)
    room(work, int(1.02 * bytes_of(shape)), "the model")
    print(f"writing {bytes_of(shape) / 1e9:.1f} GB of random weights", file=sys.stderr)
    folder.mkdir()
    shards, filled = [[]], 0
    for name, size in shapes(shape).items():
        count = 2 * int(np.prod(size))
        if filled + count > SHARD and shards[-1]:
            shards, filled = [*shards, []], 0
        shards[-1].append((name, size, count))
        filled += count
    noise = (
        torch.empty(BLOCK)
        .normal_(0, 0.02, generator=torch.Generator().manual_seed(0))
        .bfloat16()
        .view(torch.uint8)
        .numpy()
    )
    generator, index = np.random.default_rng(0), {}
    for number, shard in enumerate(shards):
        file = folder / f"model-{number + 1:05}-of-{len(shards):05}.safetensors"
        _write_shard(file, shard, noise, generator)
        index |= {name: file.name for name, _, _ in shard}
    (folder / "model.safetensors.index.json").write_text(
        json.dumps({"metadata": {"total_size": bytes_of(shape)}, "weight_map": index}, indent=1)
    )
    os.sync()
    (folder / "config.json").write_text(json.dumps(config(shape), indent=1))  # last: says that the folder is whole
    return folder


def bf16_header(sizes: dict[str, tuple[int, ...]]) -> bytes:
    """The beginning of a safetensors file of bf16 tensors of these shapes, with its length in front."""
    header, place = {"__metadata__": {"format": "pt"}}, 0
    for name, size in sizes.items():
        count = 2 * math.prod(size)
        header[name] = {"dtype": "BF16", "shape": list(size), "data_offsets": [place, place + count]}
        place += count
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def _write_shard(file: Path, shard: list, noise: np.ndarray, generator: np.random.Generator) -> None:
    with file.open("wb") as out:
        out.write(bf16_header({name: size for name, size, _ in shard}))
        for _, size, count in shard:
            if len(size) == 1:
                out.write(b"\x80\x3f" * size[0])  # ones
                continue
            start, left = 2 * int(generator.integers(BLOCK)), count
            while left:
                part = noise[start : start + left]
                out.write(part.data)
                start, left = 0, left - len(part)


def tokens_file(work: Path, settings: dict) -> Path:
    """Random token ids, always the same."""
    path = work / f"tokens-{settings['samples']}-{settings['length']}.npy"
    ids = np.random.default_rng(settings["seed"]).integers(
        0, settings["shape"]["vocabulary"], (settings["samples"], settings["length"])
    )
    np.save(path, ids)
    return path


def uncache(*folders: Path) -> None:
    """Let the system forget what it has read of these files."""
    os.sync()
    for file in (file for folder in folders for file in folder.glob("*.safetensors")):
        handle = os.open(file, os.O_RDONLY)
        os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(handle)


def clear(work: Path) -> None:
    """Remove what earlier runs wrote, and what killed ones left: a journal would let the next one begin in
    the middle.
    """
    for name in ("limited-out", "written", "reference"):
        for path in (*work.glob(f"{name}*"), *work.glob(f".{name}*")):
            shutil.rmtree(path) if path.is_dir() else path.unlink()


def dropped(settings: dict) -> str:
    return ",".join(map(str, settings["drop"]))


def limited(what: str, work: Path, settings: dict, parent: Path | None) -> dict:
    """One command under the memory limit: a criterion's name, with `` of groups`` for those, ``prune``, ``NARROW``,
    ``REPAIR`` and ``LOCAL`` (twice the limit), or ``plain backward``.
    """
    model, tokens, out, log = (
        prepare(work, settings["shape"]),
        tokens_file(work, settings),
        work / "limited-out",
        work / "limited.log",
    )
    prune = ["-m", "shallower", "prune", model, "--drop", dropped(settings), "--out", out, "--overwrite"]
    narrow = ["-m", "shallower", "prune", model, "--units", "width", "--criterion", "wanda", "--ratio", "20%"]
    limit = settings["limit_bytes"] * (
        2 if what in (REPAIR, LOCAL) else 1
    )  # the sums of one writer with 11008 inputs take 3 GB while solved
    commands = {
        "prune": prune,
        REPAIR: [*prune, "--compensate", "sequential", "--tokens", tokens],
        LOCAL: [*prune, "--compensate", "local", "--repair-budget", TRAINING, "--tokens", tokens],
        NARROW: [*narrow, "--set", "parts=mlp", "--tokens", tokens, "--out", out, "--overwrite"],
        "plain backward": [HERE / "plain.py", model, tokens],
    }
    criterion, _, groups = what.partition(" of ")
    score = ["-m", "shallower", "score", model, "--criterion", criterion, *(["--units", "width"] if groups else [])]
    score += ["--tokens", tokens, "--out", out.with_suffix(".json")]
    command = [str(part) for part in commands.get(what, score)]
    clear(work)
    if what in WRITERS:
        room(work, int(WRITERS[what] * bytes_of(settings["shape"])), what)
    uncache(model)
    patience = PATIENCE if what == "plain backward" else None
    print(f"within {limit / 2**30:.1f} GiB: {what}; progress is in {log}", file=sys.stderr)
    try:
        options = {"timeout": patience, "given": parent, "cwd": ROOT, "env": ENVIRONMENT}
        found = run_limited([sys.executable, *command], limit, log, **options)
    except NoGroupError as error:
        return {"skipped": str(error)}
    said = log.read_text(errors="replace").strip().replace(str(work), "WORK").splitlines()
    if found["ended"] != "finished":
        found["said"] = said[-1][:300] if said else ""
    elif what in WRITERS:
        found["verified"] = json.loads((out / "shallower.json").read_text())["verified"]
        if what in (REPAIR, LOCAL):
            report = json.loads((out / "compensation.json").read_text())
            found |= {"repair_seconds": report["seconds"], "changed": len(report["changed"]), "loss": report["loss"]}
    elif what != "plain backward":
        found["seconds"] = json.loads(out.with_suffix(".json").read_text())["seconds"]
    found["layered"] = any("one layer at a time" in line for line in said)
    clear(work)
    return found


def mergekit(work: Path) -> tuple[Path | None, str]:
    """mergekit-yaml in an environment of its own and its version, or None and why there is none."""
    place = work / "mergekit-venv"
    if not (place / "ready").is_file():
        pins = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if line.startswith("torch==")]
        (work / "torch.txt").write_text("\n".join(pins) + "\n")
        shutil.rmtree(place, ignore_errors=True)
        pip = [
            place / "bin/python",
            "-m",
            "pip",
            "install",
            "--quiet",
            "--constraint",
            work / "torch.txt",
            "mergekit",
            "torch",
        ]
        for command in ([sys.executable, "-m", "venv", place], pip):
            made = subprocess.run([str(part) for part in command], capture_output=True, text=True)
            if made.returncode:
                reason = (made.stderr.strip().splitlines() or ["no reason given"])[-1][:300]
                return None, "not installed: " + reason.replace(str(work), "WORK")
        (place / "ready").touch()
    shown = (
        "from importlib.metadata import version as v; print(*(f'{n} {v(n)}' for n in ('mergekit', 'torch', "
        "'transformers')), sep=', ')"
    )
    asked = subprocess.run([str(place / "bin/python"), "-c", shown], capture_output=True, text=True, check=True)
    return place / "bin/mergekit-yaml", asked.stdout.strip()


def recipe(model: Path, settings: dict) -> str:
    """The passthrough merge that leaves the same layers out; what goes is one run."""
    first, last = settings["drop"][0], settings["drop"][-1]
    lines = ["slices:"]
    for start, stop in ((0, first), (last + 1, settings["shape"]["layers"])):
        lines += ["  - sources:", f"      - model: {model}", f"        layer_range: [{start}, {stop}]"]
    return "\n".join([*lines, "merge_method: passthrough", "dtype: bfloat16", ""])


def writing(work: Path, settings: dict) -> dict:
    """Ours, cp of the same files, and mergekit, each first in its turn.

    Each begins with its input out of the file cache.

    All read the model itself: files that lie elsewhere, or were written later, are read at another speed by some
    disks. cp copies all of it, so its seconds are scaled to as many bytes as ours writes.
    """
    model, out, reference = prepare(work, settings["shape"]), work / "written", work / "reference"
    clear(work)
    room(work, int(2.1 * bytes_of(settings["shape"])), "writing")
    tool, about = mergekit(work)
    (work / "merge.yaml").write_text(recipe(model, settings))
    script = [sys.executable, HERE / "big.py", model]
    took = {"ours": [], "ours, whole command": [], "cp": [], "mergekit": []}
    _run([*script, reference, dropped(settings)])  # to compare with mergekit's; also imports everything once
    size, every = (sum(file.stat().st_size for file in folder.glob("*.safetensors")) for folder in (reference, model))
    names, equal = ["ours", "cp", *(["mergekit"] if tool else [])], None
    for turn in range(settings["repeats"]):
        for name in names[turn % len(names) :] + names[: turn % len(names)]:
            uncache(model, reference)
            started = time.perf_counter()
            if name == "ours":
                took[name].append(float(_run([*script, out, dropped(settings)])))
                took["ours, whole command"].append(time.perf_counter() - started)
            else:
                out.mkdir()
                arguments = [tool, work / "merge.yaml", out, "--quiet", "--no-copy-tokenizer", "--no-write-model-card"]
                _run(arguments if name == "mergekit" else ["cp", *model.glob("*.safetensors"), out])
                os.sync()
                took[name].append((time.perf_counter() - started) * (size / every if name == "cp" else 1))
            print(f"writing: {name} {took[name][-1]:.1f} s", file=sys.stderr)
            equal = same_tensors(reference, out, settings) if name == "mergekit" and equal is None else equal
            shutil.rmtree(out)
            os.sync()
    shutil.rmtree(reference)
    arms = {name: seconds for name, seconds in took.items() if seconds}
    kind = subprocess.run(["stat", "-f", "-c", "%T", str(work)], capture_output=True, text=True).stdout.strip()
    cache = "dropped before every run (posix_fadvise)"
    return {
        "arms": arms,
        "bytes": size,
        "mergekit": about,
        "equal_to_mergekit": equal,
        "file_system": kind,
        "cache": cache,
    }


def same_tensors(one: Path, other: Path, settings: dict) -> dict[str, bool]:
    """Whether a few tensors are byte for byte the same in two checkpoints, and all names are."""
    first, kept = settings["drop"][0], settings["shape"]["layers"] - len(settings["drop"])
    layers = [f"model.layers.{index}.mlp.down_proj.weight" for index in (0, first - 1, first, kept - 1)]
    places = [_places(one), _places(other)]
    found = {"all names": set(places[0]) == set(places[1])}
    for name in ("model.embed_tokens.weight", *layers, "model.norm.weight", "lm_head.weight"):
        tensors = [_tensor(place.get(name), name) for place in places]
        found[name] = None not in tensors and torch.equal(*(tensor.view(torch.uint8) for tensor in tensors))
    return found


def _places(folder: Path) -> dict[str, Path]:
    found = {}
    for file in folder.glob("*.safetensors"):
        with safe_open(file, "pt") as content:
            found |= dict.fromkeys(content.keys(), file)
    return found


def _tensor(file: Path | None, name: str) -> torch.Tensor | None:
    if file is None:
        return None
    with safe_open(file, "pt") as content:
        return content.get_tensor(name)


def _run(command: list) -> str:
    with tempfile.TemporaryFile("w+") as errors:
        done = subprocess.run(
            [str(part) for part in command], stdout=subprocess.PIPE, stderr=errors, text=True, env=ENVIRONMENT, cwd=ROOT
        )
        if done.returncode:
            errors.seek(0)
            raise UserError(f"{command[0]} failed: {(errors.read().strip().splitlines() or [''])[-1][:300]}")
    return done.stdout


if __name__ == "__main__":
    started = time.perf_counter()
    opened = open_model(sys.argv[1])
    prune(opened, drop(opened, [int(index) for index in sys.argv[3].split(",")]), out=sys.argv[2], verify=False)
    os.sync()
    print(time.perf_counter() - started)
