"""On a GPU: does the package compute there what it does on the CPU, and how fast? Some minutes, no network.

Parts in the order of their value, each in a process of its own and with a time limit: one that fails, runs out of
memory or hangs leaves the others alone, and one that would not fit in what is left is skipped. The results are written
after every part, the tables from the JSON file alone. ``--tiny`` runs the same parts on tiny models, on the CPU where
there is no GPU.
"""

import argparse
import contextlib
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import warnings
from importlib import metadata
from pathlib import Path
from typing import NamedTuple, NoReturn

import gpu_tables

STARTED = time.monotonic()
ROOT = Path(__file__).resolve().parents[1]
SECONDS, TINY_SECONDS = 390, 60
RESERVE = 0.02  # of all seconds, kept for writing results and removing what was made
POLL = 0.05


class Part(NamedTuple):
    """How much of the whole time a part may take where all are run, and the seconds without which it is not begun."""

    share: float
    least: float


PARTS = {
    "correctness": Part(0.22, 20),
    "scoring": Part(0.30, 40),
    "decode": Part(0.30, 40),
    "repair": Part(0.22, 30),
    "healing": Part(0.25, 30),
}


def main(arguments: list[str] | None = None) -> int:
    """Run the parts; 1 where one of them failed."""
    given = _arguments(arguments)
    _prepare()
    import gpu_parts  # only now: it takes seconds, and what is wrong with the arguments has been said
    import torch

    if given.one:
        gpu_parts.run(given.one, given.work, given.until, tiny=given.tiny)
        return 0
    if not (given.tiny or torch.cuda.is_available()):
        sys.exit("error: no CUDA device here; --tiny runs the same parts on tiny models on the CPU")
    content = _about(given, gpu_parts.TINY if given.tiny else gpu_parts.FULL)
    content["parts"] = _earlier(given, content)
    scratch = Path(tempfile.mkdtemp(prefix="shallower-gpu-", dir=given.work))
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("stopped by a signal"))
    try:
        os.environ |= {"TORCHINDUCTOR_CACHE_DIR": f"{scratch}/inductor", "TRITON_CACHE_DIR": f"{scratch}/triton"}
        for name in given.parts:
            _one_more(name, given, scratch, content)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    print(f"\n{gpu_tables.summary(content)}\n\n{given.out / 'gpu.json'}")
    return int(any(content["parts"][name]["status"] == "failed" for name in given.parts))


def _arguments(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, help=f"for all of it ({SECONDS}; with --tiny {TINY_SECONDS})")
    parser.add_argument("--out", type=Path, help="folder for gpu.json and gpu.md (benchmarks/results)")
    parser.add_argument("--parts", default=os.environ.get("PARTS", ""), help=f"of {','.join(PARTS)}; also $PARTS (all)")
    parser.add_argument("--earlier", type=_result, metavar="FILE", help="a gpu.json whose other parts are kept")
    parser.add_argument(
        "--go-on", action="store_true", help="of --earlier keep the steps that are ok, and make the others"
    )
    parser.add_argument("--tiny", action="store_true", help="tiny models, without a GPU on the CPU; needs --out")
    parser.add_argument("--work", type=Path, help="folder for the models, about 40 GB; they go (the system's)")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    parser.add_argument("--until", type=float, help=argparse.SUPPRESS)
    given = parser.parse_args(arguments)
    if given.tiny and not given.out:
        parser.error("--tiny needs --out DIR, so that the real results stay as they are")
    given.out = given.out or ROOT / "benchmarks/results"
    given.seconds = given.seconds or (TINY_SECONDS if given.tiny else SECONDS)
    wanted = [name.strip() for name in given.parts.split(",") if name.strip()]
    if unknown := [name for name in wanted if name not in PARTS]:
        sys.exit(f"error: no part {unknown[0]}; there are {', '.join(PARTS)}")
    given.parts = [name for name in PARTS if name in wanted or not wanted]
    return given


