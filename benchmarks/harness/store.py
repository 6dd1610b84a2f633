"""Store of results: one JSON file per benchmark, a piece a line, refused if its settings are others."""

import json
import os
import time
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

from shallower import (
    Compute,
    UserError,
)
from shallower.runtime.provenance import versions
from shallower.storage.files import write_atomic

from .machine import processor_text

OWN = "shallower"  # whose versions a file may mix: a piece names its own where that is not the file's
ROOT = Path(__file__).resolve().parents[2]
DATA = Path(os.environ.get("SHALLOWER_DATA", ROOT.parent / "shared/data/text"))
CALIBRATION, TEXTS = "wikitext2.valid.txt", ("wikitext2-raw.test.txt", "ptb.valid.txt", "books/emma_158.txt")
FP32 = Compute(dtype="fp32", device="cpu")


def begun(path: Path, about: dict, *, restart: bool, bound: bool = False) -> dict:
    """The results so far, or empty ones; those made with other settings are refused.

    Args:
        about: all that decides the results, and ``machine``, on which pieces may differ.
        bound: whether all pieces must be of one machine.
    """
    decides = json.loads(json.dumps({name: value for name, value in about.items() if bound or name != "machine"}))
    if restart or not path.exists():
        content = {"date": time.strftime("%Y-%m-%d"), **about, "pieces": {}}
    else:
        content = json.loads(path.read_text())
        if other := ", ".join(
            name for name, value in decides.items() if _foreign(content.get(name)) != _foreign(value)
        ):
            raise UserError(
                f"{path} was made with other settings ({other}): --restart begins anew, --out FILE writes elsewhere"
            )
    if not bound:
        _also_on(content, about["machine"])
    return content


def _foreign(value: object) -> object:
    """Versions without ours; anything else as it is."""
    return {name: one for name, one in value.items() if name != OWN} if isinstance(value, dict) else value


def _also_on(content: dict, machine: dict) -> None:
    """List a machine among those of some results."""
    machines = content.setdefault("machines", [content.pop("machine", machine)])
    if machine not in machines:
        machines.append(machine)


def gathered(path: Path, further: Path) -> dict:
    """Results with the pieces of others that they lack, such as were made at the same time on another machine."""
    content, other = (json.loads(one.read_text(encoding="utf-8")) for one in (path, further))
    passing = ("date", "machine", "machines", "pieces")
    names = sorted((content.keys() | other.keys()) - {*passing})
    if wrong := [name for name in names if _foreign(content.get(name)) != _foreign(other.get(name))]:
        raise UserError(f"{further} was made with other settings than {path} ({', '.join(wrong)})")
    machines = other.get("machines") or [other["machine"]]
    for name, piece in other["pieces"].items():
        if name not in content["pieces"]:
            machine = machines[piece.get("machine", 0)]
            _also_on(content, machine)
            moved = {key: value for key, value in piece.items() if key not in ("machine", OWN)}
            version = piece.get(OWN) or other.get("versions", {}).get(OWN)
            content["pieces"][name] = moved | place(content, machine, version)
    return content


def place(content: dict, machine: dict, version: str | None = None) -> dict[str, int | str]:
    """What a piece says of the machine that it was made on, its place among those of the results, and of our version,
    unless they are the first. By default it is the version that runs.
    """
    number = content.get("machines", [machine]).index(machine)
    first = content.get("versions", {}).get(OWN)
    own = version or versions()[OWN]
    other = own if first not in (None, own) else None
    return ({"machine": number} if number else {}) | ({OWN: other} if other else {})


def versions_text(content: dict) -> str:
    """All versions of some results, with how many pieces other versions of ours made."""
    text = ", ".join(f"{name} {value}" for name, value in content["versions"].items())
    count = Counter(piece[OWN] for piece in content["pieces"].values() if OWN in piece)
    for version, pieces in sorted(count.items()):
        text += f"; {pieces} of {len(content['pieces'])} pieces by {OWN} {version}"
    return text


def machines_text(content: dict) -> str:
    """All machines of some results and their threads, with how many pieces those behind the first one made."""
    count = Counter(piece.get("machine", 0) for piece in content["pieces"].values())
    found = []
    for number, one in enumerate(content.get("machines") or [content["machine"]]):
        threads = f"{one['torch_threads']} thread{'s' * (one['torch_threads'] > 1)}"
        if not number or count[number]:
            share = f" ({count[number]} of {count.total()} pieces)" if number else ""
            found.append(f"{processor_text(one)}, {threads}{share}")
    return "; ".join(found)


def save(path: Path, content: dict) -> None:
    """Write the file atomically, one piece a line."""
    pieces = ",\n".join(f"  {json.dumps(key)}: {json.dumps(piece)}" for key, piece in content["pieces"].items())
    others = {name: value for name, value in content.items() if name != "pieces"}
    head = json.dumps(others | {"pieces": {}}, indent=1).removesuffix("{}\n}")
    write_atomic(path, f"{head}{{\n{pieces}\n }}\n}}\n")


def removal(removed: Iterable[int]) -> str:
    """One text for one set of layers."""
    return "without " + (",".join(map(str, sorted(removed))) or "none")
