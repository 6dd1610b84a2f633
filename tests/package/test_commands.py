"""Every command on the pages of the docs: run as it stands on a tiny model, or read by the real command line."""

import importlib
import sys
from statistics import mean

import numpy as np
import pytest
import torch
import zoo
from commands import status
from gguf_files import tiny_gguf
from literal import blocks, plain
from pages import PAGES, check, commands, files, mentioned

from shallower import Amount, Calibration, Grid, SelectionOptions, plan, score
from shallower.settings.calibration import NAMED

SOONER = {"1m": "2s"}  # budgets
SMALLER = {"bench": ["--prompt", "8", "--new", "4", "--repeats", "1"], "shrink": ["--samples", "4"]}
RUN = [page for page in PAGES if any(not one.why for one in commands(page))]
LONG = {"docs/choosing.md", "docs/gguf.md"}  # the methods' pages have the same, llama.cpp has tests of its own
LONG |= {f"docs/methods/{name}.md" for name in ("compensation/bias", "healing/continued", "healing/distill")}


@pytest.fixture
def written(request, tmp_path, monkeypatch) -> None:
    """The methods that the page writes out are dropped into the package."""
    for kind, name, text in files(request.getfixturevalue("page")):
        package = importlib.import_module(f"shallower.methods.{kind}")
        (tmp_path / "own" / kind).mkdir(parents=True)
        (tmp_path / "own" / kind / f"{name}.py").write_text(text, encoding="utf-8")
        monkeypatch.setattr(package, "__path__", [*package.__path__, str(tmp_path / "own" / kind)])
        monkeypatch.delitem(sys.modules, f"shallower.methods.{kind}.{name}", raising=False)


@pytest.mark.usefixtures("written")
@pytest.mark.parametrize("page", PAGES)
def test_every_command_is_one_that_there_is(page) -> None:
    for words in [one.words for one in commands(page)] + mentioned(page):
        check(words)


@pytest.mark.usefixtures("written")
@pytest.mark.parametrize("page", [pytest.param(page, marks=[pytest.mark.slow] * (page in LONG)) for page in RUN])
def test_every_command_runs(page, saved, text, tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("shallower.stages.shrink.TRAINED", 8)  # samples
    monkeypatch.setattr("shallower.stages.shrink.GRID", Grid(batches=(1,), prompts=(8,), new=(4,), repeats=1))
    monkeypatch.setitem(NAMED, "default", (16, 24))  # samples, tokens
    given = {"MODEL": saved("llama"), "MODEL-WITH-BIASES": saved("gpt2"), "TEXT": text, **SOONER}
    for words, why in commands(page):
        if not why:
            if "MODEL.gguf" in words and not (tmp_path / "MODEL.gguf").exists():
                tiny_gguf(tmp_path / "MODEL.gguf", "llama")
            arguments = [*(given.get(word, word) for word in words), *SMALLER.get(words[0], ())]
            assert status(*arguments) == 0, (words, capsys.readouterr().err)
            if "--out" in words:
                assert (tmp_path / words[words.index("--out") + 1]).exists(), words


@pytest.mark.usefixtures("written")
@pytest.mark.parametrize("page", ["docs/adding.md"])
def test_what_is_written_out_does_what_it_says(page, saved, tmp_path) -> None:
    """The criterion literally, token by token; the selection by its rule."""
    tokens = zoo.tokens(batch=3, length=12)
    np.save(tmp_path / "tokens.npy", tokens.numpy())
    model, seen = plain(saved("llama")), []
    for layer in blocks(model):
        layer.register_forward_hook(lambda _, args, after: seen.append((args[0], after)))
    with torch.no_grad():
        model(input_ids=tokens, use_cache=False)
    pairs = [zip(before.flatten(0, 1), after.flatten(0, 1), strict=True) for before, after in seen]
    literal = [mean(float((b - a).norm() / a.norm()) for a, b in layer) for layer in pairs]
    calibration = Calibration(tokens=str(tmp_path / "tokens.npy"))
    found = score(saved("llama"), criterion="relative_change", calibration=calibration)
    assert found.scores == pytest.approx(literal, rel=1e-5)
    chosen = plan(found, amount=Amount(remove=2), choosing=SelectionOptions("every_other")).removed
    assert chosen[1] - chosen[0] > 1
