"""What every method file promises, and that dropping one in is all it takes to add a method."""

import dataclasses
import importlib
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import shallower
from shallower import Amount, SelectionOptions, UserError, cli, methods, plan, score

EVIDENCE = {"place", "weights", "streams", "gradients", "flows", "losses", "inputs"}
NEEDS = {"scores", "losses", "nothing"}
LINES = 100
BOTH = [(kind, name) for kind in ("criteria", "selection", "compensation", "healing") for name in methods.names(kind)]

each_method = pytest.mark.parametrize(("kind", "name"), BOTH)
each_criterion = pytest.mark.parametrize("name", methods.names("criteria"))
each_selection = pytest.mark.parametrize("name", methods.names("selection"))


def paragraphs(method) -> list[str]:
    return re.split(r"\n\s*\n", (method.__doc__ or "").strip("\n"))


# ---------------------------------------------------------------- every file


def test_the_methods_are_those_of_the_papers() -> None:
    assert {"angular", "block_influence", "magnitude", "perplexity", "random", "taylor"} <= set(
        methods.names("criteria")
    )
    assert {"beam", "evolution", "greedy", "lowest", "positional", "window"} <= set(methods.names("selection"))


@each_method
def test_docstring(kind, name) -> None:
    claim, *middle, source = paragraphs(methods.find(kind, name))
    assert re.match(rf"{name.replace('_', ' ')}( distance)?: [a-z].+[.;]", claim, re.IGNORECASE | re.DOTALL), claim
    assert middle or kind == "selection", "no rule between claim and source"
    if kind == "compensation":
        assert any(part.startswith("    ") for part in middle), "no indented formula"
        assert callable(methods.find(kind, name).fit)
    elif kind == "criteria":
        formulas = [part for part in middle if part.startswith("    ")]
        assert any(re.search(r"\w+\([ns, ]+\) = ", part) for part in formulas), "no indented formula"
    else:
        assert any(len(part.split()) >= 8 for part in [claim, *middle]), "no rule"
    assert re.match(r"Source: .*(arXiv \d{4}\.\d{4,5}|\bours\b)", source, re.DOTALL), source


@each_method
def test_size_and_shape_of_the_file(kind, name) -> None:
    text = Path(methods.find(kind, name).__file__).read_text(encoding="utf-8")
    assert len(text.splitlines()) <= LINES
    assert re.fullmatch(r"[a-z][a-z0-9_]*", name)
    assert not re.search(r"\.device\b|\bcuda\b|all_reduce|transformers", text), (
        "a method knows no device, rank or model class"
    )


@each_criterion
def test_criterion(name) -> None:
    method = methods.find("criteria", name)
    assert method.EVIDENCE in EVIDENCE
    assert all(map(callable, (method.measure, method.score)))
    assert getattr(method, "POSITIONS", "all") in ("all", "last")
    assert getattr(method, "SPANS", False) in (True, False)
    if method.EVIDENCE == "inputs":  # of groups of parts
        assert callable(method.features) and method.POOL in ("sum", "mean")
    if method.EVIDENCE != "streams":
        assert not {"SPANS", "POSITIONS"} & set(vars(method)), "read for streams only"


@each_selection
def test_selection(name) -> None:
    method = methods.find("selection", name)
    assert method.NEEDS in NEEDS
    assert callable(method.select)
    assert getattr(method, "ITERATIVE", False) in (True, False)
    if getattr(method, "SEARCHES", False):
        assert method.NEEDS == "losses" and {"objective"} <= set(methods.setting_names(method))
    first, last = getattr(method, "PROTECT", (0, 0))
    assert {type(first), type(last)} == {int}
    assert min(first, last) >= 0


@each_method
def test_settings(kind, name) -> None:
    method = methods.find(kind, name)
    settings = getattr(method, "Settings", None)
    if settings is None:
        assert (methods.configure(method, {}), methods.setting_names(method)) == (None, ())
    else:
        assert dataclasses.is_dataclass(settings)
        assert settings.__dataclass_params__.frozen
        made = methods.configure(
            method, {key: str(value) for key, value in vars(settings()).items()}
        )  # text, as from --set
        assert made == settings() == methods.configure(method, {})
        assert methods.setting_names(method) == tuple(vars(made))
    with pytest.raises(UserError, match=f"{name} has no setting 'nonsense'"):
        methods.configure(method, {"nonsense": "1"})


@each_method
def test_help_tells_docstring_and_settings(kind, name, capsys) -> None:
    cli.main(["compensate" if kind == "compensation" else "plan", "--help", name])
    text, method = capsys.readouterr().out, methods.find(kind, name)
    assert text.startswith(f"{methods.KINDS[kind]} {name}\n\n{method.__doc__.strip()}\n")
    for key in methods.setting_names(method):
        assert f"{key} = {getattr(method.Settings(), key)}" in text


