"""Where an artifact comes from: the command, the time and the versions."""

import datetime
import platform
import shlex
import sys
from dataclasses import dataclass
from functools import cache
from importlib import metadata
from pathlib import Path


@dataclass(frozen=True)
class Provenance:
    """Versions and the command, enough to repeat the run."""

    command: str
    created: str
    versions: dict[str, str]

    @staticmethod
    def now() -> "Provenance":
        created = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
        ours = Path(sys.argv[0]).name in ("shallower", "__main__.py") if sys.argv else False
        command = shlex.join(["shallower", *sys.argv[1:]]) if ours else "the Python API"
        return Provenance(command=command, created=created, versions=versions())


@cache
def versions() -> dict[str, str]:
    """Versions of Python, of this package and of what computes."""
    found = {"python": platform.python_version(), "machine": platform.machine()}
    for name in ("shallower", "torch", "transformers", "safetensors", "numpy"):
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = "source"
    return found
