"""Side files of a model: what is carried from the dense model into the written one, known by its name, and what is
left behind.

Tokenizer, chat templates, generation defaults, processors and licence hold for the pruned model as for its base.
Weights in other formats, indices of other files and files that speak of layers do not, and nothing tells whether an
unknown file does: they are left behind, and that is said. A link is followed only within the model's folder or the
Hub's cache.
"""

import fnmatch
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ..errors import UserError
from ..storage.index import INDEX, PICKLES
from ..storage.ownership import BASE_CARD, CARD
from ..storage.paths import parse_json

CHAT_TEMPLATES = "additional_chat_templates"
KNOWN = (
    *("tokenizer*.json", "special_tokens_map.json", "added_tokens.json", "vocab*.json", "vocab*.txt", "merges*.txt"),
    *("encoder.json", "tekken.json"),
    *("*.tiktoken", "*.spm", "*.bpe", "tokenizer*.model", "spiece.model", "sentencepiece*.model", "normalizer.json"),
    *("chat_template.json", "*.jinja", f"{CHAT_TEMPLATES}/*.jinja"),
    *("generation_config.json", "*processor_config.json", "*processor.json", "feature_extractor_config.json"),
    *("LICENSE*", "LICENCE*", "license*", "NOTICE*", "Notice*", "COPYING*", "USE_POLICY*", "*USE_POLICY*"),
)
CODE = "*.py"
NUMBERED = "hf_quant_config.json"  # names modules, as the quantisation config inside config.json does
OWN_FILES = ("config.json", INDEX, CARD, BASE_CARD)
MADE_ANEW = (  # by us, of an earlier model
    *("shallower.json", "compensation.json", "compensation.png", "healing.json", "healing.png", "metrics.jsonl"),
    *("quantised.json", "adapter", "training", "modeling_shallower.py", CHAT_TEMPLATES),
)
NAMING = ("tokenizer_config.json", "*processor_config.json")  # may name further files of the tokenizer's
LARGEST_SIDE_FILE = 256 << 20
WEIGHTS = ("*.safetensors", "*.gguf", *PICKLES)  # whose copies need not be named one by one


def carry_side_files(
    source: Path, target: Path, *, python: bool = False, renumber: Callable[[Any], Any] = lambda value: value
) -> list[str]:
    """Copy what holds for the written model as well; returns the names of what is left behind.

    Args:
        python: also code that comes with the model.
        renumber: gives a quantisation config the pruned model's layer numbers.
    """
    names = _names_in_configs(source)
    left = []
    for path in _entries(source):
        name = path.relative_to(source).as_posix()
        if name.startswith(".") or any(fnmatch.fnmatchcase(name, one) for one in (*OWN_FILES, *MADE_ANEW)):
            continue
        known = name in names or name == NUMBERED or any(fnmatch.fnmatchcase(name, one) for one in KNOWN)
        known = known or (python and fnmatch.fnmatchcase(name, CODE))
        weights = any(fnmatch.fnmatchcase(name, one) for one in WEIGHTS)
        if not known:
            left += [] if weights else [f"{name}/" if path.is_dir() else name]
            continue
        if refusal := _refusal(path, source):
            left.append(f"{name} ({refusal})")
            continue
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        if name == NUMBERED:
            content = parse_json(path.read_bytes(), str(path))
            (target / name).write_text(json.dumps(renumber(content), indent=2) + "\n", encoding="utf-8")
        else:
            shutil.copyfile(path, target / name)
    return left


def _entries(folder: Path) -> list[Path]:
    """What lies at the top of a model's folder, and the templates in theirs."""
    top = sorted(folder.iterdir())
    return [
        *top,
        *sorted(path for place in top if place.name == CHAT_TEMPLATES and place.is_dir() for path in place.iterdir()),
    ]


def stays_within(path: Path, folder: Path) -> bool:
    """Whether a file, links followed, lies in the folder, or in the Hub's cache to which the folder belongs."""
    real = path.resolve()
    home = folder.resolve()
    roots = [home] + ([home.parent.parent / "blobs"] if home.parent.name == "snapshots" else [])
    return any(real.is_relative_to(root) for root in roots)


def _refusal(path: Path, folder: Path) -> str:
    if not stays_within(path, folder):
        return "a link that leaves the folder"
    if not path.is_file():
        return "no plain file"
    return f"larger than {LARGEST_SIDE_FILE >> 20} MiB" if path.stat().st_size > LARGEST_SIDE_FILE else ""


def _names_in_configs(folder: Path) -> set[str]:
    """Names of files at the top that the tokenizer's or a processor's config speaks of."""
    values: set[str] = set()
    for path in folder.iterdir():
        if (
            any(fnmatch.fnmatchcase(path.name, one) for one in NAMING)
            and path.is_file()
            and path.stat().st_size < LARGEST_SIDE_FILE
        ):
            try:
                content = parse_json(path.read_bytes(), str(path))
            except (UserError, OSError):
                continue
            if isinstance(content, dict):
                values |= {value for value in content.values() if isinstance(value, str) and value and "/" not in value}
    return {
        name
        for name in values
        if os.path.isfile(folder / name) and not any(fnmatch.fnmatchcase(name, one) for one in WEIGHTS)
    }
