"""Repairs in many processes: the changes of one process, up to the order of addition."""

import json
import re

import numpy as np
import pytest
import torch
import zoo
from trainings import LAUNCH, command, weights

from shallower import Calibration, RepairOptions, UserError, compensate, drop, evaluate
from shallower.anatomy.model import Model
from shallower.artifacts import Removal, load
from shallower.stages.repair import fit_repair

TOKENS = zoo.tokens(batch=48, length=24, vocab=24)  # few different ones, so that there is something to learn
QUICK = {"steps": 2, "batch_tokens": 120, "lr": 1e-3}  # five samples a step: the processes have unequal parts

# Every case in one start: (model, layered, what goes, method, settings). Of each all that is proposed is compared.
CASES = [
    ("llama", False, "2,5", "sequential", {}),
    ("llama", True, "2,5", "sequential", {"accept": "layer"}),
    ("llama", False, "2,5", "linear", {}),
    ("mixtral", False, "2,5", "projection", {"top_k": 2}),
    ("llama", False, "2,5", "magnitude", {}),
    ("gpt2", False, "2,5", "mean_shift", {}),
    ("llama", False, "3.mlp:0-31,4.attention:0", "bias", {}),
    ("llama", False, "2,5", "local", QUICK),
    ("mixtral", True, "2,5", "local", QUICK | {"input": "dense", "loss": "huber"}),
    ("llama", False, "3.mlp:0-31,4.attention:0", "local", QUICK | {"start": "none", "train": "mlp"}),
]
SHARED = """
import json, sys, torch
from shallower import Calibration, drop, methods, plan
from shallower.anatomy.model import Model
from shallower.repair.case import Case
from shallower.runtime import distributed
from shallower.walk.removals import all_nll
cases, folders, tokens, out = json.loads(sys.argv[1])
tokens = torch.load(tokens)
found = []
with distributed.process_group():
    for name, layered, gone, method, settings in cases:
        model = Model(folders[name], device="cpu", layered=layered, max_batch_tokens=192)
        removal = drop(model, gone.split(",")).removal
        nll = all_nll(model, tokens[42:], removal)
        asked = iter(range(-1, -99, -1))  # the later a candidate, the better: all of them are taken
        how = methods.configure(methods.find("compensation", method), settings)
        case = Case(model, removal, tokens[:42], tokens[42:], lambda patch: next(asked), 0.0, how)
        fitted = methods.find("compensation", method).fit(case)
        patch = {key: (edit.kind, edit.value, edit.axis, edit.strength) for key, edit in fitted.patch.items()}
        with model.patched(fitted.patch):
            after = all_nll(model, tokens[42:], removal)
        found.append((patch, fitted.notes, nll, after))
    tokens, plans = Calibration(tokens=sys.argv[2], samples=12), []
    for how in {"remove": 2, "selection": "greedy", "objective": "repaired"}, {"ratio": 0.3, "units": "layer+width"}:
        made = plan(model, calibration=tokens, keep_first=1, keep_last=1, **how)
        plans.append((made.removed, [*made.units], made.trace, made.candidates))
    found.append(json.loads(json.dumps(plans, default=vars)))
    torch.save(found, f"{out}.{distributed.rank()}")
"""


def same(one, other) -> bool:
    """Whether what was told agrees, numbers up to the order of addition."""
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, (list, tuple)):
        return len(one) == len(other) and all(map(same, one, other))
    return one == pytest.approx(other, rel=1e-4, abs=1e-6) if isinstance(one, float) else one == other


@pytest.fixture(scope="module")
def proposals(saved, tmp_path_factory):
    """What one process proposes, and each of two."""
    place = tmp_path_factory.mktemp("many")
    torch.save(TOKENS, place / "tokens")
    np.save(place / "tokens.npy", TOKENS.numpy())
    (place / "shared.py").write_text(SHARED)
    folders = {name: str(saved(name)) for name, *_ in CASES}
    for name, launch in (("one", ()), ("two", LAUNCH[:-2])):
        given = json.dumps([CASES, folders, str(place / "tokens"), str(place / name)])
        ran = command(*launch, str(place / "shared.py"), given, str(place / "tokens.npy"))
        assert ran.returncode == 0, ran.stderr
    return [torch.load(place / name) for name in ("one.0", "two.0", "two.1")]


@pytest.mark.parametrize("number", range(len(CASES)), ids=[f"{case[0]}-{case[3]}-{case[2]}" for case in CASES])
def test_two_processes_propose_what_one_does(number: int, proposals) -> None:
    one, two, second = (found[number] for found in proposals)
    assert one[0] and one[0].keys() == two[0].keys()
    for name, (kind, value, *rest) in one[0].items():
        assert two[0][name][0] == kind and two[0][name][2:] == (*rest,)
        assert float((two[0][name][1] - value).norm()) <= 1e-4 * float(value.norm()), name
        assert torch.equal(two[0][name][1], second[0][name][1])  # the processes agree to the last bit
    assert same(one[1], two[1]) and two[1] == second[1]
    for at in (2, 3):
        assert torch.allclose(one[at], two[at], atol=1e-5) and torch.equal(two[at], second[at])


def test_two_processes_choose_for_the_repaired_model_as_one_does(proposals) -> None:
    """Gap fits are sums too; of depth and width the candidates are repaired."""
    one, two, second = (found[-1] for found in proposals)
    assert one[1][3] and same(one, two) and two == second


