"""Conversion of a checkpoint to GGUF by llama.cpp's own converter, in a process of its own, and what it leaves out.

The converter writes no pattern of windows where llama.cpp would count layers, so a pruned model would be wrong without
a word: the pattern is taken from the model's config and added.
"""

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ..errors import UserError, argument
from ..storage.gguf import GgufHeader
from ..storage.gguf_writer import GgufValue, Renamed, bools, write_gguf
from ..storage.paths import parse_json
from .gguf_rules import RECURRENT, WINDOW, counted_patterns

SCRIPT, QUANTISER = "convert_hf_to_gguf.py", "llama-quantize"
VARIABLE = "LLAMA_CPP_ROOT"
# llama.cpp's converter takes every DeciLM of another vocabulary than Nemotron's for one with a sentencepiece model
DECI = """
import runpy, sys
sys.argv = sys.argv[1:]
sys.path.insert(0, sys.argv[0].rpartition("/")[0])
from conversion.deci import DeciModel
from conversion.llama import LlamaModel
DeciModel.origin_hf_arch, DeciModel.set_vocab = None, LlamaModel.set_vocab
runpy.run_path(sys.argv[0], run_name="__main__")
"""
HOW = "vendor/llama.cpp of the sdist of llama-cpp-python, see docs/gguf.md"
FULL = "full_attention"
NAMING_CODE = ("config.json", "tokenizer_config.json", "generation_config.json", "processor_config.json")
PATIENCE = 6 * 3600.0


def converter(root: Path | None) -> Path:
    """The converter's script.

    Args:
        root: folder of llama.cpp's sources; None: as the environment says.
    Raises:
        UserError: none is named, or there is no converter.
    """
    named = _sources(root)
    if named is None:
        raise UserError(
            f"llama.cpp's converter is needed: give its sources by {argument('llama_cpp', 'ROOT')} or ${VARIABLE} "
            f"({HOW})"
        )
    script = named / SCRIPT
    if not script.is_file():
        raise UserError(f"there is no {SCRIPT}: give the folder of llama.cpp's sources ({HOW})", llama_cpp=named)
    return script


def _sources(root: Path | None) -> Path | None:
    """The folder of llama.cpp's sources that is named, or that the environment names."""
    return root or (Path(os.environ[VARIABLE]).expanduser() if os.environ.get(VARIABLE) else None)


def convert(script: Path, folder: Path, target: Path, kind: str, *, deci: bool = False) -> Path:
    """The file that the converter makes of a checkpoint.

    Args:
        deci: it is a DeciLM, whose tokenizer may be any that a Llama has.
    Raises:
        UserError: it fails; says its last line.
    """
    start, script, target = ["-c", DECI] if deci else [], script.absolute(), target.absolute()
    environment = os.environ | {"PYTHONPATH": str(script.parent / "gguf-py"), "HF_HUB_OFFLINE": "1"}
    with _without_code(folder) as plain:
        command = [sys.executable, *start, str(script), str(plain), "--outfile", str(target), "--outtype", kind]
        how = {"capture_output": True, "text": True, "timeout": PATIENCE, "cwd": script.parent}
        done = subprocess.run(command, env=environment, **how)
    if done.returncode or not target.is_file():
        raise UserError(f"llama.cpp's converter does not take {folder} ({_reason(done.stderr, done.returncode)})")
    return target


@contextmanager
def _without_code(folder: Path) -> Iterator[Path]:
    """The folder for a while as one of links, without code and without what names code: for some families the converter
    runs what a folder names.
    """
    with tempfile.TemporaryDirectory(prefix="shallower-convert-") as place:
        plain = Path(place, folder.absolute().name)  # the converter names the model so
        plain.mkdir()
        for path in folder.absolute().iterdir():
            if not path.is_file() or path.suffix in (".py", ".pyc", ".so"):
                continue
            content = parse_json(path.read_bytes(), str(path)) if path.name in NAMING_CODE else None
            if isinstance(content, dict) and "auto_map" in content:
                kept = {key: value for key, value in content.items() if key != "auto_map"}
                (plain / path.name).write_text(json.dumps(kept), encoding="utf-8")
            else:
                (plain / path.name).symlink_to(path)
        yield plain


def quantiser(root: Path | None) -> Path:
    """llama.cpp's quantiser: on the PATH, or built in its sources.

    Raises:
        UserError: there is none.
    """
    named = _sources(root)
    built = sorted(map(str, named.absolute().glob("build*/bin"))) if named is not None else []
    found = (shutil.which(QUANTISER, path=os.pathsep.join(built)) if built else None) or shutil.which(QUANTISER)
    if found is None:
        raise UserError(
            f"such types are made by {QUANTISER}, which is neither on the PATH nor built in llama.cpp's sources: build "
            f"it (docs/gguf.md), or give {argument('type', 'q8_0')}"
        )
    return Path(found)


def quantise(program: Path, source: Path, target: Path, kind: str) -> Path:
    """A .gguf file in a type of fewer bits, made of one in f16.

    Raises:
        UserError: it fails; says its last line.
    """
    command = [str(program), str(source), str(target), kind.upper()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE)
    if done.returncode or not target.is_file():
        why = _reason(done.stdout + done.stderr, done.returncode)
        raise UserError(f"{QUANTISER} does not make {kind} of it ({why})")
    return target


def _reason(said: str, status: int) -> str:
    """Why a program has ended: its last line that is no mere information."""
    lines = [line for line in said.splitlines() if line.strip() and not line.startswith("INFO")]
    return " ".join(lines[-1].split())[-200:] if lines else f"status {status}"


def missing_patterns(header: GgufHeader, config: Any) -> dict[str, GgufValue]:
    """Patterns of windows and of recurrent layers that the converter has left to counting, where counting is wrong."""
    kinds = getattr(config.get_text_config(), "layer_types", None)
    found = {}
    for name, counted in counted_patterns(header).items():
        if kinds is None or len(kinds) != len(counted):
            continue
        flags = [kind != FULL for kind in kinds]
        if flags != counted and name in (WINDOW, RECURRENT):
            found[f"{header.architecture}.{name}"] = bools(flags)
    return found


def with_changes(header: GgufHeader, changes: dict[str, GgufValue], target: Path) -> Path:
    """The same file with further metadata."""
    return write_gguf(header, target, [Renamed(tensor.name, tensor) for tensor in header.tensors], changes)
