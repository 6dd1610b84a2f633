"""Iterative schedules with a repair after every removal: what stays is scored in the model repaired so far."""

import json
from dataclasses import replace

import numpy as np
import pytest
import zoo
from kills import keep_every_step, killed_after
from marks import rest_slow

from shallower import Calibration, Compute, RepairOptions, UserError, cli, drop, open_model, plan, prune, score, sweep
from shallower.anatomy.model import Model
from shallower.artifacts import load
from shallower.runtime.progress import shown

MAGNITUDE = {"iterative": True, "refit": "magnitude", "keep_first": 1, "keep_last": 2}
SEQUENTIAL = MAGNITUDE | {"refit": "sequential"}


@pytest.fixture
def calibration(tmp_path) -> Calibration:
    np.save(tmp_path / "tokens.npy", zoo.tokens(batch=96, length=24, vocab=24).numpy())
    return Calibration(tokens=str(tmp_path / "tokens.npy"), samples=96)


CRITERIA = rest_slow(["block_influence", "taylor", "perplexity", "angular"], {"block_influence", "taylor"})


@pytest.mark.parametrize("criterion", CRITERIA)
def test_it_is_repairing_and_pruning_one_layer_at_a_time(criterion, saved, calibration, tmp_path) -> None:
    how = RepairOptions("sequential", {}, replace(calibration, at_most=True))
    order, trace, changed, model = [], [], [], open_model(saved("llama"))
    for step in range(3):
        values = score(model, criterion=criterion, calibration=calibration).scores
        worst = min(range(1, len(values) - 2), key=values.__getitem__)
        trace.append(values[worst])
        order.append(model.record.original[worst])
        pruned = prune(saved("llama"), drop(saved("llama"), order), out=tmp_path / str(step), compensating=how)
        changed.append(len(pruned.compensation.changed))
        model = open_model(tmp_path / str(step))
    found = plan(saved("llama"), remove=3, criterion=criterion, calibration=calibration, **SEQUENTIAL)
    assert (found.order, found.refit, found.iterative) == (order, "sequential", True)
    assert found.trace == pytest.approx(trace, rel=1e-4)
    plain = plan(saved("llama"), remove=3, criterion=criterion, calibration=calibration, **SEQUENTIAL | {"refit": None})
    assert any(changed[:-1]) and plain.trace != pytest.approx(trace, rel=1e-4)


def test_layered_is_resident_and_parts_go_alike(saved, calibration) -> None:
    how = SEQUENTIAL | {"calibration": calibration, "units": "sublayer", "remove": 3}
    one, other = (plan(Model(saved("llama"), device="cpu", layered=layered), **how) for layered in (False, True))
    assert len(one.units) == 3 and one.units == other.units and one.trace == pytest.approx(other.trace, rel=1e-5)


def test_a_killed_one_goes_on(saved, calibration, tmp_path, monkeypatch, capsys) -> None:
    keep_every_step(monkeypatch)
    how = SEQUENTIAL | {"remove": 3, "calibration": calibration, "compute": Compute(device="cpu")}
    plan(saved("llama"), out=tmp_path / "whole.json", **how)
    for count in (3, 9, 12):
        killed_after(monkeypatch, count, lambda: plan(saved("llama"), out=tmp_path / "plan.json", **how))
    with shown():
        plan(saved("llama"), out=tmp_path / "plan.json", **how)
    assert "resuming at compensation" in capsys.readouterr().err
    one, other = (json.loads((tmp_path / name).read_text()) for name in ("plan.json", "whole.json"))
    assert other["refit"] == "sequential"
    assert all(one[name] == other[name] for name in other if name not in ("seconds", "provenance"))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["plan.json", "tokens.npy", "whole.json"]


def test_within_a_share_of_perplexity_the_repaired_model_counts(saved, calibration, tmp_path) -> None:
    text = tmp_path / "text.txt"
    text.write_text("one two three four five six seven\n" * 60)
    how = {"max_ppl_increase": "300%", "calibration": calibration, "texts": [str(text)]}
    assert "repaired by magnitude" in plan(saved("llama"), **how, **MAGNITUDE).assumed


def test_plans_tell_the_refit_only_where_there_is_one(saved, calibration, tmp_path) -> None:
    how = {"remove": 1, "calibration": calibration, "iterative": True}
    plan(saved("llama"), out=tmp_path / "plan.json", **how)
    assert "refit" not in json.loads((tmp_path / "plan.json").read_text())
    assert load(tmp_path / "plan.json", "plan").refit is None


@pytest.mark.parametrize(("arguments", "message"), [
    (["--refit", "magnitud", "--iterative"], "unknown compensation 'magnitud': did you mean magnitude"),
    (["--refit", "magnitude"], "repairs between removals, one by one: add --iterative"),
    (["--refit", "magnitude", "--iterative", "--selection", "greedy"], "--iterative has no meaning for --selection"),
    (["--refit", "magnitude", "--iterative", "--criterion", "random"], "changes nothing that random is about"),
    (["--refit", "magnitude", "--iterative", "--criterion", "magnitude"], "changes nothing that magnitude is about"),
    (["--refit", "bias", "--iterative"], "--refit bias repairs narrower layers only; between removals go linear"),
    (["--refit", "magnitude", "--iterative", "--units", "width"], "--iterative has no meaning for"),
    (["--refit", "mean_shift", "--iterative"], "and a checkpoint of this architecture has no place for one"),
])  # fmt: skip
def test_mistakes_are_told_in_a_line(arguments, message, saved, tmp_path, capsys) -> None:
    short = ["--samples", "4", "--length", "16"]
    with pytest.raises(SystemExit) as end:
        cli.main(["plan", str(saved("llama")), "--ratio", "0.3", *short, *arguments, "--out", str(tmp_path / "p.json")])
    said = capsys.readouterr().err.strip().splitlines()[-1]
    assert end.value.code == 2 and message in said
    assert not [*tmp_path.iterdir()]


def test_scores_alone_and_sweeps_are_refused(saved, calibration) -> None:
    model = Model(saved("llama"), device="cpu")
    with pytest.raises(UserError, match="runs the model: give MODEL"):
        plan(score(model, calibration=calibration), remove=1, selection="lowest", iterative=True, refit="magnitude")
    with pytest.raises(UserError, match="has no meaning for a sweep"):
        sweep(model, sizes=[1], iterative=True, refit="magnitude")
    with pytest.raises(UserError, match="has no meaning for selection=window"):
        sweep(model, sizes=[1], iterative=True, selection="window")
    model.__dict__["replay"] = None
    with pytest.raises(UserError, match="nothing can be repaired: leave out refit"):
        plan(model, remove=1, calibration=calibration, iterative=True, refit="magnitude")
