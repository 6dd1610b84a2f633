"""Recipes: every step is a command that there is, with options that it has; slow: the tiny ones run to their report."""

import importlib
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import typer

from shallower.cli.app import app as program

FOLDER = Path(__file__).parents[2] / "recipes"
RECIPES = sorted(path.name for path in FOLDER.glob("*.sh") if path.name != "common.sh")
WITH_MODEL = {name for name in RECIPES if "USES_MODEL=yes" in (FOLDER / name).read_text(encoding="utf-8")}
STUB = """#!{python}
import json, sys
from pathlib import Path
given = sys.argv[1:]
with open({log!r}, "a") as log:
    log.write(json.dumps(given) + "\\n")
if "--out" in given:
    Path(given[given.index("--out") + 1]).mkdir(parents=True)
"""


def started(name: str, *more: str, path: str = "", **variables: str) -> subprocess.CompletedProcess:
    env = os.environ | {"PATH": f"{path}:{os.environ['PATH']}"} | variables
    return subprocess.run(["bash", str(FOLDER / name), *more], capture_output=True, text=True, env=env, check=False)


@pytest.mark.parametrize("tiny", [False, True])
@pytest.mark.parametrize("name", RECIPES)
def test_every_step_is_a_command_that_there_is(name: str, tiny: bool, tmp_path) -> None:
    """A stand-in notes what it is asked, and the real command line reads that."""
    log, bin_folder, texts = tmp_path / "log", tmp_path / "bin", tmp_path / "text"
    bin_folder.mkdir()
    (texts / "books").mkdir(parents=True)
    (bin_folder / "shallower").write_text(STUB.format(python=sys.executable, log=str(log)))
    (bin_folder / "shallower").chmod(0o755)
    (bin_folder / "python").write_text("#!/bin/sh\necho tiny.gguf\n")
    (bin_folder / "python").chmod(0o755)
    options = {"path": str(bin_folder), "SHALLOWER_DATA": str(texts), "EVAL_TEXT": "wiki.txt"}
    model = [] if tiny or name not in WITH_MODEL else ["model.gguf"]
    given = [*(["--tiny"] if tiny else model), str(tmp_path / "out")]
    ran = started(name, *given, **options)
    assert ran.returncode == 0, ran.stderr
    asked = [json.loads(line) for line in log.read_text().splitlines()]
    assert asked[-1] == ["report", str(tmp_path / "out")]
    app = typer.main.get_command(program)
    for verb, *rest in asked:
        command = app.commands[verb]
        command.make_context(verb, list(rest), resilient_parsing=True)
        known = {option for parameter in command.params for option in parameter.opts}
        assert {word for word in rest if word.startswith("--")} <= known
    count = len(asked)
    if model:
        ran = started(name, "another.gguf", str(tmp_path / "out"), **options)
        assert ran.returncode == 2 and "was begun with other settings" in ran.stderr
    again = started(name, *given, **options)
    assert again.returncode == 0 and len(log.read_text().splitlines()) == count + 1  # only the report is made anew


def test_what_recipes_import_is_there() -> None:
    """The stand-in for Python does not look."""
    found = re.findall(r"from (shallower\S*) import (\w+)", "".join(path.read_text() for path in FOLDER.glob("*.sh")))
    assert found and all(hasattr(importlib.import_module(module), name) for module, name in found)


def test_wrong_words_are_one_line(tmp_path) -> None:
    ran = started(RECIPES[0], "--small")
    assert ran.returncode == 2 and ran.stderr == "error: --small: give --tiny, --help or a folder\n"
    assert started(RECIPES[0], "--help").stdout.count("\n") > 3
    ran = started(RECIPES[0], str(tmp_path), "more")
    assert ran.returncode == 2 and ran.stderr.endswith("more: one folder is enough\n")
    for name in WITH_MODEL:
        ran = started(name)
        assert ran.returncode == 2 and ran.stderr == "error: no model: give MODEL [OUT], or --tiny [OUT]\n"
    assert {"quarter.sh"} == WITH_MODEL


@pytest.mark.slow
@pytest.mark.parametrize("name", RECIPES)
def test_tiny_recipes_run_to_their_report(name: str, shared, tmp_path) -> None:
    """On the real model; afterwards everything that was made loads."""
    ran = started(
        name,
        "--tiny",
        str(tmp_path / "out"),
        path=str(Path(sys.executable).parent),
        SHALLOWER_DATA=str(shared / "text"),
    )
    assert ran.returncode == 0, ran.stderr[-3000:]
    assert (tmp_path / "out" / "report.html").stat().st_size > 20_000
    for model in (tmp_path / "out").glob("*/healing.json"):
        assert json.loads(model.read_text())["reloaded"]["logits"]