def _prepare() -> None:
    """What has to be said to libraries before they are there."""
    # to look for a card must not touch it, or no fork could use it
    os.environ.setdefault("PYTORCH_NVML_BASED_CUDA_CHECK", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("HF_HUB_OFFLINE", "1")


# ---------------------------------------------------------------- where the results come from


def _about(given: argparse.Namespace, settings: dict) -> dict:
    """The card, the machine, the versions, the code, the settings and the texts."""
    import gpu_models
    import torch
    from harness.machine import machine

    from shallower.runtime.memory import total_memory
    from shallower.runtime.provenance import versions

    with tempfile.TemporaryDirectory() as folder:
        texts = [path.name for path in gpu_models.texts(Path(folder))]
    further = {"cuda": torch.version.cuda or "none"}
    for name in ("accelerate", "peft", "tokenizers", "triton"):
        with contextlib.suppress(metadata.PackageNotFoundError):
            further[name] = metadata.version(name)
    code = b"".join(path.read_bytes() for path in sorted((ROOT / "shallower").rglob("*.py")))
    return {
        "date": time.strftime("%Y-%m-%d"),
        "tiny": given.tiny,
        "seconds": given.seconds,
        "spent": 0.0,
        "card": _card() if torch.cuda.is_available() else None,
        "machine": machine() | {"memory_bytes": total_memory()},
        "versions": versions() | further,
        "code": hashlib.sha256(code).hexdigest()[:16],
        "texts": texts,
        "settings": settings,
    }


def _card() -> dict[str, str]:
    """The card as nvidia-smi names it; asking torch would touch it in this process."""
    asked = ("name", "memory.total", "driver_version", "clocks.max.sm", "power.limit")
    command = ["nvidia-smi", "-i", "0", f"--query-gpu={','.join(asked)}", "--format=csv,noheader"]
    try:
        told = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True).stdout.splitlines()[0]
    except (OSError, subprocess.SubprocessError, IndexError) as error:
        return {"name": f"unknown ({type(error).__name__})"}
    return dict(zip(asked, (cell.strip() for cell in told.split(",")), strict=False))


def _earlier(given: argparse.Namespace, content: dict) -> dict[str, dict]:
    """The parts of an earlier result that are not run now; each says with which code it was made."""
    if given.earlier is None:
        return {}
    before = given.earlier
    names = [(one["card"] or {}).get("name") for one in (before, content)]
    if before["tiny"] != content["tiny"] or names[0] != names[1]:
        sys.exit(f"error: --earlier was made on another card ({names[0]}, here {names[1]}), or with other models")
    return {name: part for name, part in before["parts"].items() if name not in given.parts or given.go_on}


def _result(text: str) -> dict:
    """An earlier gpu.json, as an argument."""
    try:
        found = json.loads(Path(text).read_text(encoding="utf-8"))
        _ = found["tiny"], found["card"], found["parts"].items()
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise argparse.ArgumentTypeError(f"{text} is no result of this benchmark ({type(error).__name__})") from error
    return found


# ---------------------------------------------------------------- one part


def _one_more(name: str, given: argparse.Namespace, scratch: Path, content: dict) -> None:
    """Run a part, put what it found among the others, write them, and say it in a line."""
    left = STARTED + given.seconds * (1 - RESERVE) - time.monotonic()
    least = PARTS[name].least * (TINY_SECONDS / SECONDS / 2 if given.tiny else 1)
    card = content["card"] or {"name": "no GPU"}
    before = content["parts"].get(name, {"code": content["code"], "steps": {}})
    codes = dict.fromkeys((*before["code"].split(" and "), content["code"]))
    known = {key: step for key, step in before["steps"].items() if step["status"] == "ok"}
    (scratch / f"{name}.known.json").write_text(json.dumps(known))
    part = {"status": "skipped", "date": content["date"], "code": " and ".join(codes), "seconds": 0.0, "steps": known}
    started, limit, ended = time.monotonic(), min(left, _most(name, given)), "stopped by a signal"
    try:
        if left >= least:
            ended = _forked(name, given, scratch, started + limit)
    finally:
        if left < least:
            part["why"] = f"needs {least:.0f} s, {max(0.0, left):.0f} s were left"
        else:
            part |= {"seconds": time.monotonic() - started, "limit_seconds": limit} | _found(name, scratch, ended)
        if card["name"].startswith("unknown"):
            card["name"] = part.get("device", card["name"])
        part["card"] = card["name"]
        parts = content["parts"] | {name: part}
        content["parts"] = {one: parts[one] for one in PARTS if one in parts}
        _save(given.out, content)
    print(f"{name}: {part['status']}, {part['seconds']:.0f} s; {gpu_tables.said(name, part)}", flush=True)