@pytest.mark.slow
def test_the_whole_job_runs_in_two_processes(saved, tmp_path) -> None:
    how = ["--samples", "16", "--length", "24", "--budget", "20s", "--device", "cpu"]
    ran = command(*LAUNCH, "shrink", str(saved("llama")), "--remove", "2", *how, "--out", str(tmp_path / "small"))
    assert ran.returncode == 0, ran.stderr
    made = {"model", "plan.json", "evaluation-dense.json", "evaluation-pruned.json", "speed.json", "report.html"}
    assert {path.name for path in (tmp_path / "small").iterdir()} == made | {"report"}
    assert [path.name for path in tmp_path.iterdir()] == ["small"] and ran.stdout.count("single steps") <= 1
    two = load(tmp_path / "small" / "evaluation-pruned.json", "evaluation").perplexity["shipped"]
    one = evaluate(tmp_path / "small" / "model", device="cpu").perplexity["shipped"]
    assert two.value == pytest.approx(one.value, rel=1e-5) and two.tokens == one.tokens


# ---------------------------------------------------------------- the command: killed, resumed, refused

KILLED = """
import os, signal, sys
from shallower import cli
from shallower.repair import state
from shallower.storage import journal
journal.JOURNAL_SECONDS = journal.PATIENCE = 0.0
state.SPILLED = 1
keep, kept = journal.JournalPart.keep, []
def killed(self, *given, **how):
    keep(self, *given, **how)
    kept.append(self.label)
    if kept.count("local training") == 3 and os.environ["RANK"] == "1":
        os.kill(os.getpid(), signal.SIGKILL)
journal.JournalPart.keep = killed
cli.main(sys.argv[1:])
"""
FAILING = """
import os, sys
from shallower import UserError, cli
from shallower.repair import fit
drift = fit.drift
def failing(*given):
    if os.environ["RANK"] == os.environ["FAILS"]:
        raise UserError("this process has had enough")
    return drift(*given)
fit.drift = failing
cli.main(sys.argv[1:])
"""


def test_a_killed_repair_goes_on_in_all_processes(saved, tmp_path) -> None:
    np.save(tmp_path / "tokens.npy", TOKENS.numpy())
    how = RepairOptions("local", QUICK, Calibration(tokens=str(tmp_path / "tokens.npy")))
    compensate(saved("llama"), drop(saved("llama"), (2, 5)), compensating=how, out=tmp_path / "one", device="cpu")
    given = ["prune", str(saved("llama")), "--drop", "2,5", "--device", "cpu", "--tokens", str(tmp_path / "tokens.npy")]
    given += ["--compensate", "local", *(word for pair in QUICK.items() for word in ("--set", "{}={}".format(*pair)))]
    given += ["--out", str(tmp_path / "two"), "--json"]
    script = tmp_path / "killed.py"
    script.write_text(KILLED)
    killed = command(*LAUNCH[:-2], str(script), *given)
    assert killed.returncode != 0 and not (tmp_path / "two").exists()
    assert "[rank" not in killed.stderr and killed.stderr.count("error: another process has ended") <= 1
    again = command(*LAUNCH, *given)
    assert again.returncode == 0, again.stderr
    assert re.search(r"resuming at compensation [1-8] of 9\n", again.stderr)
    assert re.search(r"resuming at local training [1-9]\d* of \d+\n", again.stderr)
    assert json.loads(again.stdout)["kind"] == "pruned"  # printed once
    one, two = (load(tmp_path / name / "compensation.json", "compensation") for name in ("one", "two"))
    assert one.changed == two.changed and one.notes["taken"] == two.notes["taken"]
    assert same([row.curve for row in one.trained], [row.curve for row in two.trained])
    found, wanted = weights(tmp_path / "two"), weights(tmp_path / "one")
    assert found.keys() == wanted.keys()
    for name, value in wanted.items():
        assert float((found[name] - value).norm()) <= 1e-4 * float(value.norm()), name
    assert sorted(path.name for path in tmp_path.iterdir()) == ["killed.py", "one", "tokens.npy", "two"]


def test_more_processes_than_held_out_samples(saved, tmp_path, monkeypatch) -> None:
    np.save(tmp_path / "tokens.npy", TOKENS.numpy())
    monkeypatch.setattr("shallower.runtime.distributed.size", lambda: 7)
    how = RepairOptions("linear", {}, Calibration(tokens=str(tmp_path / "tokens.npy")))
    with pytest.raises(UserError, match=r"48 samples, .* cannot be split among 7 processes: raise samples to 56"):
        fit_repair(Model(saved("llama"), device="cpu"), Removal.of_layers([2]), how)


@pytest.mark.parametrize("fails", ["1", pytest.param("0", marks=pytest.mark.slow)])
def test_one_process_that_fails_ends_all_with_one_line(fails: str, saved, tmp_path) -> None:
    (tmp_path / "failing.py").write_text(FAILING)
    drop(saved("llama"), (2, 5), out=tmp_path / "plan.json")
    given = ["--plan", str(tmp_path / "plan.json"), "--method", "magnitude", "--samples", "16", "--length", "16"]
    given += ["--device", "cpu", "--out", str(tmp_path / "out")]
    names = [*LAUNCH[:-2], str(tmp_path / "failing.py"), "compensate", str(saved("llama")), *given]
    ran = command(*names, FAILS=fails)
    assert ran.stderr.count("error:") == 1 and "error: this process has had enough" in ran.stderr, ran.stderr
    assert "[rank" not in ran.stderr and "exitcode  : 2" in ran.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["failing.py", "plan.json"]
