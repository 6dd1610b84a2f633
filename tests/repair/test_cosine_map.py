"""The cosine objective of ``linear``: its formula and gradient, a descent that never rises, rows within bounds."""

import json
import math

import numpy as np
import pytest
import torch
import zoo
from kills import keep_every_step, killed_after
from transformers import AutoModelForCausalLM

from shallower import Calibration, Compute, RepairOptions, UserError, compensate, drop, methods, prune
from shallower.anatomy.model import Model
from shallower.artifacts import Removal
from shallower.repair import cosine_map
from shallower.repair.batch import PairedBatch
from shallower.repair.cosine_map import BATCH, CosineMap, turned
from shallower.repair.ridge import Normal, map_of
from shallower.stages.repair import fit_repair
from shallower.storage.journal import NO_JOURNAL
from shallower.walk.removals import all_nll

TOKENS = zoo.tokens(batch=40, length=24, vocab=24)  # few different ones, so that there is something to learn
COSINE = {"loss": "cosine"}


@pytest.fixture
def how(tmp_path) -> RepairOptions:
    np.save(tmp_path / "tokens.npy", TOKENS.numpy())
    return RepairOptions("linear", COSINE, Calibration(tokens=str(tmp_path / "tokens.npy")))


def batch(count: int, width: int = 5, seed: int = 0) -> PairedBatch:
    draw = torch.Generator().manual_seed(seed)
    added, rest, noise = (torch.randn(count, width, generator=draw) for _ in range(3))
    wanted = rest + added @ torch.randn(width, width, generator=draw) + 0.3 * noise
    return PairedBatch(rest + added, wanted, wanted, added, None, rest + added, wanted)


def lowered(rows: CosineMap, start, strength: float = 0.1):
    return rows.lowered(start, strength, NO_JOURNAL.part("", 1), lambda share: None)


def test_the_objective_and_its_gradient_are_the_formula() -> None:
    one, strength = batch(7), 0.3
    rows = CosineMap(7)
    rows.add(one)
    change = 0.1 * torch.randn(5, 5, generator=torch.Generator().manual_seed(1))
    added, wanted = one.output.double(), one.wanted.double()
    pull = strength * sum(float(m @ m / (h @ h)) for m, h in zip(added, wanted, strict=True)) / 7 / 5 / 2
    value, slope = pull * float(change.double().square().sum()), 2 * pull * change.double()
    for m, h, x in zip(added, wanted, one.after.double() + added @ change.double().T, strict=True):
        share = float(x @ h / (x.norm() * h.norm()))
        value += (1 - share) / 7
        slope = slope - torch.outer(h / h.norm() - share * x / x.norm(), m) / x.norm() / 7
    assert rows.pull(strength) == pytest.approx(pull, rel=1e-5)
    assert rows.objective(change, rows.pull(strength)) == pytest.approx(value, rel=1e-5)
    weight = change.clone().requires_grad_(True)
    (turned(weight, *rows.rows()).mean() + pull * weight.square().sum()).backward()
    assert torch.allclose(weight.grad.double(), slope, atol=1e-6)


@pytest.mark.parametrize("rate", [1e-3, 1.0])  # with the second every pass overshoots at first
def test_the_objective_never_rises(rate, monkeypatch) -> None:
    monkeypatch.setattr(cosine_map, "RATE", rate)
    rows, normal = CosineMap(3000), Normal()
    for seed in range(3):
        one = batch(1000, seed=seed)
        rows.add(one)
        normal.add(one.output, one.wanted - one.after)
    start = map_of(normal, 0.1)
    found, curve = lowered(rows, start)
    assert curve == sorted(curve, reverse=True) and curve[-1] < curve[0]
    assert rows.objective(found - torch.eye(5), rows.pull(0.1)) == pytest.approx(curve[-1], rel=1e-6)
    again, same = lowered(rows, start)
    assert torch.equal(again, found) and same == curve
    rows.seed = 1
    assert not torch.equal(lowered(rows, start)[0], found)


