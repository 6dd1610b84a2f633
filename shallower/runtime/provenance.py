"""Provenance of an artifact: the command, the time and the versions."""

import datetime
import importlib
import platform
import re
import shlex
import sys
from dataclasses import dataclass
from functools import cache
from importlib import metadata
from pathlib import Path


@dataclass(frozen=True)
class Provenance:
    """Origin of a file: versions and the command, enough to repeat the run."""

    command: str
    """Command line, or `the Python API`."""
    created: str
    """Time at which it was made."""
    versions: dict[str, str]
    """Versions of Python, of this package and of what computes, and the processor."""

    @staticmethod
    def now() -> "Provenance":
        created = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
        ours = Path(sys.argv[0]).name in ("shallower", "__main__.py") if sys.argv else False
        command = shlex.join(["shallower", *sys.argv[1:]]) if ours else "the Python API"
        return Provenance(command=command, created=created, versions=versions() | {"cpu": processor()})


INSTRUCTIONS = ("avx2", "fma", "avx512f", "avx512_bf16", "amx_bf16", "asimd", "sve", "bf16")
SECRETS = re.compile(r"\bhf_[A-Za-z0-9]{8,}|(?<=://)[^/@\s]+(?=@)")


def safe_command(command: str, *, paths: bool = True) -> str:
    """A command without what looks like a secret; ``paths=False`` leaves of absolute paths only the last part."""
    command = SECRETS.sub("…", command)
    if paths:
        return command
    try:
        words = shlex.split(command)
    except ValueError:
        return command
    return shlex.join(re.sub(r"(^|=|^self:)[/~].*/(?=[^/])", r"\1", word) for word in words)


@cache
def versions() -> dict[str, str]:
    """Versions of Python, of this package and of what computes."""
    record = {"python": platform.python_version(), "machine": platform.machine()}
    for name in ("shallower", "torch", "transformers", "safetensors", "numpy"):
        try:
            record[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            record[name] = "source"
    return record


def device_name(device: str) -> str:
    """A device for people and for comparing: ``cpu (AMD EPYC, avx2, fma)``, ``cuda:0 (NVIDIA H100, CUDA 12.8)``."""
    if device == "cpu":
        return f"cpu ({processor()})"
    if not device.startswith("cuda"):
        return device
    torch = importlib.import_module("torch")
    return f"{device} ({torch.cuda.get_device_name(device)}, CUDA {torch.version.cuda})"


@cache
def processor() -> str:
    """The CPU's name and those of its instruction sets that decide how fast products are."""
    path = Path("/proc/cpuinfo")
    text = path.read_text(errors="replace") if path.is_file() else ""
    name = re.search(r"^(?:model name|Model)\s*: (.*)", text, re.M)
    flags = re.search(r"^(?:flags|Features)\s*: (.*)", text, re.M)
    known = [flag for flag in INSTRUCTIONS if flags and flag in flags[1].split()]
    return ", ".join([name[1].strip() if name else platform.processor() or platform.machine(), *known])