@pytest.mark.parametrize(("kind", "name", "key", "value", "match"), [
    ("criteria", "random", "seed", "many", "random: seed=many: expected int"),
    ("selection", "positional", "strategy", "top", "allowed are max-gap, input, output, middle, both"),
])  # fmt: skip
def test_wrong_settings_say_what_is_allowed(kind, name, key, value, match) -> None:
    with pytest.raises(UserError, match=match):
        methods.configure(methods.find(kind, name), {key: value})


# ---------------------------------------------------------------- names


@pytest.mark.parametrize(("kind", "wrong", "near"), [
    ("criteria", "tailor", "taylor"),
    ("criteria", "Block-Influence", "block_influence"),
    ("criteria", "perplexty", "perplexity"),
    ("criteria", "magnitud", "magnitude"),
    ("selection", "lowst", "lowest"),
    ("selection", "windows", "window"),
    ("selection", "gredy", "greedy"),
])  # fmt: skip
def test_unknown_names_give_the_nearest(kind, wrong, near) -> None:
    with pytest.raises(UserError, match=f"unknown {methods.KINDS[kind]} '{wrong}': did you mean {near}") as error:
        methods.find(kind, wrong)
    assert str(error.value).endswith(f"known are {', '.join(methods.names(kind))}")


def test_a_name_like_no_other_lists_all() -> None:
    with pytest.raises(UserError, match="unknown criterion 'zzz': known are activation, angular, block_influence"):
        methods.find("criteria", "zzz")


def test_unknown_names_are_found_before_the_model_is_opened(capsys) -> None:
    for verb in (
        ["score", "/nowhere", "--criterion", "tailor"],
        ["plan", "/nowhere", "--remove", "1", "--selection", "lowst"],
    ):
        with pytest.raises(SystemExit) as stopped:
            cli.main(verb)
        assert stopped.value.code == 2
        assert "did you mean" in capsys.readouterr().err


# ---------------------------------------------------------------- dropping one in

CRITERION = '''"""Fanciful: later layers matter less.

    I(n) = -n

Source: ours.
"""

EVIDENCE = "place"


def measure(evidence) -> dict:
    return {"place": evidence.index}


def score(sums) -> float:
    return -float(sums["place"])
'''
SELECTION = '''"""Whimsical: the highest scores go, for no good reason at all.

Source: ours.
"""

from shallower.planning.problem import Choice

NEEDS = "scores"


def select(problem) -> Choice:
    return Choice(tuple(sorted(problem.allowed, key=lambda index: -problem.scores[index])[: problem.amount]))
'''


def test_a_dropped_in_file_is_a_method(saved, tmp_path, monkeypatch) -> None:
    for kind, name, text in (("criteria", "fanciful", CRITERION), ("selection", "whimsical", SELECTION)):
        package = importlib.import_module(f"shallower.methods.{kind}")
        (tmp_path / kind).mkdir()
        (tmp_path / kind / f"{name}.py").write_text(text, encoding="utf-8")
        (tmp_path / kind / "_helper.py").write_text("", encoding="utf-8")  # an underscore hides a file
        monkeypatch.setattr(package, "__path__", [*package.__path__, str(tmp_path / kind)])
        monkeypatch.delitem(sys.modules, f"shallower.methods.{kind}.{name}", raising=False)
        assert set(methods.names(kind)) & {name, "_helper"} == {name}
        with pytest.raises(UserError, match=f"did you mean {name}"):
            methods.find(kind, name[:-1])
    scores = score(saved("llama"), criterion="fanciful")
    assert (scores.criterion, scores.scores) == ("fanciful", [-float(index) for index in range(8)])
    chosen = plan(saved("llama"), amount=Amount(remove=2), choosing=SelectionOptions("whimsical"), criterion="fanciful")
    assert (chosen.selection, chosen.criterion, chosen.order) == ("whimsical", "fanciful", [1, 2])


def test_the_command_line_knows_a_dropped_in_file(tmp_path) -> None:
    shutil.copytree(
        Path(shallower.__file__).parent, tmp_path / "shallower", ignore=shutil.ignore_patterns("__pycache__")
    )
    (tmp_path / "shallower" / "methods" / "criteria" / "fanciful.py").write_text(CRITERION, encoding="utf-8")
    (tmp_path / "shallower" / "methods" / "selection" / "whimsical.py").write_text(SELECTION, encoding="utf-8")
    verbs = "import shallower.cli as c; c.main(['score', '--help', 'fanciful']); c.main(['plan', '--help'])"
    environment = os.environ | {"PYTHONPATH": str(tmp_path), "COLUMNS": "200"}
    done = subprocess.run(
        [sys.executable, "-c", verbs], cwd=tmp_path, env=environment, capture_output=True, text=True, check=True
    )
    explained, verb = done.stdout.split("Usage:")
    assert explained.startswith("criterion fanciful\n\nFanciful: later layers matter less.")
    assert all(name in verb for name in ("fanciful", "whimsical"))