def _most(name: str, given: argparse.Namespace) -> float:
    """The most seconds of a part: its share, or more where only some are run."""
    chosen, every = (sum(PARTS[one].share for one in names) for names in (given.parts, PARTS))
    return given.seconds * PARTS[name].share * every / chosen * (2 if given.tiny else 1)


def _found(name: str, scratch: Path, ended: str) -> dict:
    """Status, error and steps of a part that has ended, well or otherwise."""
    file = scratch / f"{name}.json"
    steps = json.loads(file.read_text()) if file.is_file() else {}
    found: dict = {"status": "ok", "steps": steps}
    statuses = [step["status"] for step in steps.values()]
    errors = [f"{key}: {step['error']}" for key, step in steps.items() if "error" in step]
    if ended or errors:
        found |= {"status": "failed", "error": "; ".join([*([ended] if ended else []), *errors])}
    elif "ok" not in statuses:
        found |= {"status": "skipped", "why": "no step fitted in the time that was left"}
    with contextlib.suppress(OSError):
        found |= json.loads((scratch / f"{name}.ended").read_text())
    return found


def _forked(name: str, given: argparse.Namespace, scratch: Path, ends: float) -> str:
    """Run a part in a fork, so that nothing is imported again; how it ended if not well, in words."""
    started = time.monotonic()
    sys.stdout.flush()
    sys.stderr.flush()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of threads; none of them computes
        pid = os.fork()
    if not pid:
        _child(name, given, scratch, ends)
    try:
        while time.monotonic() < ends:
            done, status = os.waitpid(pid, os.WNOHANG)
            if done:
                code, pid = os.waitstatus_to_exitcode(status), 0
                return (
                    ""
                    if not code
                    else f"killed by signal {-code}"
                    if code < 0
                    else f"its process ended with status {code}"
                )
            time.sleep(POLL)
        return f"stopped after {ends - started:.0f} s; what was found until then is kept"
    finally:
        if pid:  # with all that it has started, such as compilers
            for kill in (os.killpg, os.kill):  # the group is there once the process has made it
                with contextlib.suppress(ProcessLookupError):
                    kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)


def _child(name: str, given: argparse.Namespace, scratch: Path, ends: float) -> NoReturn:
    """The process of a part; what libraries print goes to stderr."""
    code = 1
    try:
        os.setsid()
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        os.dup2(2, 1)
        import gpu_parts
        import torch

        if torch.cuda._is_in_bad_fork():  # something has touched the card before: begin as a process of its own
            options = ["--one", name, "--until", str(ends), "--work", str(scratch), "--out", str(given.out)]
            os.execv(sys.executable, [sys.executable, __file__, *options, *(["--tiny"] if given.tiny else [])])
        gpu_parts.run(name, scratch, ends, tiny=given.tiny)
        code = 0
    except BaseException as error:
        print(f"{name}: {type(error).__name__}: {error}", file=sys.stderr)
    finally:
        sys.stderr.flush()
        os._exit(code)


def _save(out: Path, content: dict) -> None:
    """The results and their table, each replaced as a whole."""
    from shallower.storage.files import write_atomic

    content["spent"] = time.monotonic() - STARTED
    write_atomic(out / "gpu.json", json.dumps(content, indent=1) + "\n")
    write_atomic(out / "gpu.md", gpu_tables.table(content))


if __name__ == "__main__":
    sys.exit(main())