def test_a_large_pull_stays_at_the_identity() -> None:
    rows = CosineMap(BATCH)
    rows.add(batch(BATCH))
    found, _ = lowered(rows, torch.eye(5), 1e6)
    assert torch.allclose(found, torch.eye(5), atol=1e-3)


def test_rows_beyond_the_memory_are_an_evenly_spread_part(monkeypatch) -> None:
    every, some = CosineMap(50), CosineMap(50)
    parts = [batch(count, seed=count) for count in (7, 23, 20)]
    for one in parts:
        every.add(one)
    monkeypatch.setattr(cosine_map, "KEPT", 50 * 3 * 4 * 5 // 3)
    for one in parts:
        some.add(one)
    assert [len(rows) for rows in every.rows()] == [50] * 3
    for whole, part in zip(every.rows(), some.rows(), strict=True):
        assert torch.equal(part, whole[::3])


def test_constant_streams_give_no_nan() -> None:
    zero = torch.zeros(6, 5)
    rows = CosineMap(6)
    rows.add(PairedBatch(zero, zero, zero, zero, None, zero, zero))
    found, curve = lowered(rows, torch.eye(5))
    assert torch.isfinite(found).all() and all(map(math.isfinite, curve))


@pytest.mark.parametrize("removed", ["2,5", "3.mlp"])
def test_files_equal_memory_and_it_is_never_worse(removed, saved, how, tmp_path) -> None:
    plan = drop(saved("llama"), removed)
    pruned = compensate(saved("llama"), plan, compensating=how, out=tmp_path / "out", format="custom")
    told = json.loads((tmp_path / "out" / "compensation.json").read_text())
    assert told["loss"]["after"] < told["loss"]["before"] and pruned.verified.changed_weights == len(told["changed"])
    for step in told["notes"]["steps"]:
        assert step["objective"] == sorted(step["objective"], reverse=True) and len(step["squares"]) == 4
    model = Model(saved("llama"), device="cpu")
    patch, _ = fit_repair(model, plan.removal, how)
    with model.patched(patch):
        wanted = all_nll(model, TOKENS[:4], plan.removal)
    written = AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype=torch.float32, trust_remote_code=True)
    with torch.no_grad():
        logits = written.eval()(input_ids=TOKENS[:4], use_cache=False).logits[:, :-1]
    got = torch.nn.functional.cross_entropy(logits.flatten(0, 1), TOKENS[:4, 1:].flatten(), reduction="none")
    assert torch.allclose(got.view(wanted.shape), wanted, atol=1e-4)


def test_layered_is_resident(saved, how) -> None:
    plans = [drop(saved("llama"), "2,5").removal] * 2
    one, other = (
        fit_repair(Model(saved("llama"), device="cpu", layered=layered), removal, how)[0]
        for layered, removal in zip((False, True), plans, strict=True)
    )
    assert one and one.keys() == other.keys()
    assert all(torch.equal(edit.value, other[name].value) for name, edit in one.items())


def test_a_killed_descent_goes_on(saved, how, tmp_path, monkeypatch, capsys) -> None:
    keep_every_step(monkeypatch)
    plan, options = drop(saved("llama"), (2, 5)), {"compute": Compute(device="cpu"), "compensating": how}
    prune(saved("llama"), plan, out=tmp_path / "whole", **options)
    for count in (4, 2):
        killed_after(monkeypatch, count, lambda: prune(saved("llama"), plan, out=tmp_path / "out", **options))
    prune(saved("llama"), plan, out=tmp_path / "out", **options)
    first, second = ((tmp_path / name / "model.safetensors").read_bytes() for name in ("out", "whole"))
    assert first == second
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "tokens.npy", "whole"]


def test_what_no_map_folds_into_is_refused_as_before(saved, how) -> None:
    with pytest.raises(UserError, match=r"layer 1: no map folds into what"):
        fit_repair(Model(saved("gemma2"), device="cpu"), Removal.of_layers((2,)), how)
    with pytest.raises(UserError, match="linear: loss=angle: allowed are squares, cosine"):
        methods.configure(methods.find("compensation", "linear"), {"loss": "angle"})
