"""Store of results: one JSON file per benchmark, a piece a line, refused if its settings are others."""

import hashlib
import json
import os
import time
from collections.abc import Iterable
from pathlib import Path

from shallower import (
    Compute,
    UserError,
)
from shallower.storage.files import write_atomic

ROOT = Path(__file__).resolve().parents[2]
DATA = Path(os.environ.get("SHALLOWER_DATA", ROOT.parent / "shared/data/text"))
CALIBRATION, TEXTS = "wikitext2.valid.txt", ("wikitext2-raw.test.txt", "ptb.valid.txt", "books/emma_158.txt")
FP32 = Compute(dtype="fp32", device="cpu")


def begun(path: Path, about: dict, *, restart: bool) -> dict:
    """The results so far, or empty ones; those made with other settings are refused."""
    digest = hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()[:16]
    if restart or not path.exists():
        return {"settings_hash": digest, "date": time.strftime("%Y-%m-%d"), **about, "pieces": {}}
    content = json.loads(path.read_text())
    if content.get("settings_hash") != digest:
        other = ", ".join(name for name in about if content.get(name) != about[name])
        raise UserError(
            f"{path} was made with other settings ({other}): --restart begins anew, --out FILE writes elsewhere"
        )
    return content


def save(path: Path, content: dict) -> None:
    """Write the file atomically, one piece a line."""
    pieces = ",\n".join(f"  {json.dumps(key)}: {json.dumps(piece)}" for key, piece in content["pieces"].items())
    head = json.dumps(content | {"pieces": {}}, indent=1).removesuffix("{}\n}")
    write_atomic(path, f"{head}{{\n{pieces}\n }}\n}}\n")


def removal(removed: Iterable[int]) -> str:
    """One text for one set of layers."""
    return "without " + (",".join(map(str, sorted(removed))) or "none")
