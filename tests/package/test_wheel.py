"""The wheel: built once, installed where only what it asks for is there, and used."""

import os
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

import numpy as np
import pytest
import zoo
from packaging.requirements import Requirement

ROOT = Path(__file__).parents[2]
MOST = 12  # direct dependencies
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    """The wheel, built of a copy, so that nothing is left in the checkout."""
    place = tmp_path_factory.mktemp("wheel")
    source = place / "source"
    source.mkdir()
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    shutil.copytree(ROOT / "shallower", source / "shallower", ignore=shutil.ignore_patterns("__pycache__"))
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", str(place), str(source)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"no wheel can be built here: {done.stderr.strip()[-200:]}")
    return next(place.glob("*.whl"))


@pytest.fixture(scope="module")
def environment(wheel, tmp_path_factory) -> Path:
    """An environment with the wheel and what its core asks for, linked from this one; none of the extras."""
    place = tmp_path_factory.mktemp("empty") / "env"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(place)], check=True)
    packages = next(place.glob("lib/python*/site-packages"))
    for name in sorted(needed(Requirement(text).name for text in PROJECT["dependencies"])):
        for top, found in files_of(name):
            if not (packages / top).exists():
                (packages / top).symlink_to(found)
    install = ["--python", str(place / "bin/python"), "install", "--quiet", "--no-deps", "--no-index", str(wheel)]
    subprocess.run([sys.executable, "-m", "pip", *install], check=True)
    return place


def needed(names: Iterator[str]) -> set[str]:
    """Distributions that these ask for, and what those ask for, without extras."""
    found: set[str] = set()
    left = [*names]
    while left:
        name = left.pop()
        if name.lower() in found:
            continue
        found.add(name.lower())
        for text in metadata.requires(name) or ():
            one = Requirement(text)
            if one.marker is None or one.marker.evaluate({"extra": ""}):
                left.append(one.name)
    return found


def files_of(name: str) -> list[tuple[str, Path]]:
    """(name at the top of site-packages, where it lies) of a distribution."""
    own = metadata.distribution(name)
    tops = {file.parts[0] for file in own.files or () if file.parts[0] not in ("..", "__pycache__")}
    return [(top, Path(str(own.locate_file(top)))) for top in sorted(tops)]


def run(environment: Path, *given: str) -> subprocess.CompletedProcess:
    own = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")}
    program, *arguments = given
    return subprocess.run(
        [str(environment / "bin" / program), *arguments], capture_output=True, text=True, env=own, cwd=environment
    )


def test_core_is_light() -> None:
    assert len(PROJECT["dependencies"]) <= MOST
    assert {"heal", "eval", "report", "export", "quantize"} <= PROJECT["optional-dependencies"].keys()


def test_the_wheel_works_without_any_extra(environment, saved, tmp_path) -> None:
    """It prunes and proves; a repair leaves its picture out, and what needs an extra says which."""
    model, repaired = saved("llama"), tmp_path / "repaired"
    assert run(environment, "python", "-c", "import matplotlib").returncode != 0, "the environment is not empty"
    where = run(environment, "python", "-c", "import shallower; print(shallower.__file__)")
    assert str(environment) in where.stdout, where.stderr
    done = run(environment, "shallower", "prune", str(model), "--drop", "1,2", "--out", str(tmp_path / "out"))
    assert done.returncode == 0 and "verified after reloading" in done.stdout, done.stderr
    how = ("--compensate", "sequential", "--tokens", str(ids(tmp_path)))
    done = run(environment, "shallower", "prune", str(model), "--drop", "1", *how, "--out", str(repaired))
    assert done.returncode == 0, done.stderr
    assert (repaired / "compensation.json").is_file() and not (repaired / "compensation.png").exists()
    done = run(environment, "shallower", "evaluate", str(model), "--tasks", "piqa")
    assert done.returncode == 2 and "shallower[eval]" in done.stderr and "Traceback" not in done.stderr
    assert run(environment, "shallower", "doctor").returncode == 0


def ids(place: Path) -> Path:
    np.save(place / "ids.npy", np.random.default_rng(0).integers(3, zoo.VOCAB, (16, 16)))
    return place / "ids.npy"


@pytest.mark.slow
def test_pip_installs_it_into_an_empty_environment(saved, tmp_path) -> None:
    """With everything that it asks for from the package index; the pin keeps torch the CPU's."""
    subprocess.run([sys.executable, "-m", "venv", str(tmp_path / "env")], check=True)
    limits = ("--constraint", str(ROOT / "constraints.txt"))
    done = run(tmp_path / "env", "python", "-m", "pip", "install", "--quiet", *limits, str(ROOT))
    assert done.returncode == 0, done.stderr[-2000:]
    done = run(
        tmp_path / "env", "shallower", "prune", str(saved("llama")), "--drop", "1", "--out", str(tmp_path / "out")
    )
    assert done.returncode == 0, done.stderr


def test_the_version_is_told_alike_everywhere() -> None:
    said = [f"version: {PROJECT['version']}\n", f"## {PROJECT['version']}, "]
    for name, text in zip(("CITATION.cff", "CHANGELOG.md"), said, strict=True):
        assert text in (ROOT / name).read_text(encoding="utf-8"), name
