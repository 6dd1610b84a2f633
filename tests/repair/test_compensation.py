"""Repairs: writers by behaviour, changes folded into files, formulas against literal ones, never worse than nothing."""

import itertools
import json
import math
import re
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import zoo
from kills import Killed, keep_every_step, killed, killed_after
from marks import rest_slow
from trainings import weights
from transformers import AutoModelForCausalLM

from shallower import Calibration, Compute, Refusal, RepairOptions, UserError, cli, compensate, drop, methods, prune
from shallower.anatomy.model import Model
from shallower.anatomy.patch import Edit, patched
from shallower.artifacts import Removal
from shallower.errors import DiskError
from shallower.repair.case import Case, Fitted, half_strength
from shallower.repair.drift import drift
from shallower.repair.paired import PairedWalk
from shallower.repair.ridge import Normal, map_of
from shallower.repair.state import RepairState
from shallower.repair.suffix import SuffixLoss
from shallower.runtime.progress import shown
from shallower.stages.repair import fit_repair
from shallower.storage.journal import Journal, journaled
from shallower.surgery.rewrite import Beside, prune_files
from shallower.walk.removals import all_nll

TOKENS = zoo.tokens(batch=9, length=24)
REMOVED = (2, 5)
REMOVAL = Removal.of_layers(REMOVED)
MAPS = [name for name in methods.names("compensation") if name not in ("magnitude", "mean_shift", "bias", "local")]

each_map = pytest.mark.parametrize("method", MAPS)


@pytest.fixture
def tokens_file(tmp_path):
    np.save(tmp_path / "tokens.npy", TOKENS.numpy())
    return str(tmp_path / "tokens.npy")


def case(model: Model, method: str = "sequential", **settings: str) -> Case:
    held_out = TOKENS[-2:]

    def loss(patch) -> float:
        with model.patched(patch):
            return float(all_nll(model, held_out, REMOVAL).double().mean())

    found = methods.find("compensation", method)
    return Case(model, REMOVAL, TOKENS[:-2], held_out, loss, loss({}), methods.configure(found, settings))


def fitted(folder, method: str, *, layered: bool = False, **settings: str) -> Fitted:
    return methods.find("compensation", method).fit(
        case(Model(folder, device="cpu", layered=layered), method, **settings)
    )


def writers(folder, index: int = 3):
    return PairedWalk(Model(folder, device="cpu"), TOKENS[:2], Removal.of_layers([1])).writers(index)


# ---------------------------------------------------------------- writers


@pytest.mark.parametrize(("name", "modules", "axis", "scale", "features"), [
    ("llama", ["self_attn.o_proj", "mlp.down_proj"], 0, 1.0, True),
    ("gpt2", ["attn.c_proj", "mlp.c_proj"], 1, 1.0, True),
    ("opt", ["self_attn.out_proj", "fc2"], 0, 1.0, True),
    # its blocks add the stream themselves; the attention's is not told apart
    ("bloom", ["mlp.dense_4h_to_h"], 0, 1.0, True),
    ("granite", ["self_attn.o_proj", "mlp.down_proj"], 0, 0.5, True),
    ("phi", ["self_attn.dense", "mlp.fc2"], 0, 1.0, True),  # side by side
    ("phi3", ["self_attn.o_proj", "mlp.down_proj"], 0, 1.0, True),  # behind each a dropout
    ("mixtral", ["self_attn.o_proj", "mlp"], 1, 1.0, False),
])  # fmt: skip
def test_writers_are_found_by_behaviour(name, modules, axis, scale, features, saved) -> None:
    found = writers(saved(name))
    assert [writer.module for writer in found] == modules
    last = found[-1]
    assert last.scale == pytest.approx(scale, rel=1e-4)
    assert last.features == features
    assert last.weights[0][1] == axis


@pytest.mark.parametrize("name", ["gemma2", "olmo2", "roberta"])  # without ``gains``
def test_a_norm_behind_the_product_is_refused_and_named(name, saved) -> None:
    with pytest.raises(Refusal, match=r"layer 3: (no map folds into what \w+|a part of what \w+) adds"):
        writers(saved(name))


# ---------------------------------------------------------------- changes in memory and in files


def test_an_edit_is_its_formula() -> None:
    weight, matrix = torch.randn(3, 4, 5), torch.randn(4, 4)
    mapped = Edit("map", matrix, axis=1).of(weight)
    assert torch.allclose(mapped, torch.einsum("pq,eqi->epi", matrix, weight), atol=1e-6)
    assert Edit("map", matrix, axis=1).on_disk("w", (3, 4, 5), (4, 5)).axis == 0  # experts lie apart in the files
    with pytest.raises(Refusal, match="another form"):
        Edit("map", matrix, axis=1).on_disk("w", (3, 4, 5), (5, 4, 3))
    assert torch.equal(Edit("scale", torch.tensor(2.0)).of(weight), weight * 2)
    half = half_strength(
        {"map": Edit("map", matrix, axis=1), "scale": Edit("scale", torch.tensor(3.0)), "add": Edit("add", weight)}
    )
    assert torch.allclose(half["map"].of(weight), (weight + mapped) / 2, atol=1e-6)
    assert torch.equal(half["scale"].of(weight), 2 * weight) and torch.equal(half["add"].of(weight), 1.5 * weight)


FOLDED = ("llama", "llama+tied", "gpt2", "opt", "bloom", "granite", "phi", "mixtral", "qwen3_moe", "gpt_neox")
FOLDED_FAST = {*((name, False) for name in FOLDED), ("llama", True), ("mixtral", True)}


@pytest.mark.parametrize(("name", "layered"), rest_slow(itertools.product(FOLDED, (False, True)), FOLDED_FAST))
def test_folded_into_files_it_is_the_virtual_model(name, layered, saved, tmp_path) -> None:
    model = Model(saved(name), device="cpu", layered=layered)
    walk = PairedWalk(model, TOKENS[:2], REMOVAL)
    patch = {}
    for stop in walk:
        width = model.stack.width
        generator = torch.Generator().manual_seed(stop.index)
        matrix = torch.eye(width) + 0.2 * torch.randn(width, width, generator=generator) / width**0.5
        for writer in stop.writers():
            patch |= {weight: Edit("map", matrix, axis) for weight, axis in stop.weights(writer)}
    pruned = prune_files(model, drop(model, REMOVED), tmp_path / "out", beside=Beside(patch))
    assert pruned.verified.changed_weights == len(patch)
    reloaded = AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype=torch.float32).eval()
    with torch.no_grad(), model.patched(patch):
        wanted = all_nll(model, TOKENS, REMOVAL)
        logits = reloaded(input_ids=TOKENS, use_cache=False).logits[:, :-1]
    got = torch.nn.functional.cross_entropy(logits.flatten(0, 1), TOKENS[:, 1:].flatten(), reduction="none").view(
        wanted.shape
    )
    assert torch.allclose(got, wanted, atol=1e-4)
    assert (got - all_nll(model, TOKENS, REMOVAL)).abs().max() > 1e-2  # the change mattered, and is undone again


def test_what_is_loaded_stays_as_it_was(saved) -> None:
    model = Model(saved("llama"), device="cpu")
    before = {name: weight.clone() for name, weight in model.module.state_dict().items()}
    with patched(model.module, {"model.layers.0.mlp.down_proj.weight": Edit("scale", torch.tensor(0.0))}):
        assert not model.module.model.layers[0].mlp.down_proj.weight.any()
    assert all(torch.equal(weight, before[name]) for name, weight in model.module.state_dict().items())


# ---------------------------------------------------------------- formulas


def test_the_closed_form_is_the_trained_one() -> None:
    """One matrix trained by gradient descent on MSE plus regulariser ends where the closed form is."""
    torch.manual_seed(0)
    m, rest = torch.randn(200, 6).double(), torch.randn(200, 6).double()
    rest += m @ torch.randn(6, 6).double() * 0.3
    normal, strength = Normal(), 0.1
    normal.add(m, rest)
    size = float(m.square().mean())
    trained = torch.eye(6, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([trained], max_iter=200, tolerance_grad=1e-12, tolerance_change=1e-14)

    def closure():
        optimizer.zero_grad()
        error = ((m + rest) - m @ trained.T).square().sum() / len(m) + strength * size * (
            trained - torch.eye(6)
        ).square().sum()
        error.backward()
        return error

    optimizer.step(closure)
    assert torch.allclose(map_of(normal, strength).double(), trained.detach(), atol=1e-5)


def plain_streams(folder, tokens, removed=()):
    """(layer, what leaves it) of the plain model, without some layers."""
    model, found = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval(), {}
    kept = [index for index in range(len(model.model.layers)) if index not in removed]
    for index in kept:
        model.model.layers[index].register_forward_hook(lambda _, __, out, index=index: found.update({index: out}))
    model.model.layers = torch.nn.ModuleList(model.model.layers[index] for index in kept)
    with torch.no_grad():
        model(input_ids=tokens, use_cache=False)
    return {index: stream.double().flatten(0, 1) for index, stream in found.items()}


def test_drift_is_its_formula(saved) -> None:
    dense, pruned = plain_streams(saved("llama"), TOKENS), plain_streams(saved("llama"), TOKENS, REMOVED)
    found = drift(Model(saved("llama"), device="cpu"), TOKENS, REMOVAL, {})
    assert [one.layer for one in found] == [0, 1, 3, 4, 6, 7]
    for one in found:
        same, other = dense[one.layer], pruned[one.layer]
        shift = float((other.mean(0) - same.mean(0)).norm())
        assert one.shift == pytest.approx(shift, rel=1e-4, abs=1e-6)
        assert one.relative_shift == pytest.approx(shift / float(same.mean(0).norm()), rel=1e-4, abs=1e-6)
        assert one.error == pytest.approx(float((other - same).norm() / same.norm()), rel=1e-4, abs=1e-6)


@pytest.mark.parametrize("shift", ["absolute", "relative"])
def test_projection_takes_the_layer_that_moved_most(shift, saved) -> None:
    found = fitted(saved("llama"), "projection", shift=shift, top_k="2")
    moved = {
        one.layer: vars(one)["shift" if shift == "absolute" else "relative_shift"] for one in _drift(saved("llama"))
    }
    assert [step["layer"] for step in found.notes["steps"]] == sorted(moved, key=moved.get, reverse=True)[:2]


def _drift(folder):
    return drift(Model(folder, device="cpu"), TOKENS[:-2], REMOVAL, {})


def test_magnitude_is_the_published_form(saved) -> None:
    """Dividing behind the gap equals multiplying all that writes in front of it, but for the epsilon of the norms."""
    found = fitted(saved("llama"), "magnitude")
    scales = {step["layer"]: step["scale_behind"] for step in found.notes["steps"]}
    assert list(scales) == [1, 4]
    published = {"model.embed_tokens.weight": 1 / scales[4]}
    for index in (0, 1, 3, 4):
        alpha = 1 / scales[4] * (1 if index < 2 else scales[1])
        published |= {f"model.layers.{index}.{name}.weight": alpha for name in ("self_attn.o_proj", "mlp.down_proj")}
    model = Model(saved("llama"), device="cpu")
    with model.patched({name: Edit("scale", torch.tensor(alpha)) for name, alpha in published.items()}):
        wanted = all_nll(model, TOKENS, REMOVAL)
    with model.patched(found.patch):
        assert torch.allclose(all_nll(model, TOKENS, REMOVAL), wanted, atol=1e-3)


def test_mean_shift_moves_the_mean_back(saved) -> None:
    model = Model(saved("gpt2"), device="cpu")
    found = methods.find("compensation", "mean_shift").fit(case(model, "mean_shift"))
    layer = found.notes["layer"]
    if found.patch:
        after = {one.layer: one for one in drift(model, TOKENS[:-2], REMOVAL, found.patch)}[layer]
        assert after.shift < 1e-4 * found.notes["shift"]


def test_the_tail_is_the_whole_model(saved) -> None:
    model = Model(saved("llama"), device="cpu")
    tail, patch = (
        SuffixLoss(model, TOKENS, REMOVAL),
        {"model.layers.4.mlp.down_proj.weight": Edit("scale", torch.tensor(0.5))},
    )
    tail.pass_on(3, {})
    with model.patched(patch):
        wanted = float(all_nll(model, TOKENS, REMOVAL).double().mean())
    assert tail.loss(4, patch) == pytest.approx(wanted, rel=1e-6)
    tail.pass_on(4, patch)
    assert tail.loss(6, {}) == pytest.approx(wanted, rel=1e-6)


# ---------------------------------------------------------------- the promise: never worse, the same everywhere


@each_map
@pytest.mark.parametrize("name", ["llama", "mixtral", "granite"])
def test_never_worse_and_the_drift_is_told(method, name, saved, tokens_file, tmp_path, capsys) -> None:
    how = RepairOptions(method, {}, Calibration(tokens=tokens_file))
    with shown():
        pruned = compensate(saved(name), drop(saved(name), REMOVED), compensating=how, out=tmp_path / "out")
    told = json.loads((tmp_path / "out" / "compensation.json").read_text())
    assert told["loss"]["after"] <= told["loss"]["before"]
    assert pruned.compensation.changed == told["changed"]
    assert (told["fitted_tokens"], told["held_out_tokens"]) == (8 * 24, 24)
    assert [row["layer"] for row in told["layers"]] == [0, 1, 3, 4, 6, 7]
    assert (tmp_path / "out" / "compensation.png").read_bytes().startswith(b"\x89PNG")
    assert bool(told["changed"]) != ("nothing is changed" in capsys.readouterr().err)
    assert pruned.verified.changed_weights == len(told["changed"])


def test_what_makes_it_worse_is_not_taken(saved, tokens_file, tmp_path, monkeypatch, capsys) -> None:
    name, noise = (
        "model.layers.7.mlp.down_proj.weight",
        [torch.randn(64, 96, generator=torch.Generator().manual_seed(i)) for i in range(20)],
    )
    bad = [{name: Edit("add", value)} for value in noise]
    monkeypatch.setattr(methods.find("compensation", "linear"), "fit", lambda case: Fitted(max(bad, key=case.loss)))
    how = RepairOptions("linear", {}, Calibration(tokens=tokens_file))
    with shown():
        compensate(saved("llama"), drop(saved("llama"), REMOVED), compensating=how, out=tmp_path / "out")
    prune(saved("llama"), drop(saved("llama"), REMOVED), out=tmp_path / "plain")
    assert "linear does not lower the held-out loss" in capsys.readouterr().err
    assert (tmp_path / "out" / "model.safetensors").read_bytes() == (
        tmp_path / "plain" / "model.safetensors"
    ).read_bytes()


def test_sequential_layer_by_layer_lowers_the_loss_at_every_step(saved) -> None:
    found = fitted(saved("llama"), "sequential", accept="layer")
    steps = found.notes["steps"]
    assert {step["layer"] for step in steps} == {1, 3, 4, 6, 7}  # what stands in front of a gap or behind one
    assert len(steps) == 10  # attention and down projection
    for step, following in itertools.pairwise(steps):
        reached = min(step["loss_before"], *step["losses"].values())
        assert following["loss_before"] == pytest.approx(reached, rel=1e-5)
        assert (step["strength"] is None) == (reached == step["loss_before"])


@each_map
def test_layered_is_resident(method, saved) -> None:
    one, other = (fitted(saved("llama"), method, layered=layered) for layered in (False, True))
    assert one.notes == other.notes
    assert one.patch.keys() == other.patch.keys()
    assert all(torch.equal(edit.value, other.patch[name].value) for name, edit in one.patch.items())


@each_map
def test_few_tokens_are_said_and_give_no_nan(method, saved, tmp_path, capsys) -> None:
    np.save(tmp_path / "few.npy", TOKENS[:2, :4].numpy())
    how = RepairOptions(method, {}, Calibration(tokens=str(tmp_path / "few.npy")))
    with shown():
        patch, report = fit_repair(Model(saved("llama"), device="cpu"), REMOVAL, how)
    assert re.search(r"4 tokens to fit (64|96) inputs on.* at least \d\d samples of 4 tokens", capsys.readouterr().err)
    assert all(torch.isfinite(edit.value).all() for edit in patch.values())
    assert all(map(math.isfinite, vars(report.loss).values()))


def test_constant_tokens_give_no_nan() -> None:
    normal = Normal()
    normal.add(torch.zeros(5, 3), torch.ones(5, 3))
    assert not normal.solve(0.1).any()
    normal.add(torch.ones(5, 3), torch.ones(5, 3))  # one direction only
    assert torch.isfinite(normal.solve(0.0)).all()


# ---------------------------------------------------------------- never lost


@pytest.mark.parametrize("spilled", [1, pytest.param(1 << 20, marks=pytest.mark.slow)])
@pytest.mark.parametrize(
    "method",
    [
        *(
            name if name == "projection" else pytest.param(name, marks=pytest.mark.slow)
            for name in methods.names("compensation")
            if name != "bias"  # of groups of parts
        ),
        "sequential layer",
    ],
)
def test_a_killed_compensation_goes_on(
    method: str, spilled: int, saved, tokens_file, tmp_path, monkeypatch, capsys
) -> None:
    """Wherever it is killed, and with large changes on the disk: the same weights and the same report, but for the
    clock.
    """
    keep_every_step(monkeypatch)
    monkeypatch.setattr("shallower.repair.state.SPILLED", spilled)
    name, _, accept = method.partition(" ")
    how = RepairOptions(name, {"accept": accept} if accept else {}, Calibration(tokens=tokens_file))
    folder, out = saved("gpt2"), tmp_path / "out"  # one whose down projections have biases
    plan, options = drop(folder, REMOVED), {"compute": Compute(device="cpu"), "compensating": how}
    prune(folder, plan, out=tmp_path / "whole", **options)
    for count in (1, 3, 3):  # after 0 and 1, then 3 and 4 and 6, then 6 and all
        killed_after(monkeypatch, count, lambda: prune(folder, plan, out=out, **options))
    monkeypatch.setattr("shallower.surgery.rewrite._write", killed)
    with pytest.raises(Killed):
        prune(folder, plan, out=out, **options)
    monkeypatch.undo()
    with shown():
        prune(folder, plan, out=out, **options)
    assert "resuming at compensation 9 of 9" in capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "tokens.npy", "whole"]
    got, wanted = (weights(tmp_path / name) for name in ("out", "whole"))
    assert got.keys() == wanted.keys() and all(torch.equal(got[name], tensor) for name, tensor in wanted.items())
    first, second = (json.loads((tmp_path / name / "compensation.json").read_text()) for name in ("out", "whole"))
    changing = ("seconds", "peak_memory_bytes", "provenance")
    assert {name: first[name] for name in first if name not in changing} == {
        name: second[name] for name in second if name not in changing
    }


@pytest.fixture
def spilling(saved, tokens_file, tmp_path, monkeypatch):
    """``spilling(name)`` repairs into a folder of that name, all changes being kept on the disk."""
    keep_every_step(monkeypatch)
    monkeypatch.setattr("shallower.repair.state.SPILLED", 1)
    how = RepairOptions("sequential", {}, Calibration(tokens=tokens_file))
    plan, options = drop(saved("llama"), REMOVED), {"compute": Compute(device="cpu"), "compensating": how}
    return lambda name: prune(saved("llama"), plan, out=tmp_path / name, **options)


def test_changes_that_are_not_whole_on_the_disk_are_found_again(spilling, tmp_path, monkeypatch, capsys) -> None:
    spilling("whole")
    killed_after(monkeypatch, 5, lambda: spilling("out"))
    cut = list(tmp_path.rglob("*.spilled"))
    for path in cut:
        path.write_bytes(path.read_bytes()[:99])
    with shown():
        spilling("out")
    assert cut and "is not whole: beginning anew" in capsys.readouterr().err
    first, second = (json.loads((tmp_path / name / "compensation.json").read_text()) for name in ("out", "whole"))
    assert all(first[name] == second[name] for name in ("notes", "loss", "changed", "layers"))


def test_a_repair_that_the_disk_has_no_room_for_is_kept(spilling, tmp_path, monkeypatch, capsys) -> None:
    with monkeypatch.context() as patch:
        patch.setattr("shutil.disk_usage", lambda place: SimpleNamespace(free=99))
        with pytest.raises(DiskError, match="free some or write elsewhere"):
            spilling("out")
    assert not (tmp_path / "out").exists()
    with shown():
        spilling("out")
    assert "resuming at compensation 9 of 9" in capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "tokens.npy"]


def test_a_change_of_several_weights_is_written_once(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr("shallower.repair.state.SPILLED", 1)
    value = torch.arange(6.0).view(2, 3)
    with journaled(tmp_path / "out"):
        part, found = (
            Journal({"of": "a test"}).part("fitting", 2),
            RepairState({name: Edit("map", value, 0) for name in "ab"}),
        )
        found.spill(part, 0, found.patch)
        assert next(tmp_path.rglob("*.spilled")).stat().st_size < 250
        assert all(torch.equal(edit.value, value) for edit in found.patch.values())


# ---------------------------------------------------------------- mistakes


@pytest.mark.parametrize(("name", "arguments", "message"), [
    ("gemma2", ["--method", "projection"], "layer 1: no map folds into what"),
    ("llama", ["--method", "mean_shift"], "has no bias, and a checkpoint of this architecture has no place for one"),
    ("llama", ["--method", "sequentially"], "unknown compensation 'sequentially': did you mean sequential"),
    ("llama", ["--method", "sequential", "--set", "accept=never"], "allowed are end, layer"),
    ("llama", ["--method", "linear", "--set", "top_k=2"], "linear has no setting 'top_k'"),
])  # fmt: skip
def test_mistakes_are_told_in_a_line(name, arguments, message, saved, tokens_file, tmp_path, capsys) -> None:
    drop(saved(name), REMOVED, out=tmp_path / "plan.json")
    with pytest.raises(SystemExit) as stopped:
        cli.main(["compensate", str(saved(name)), "--plan", str(tmp_path / "plan.json"), "--out", str(tmp_path / "out"),
                  "--tokens", tokens_file, *arguments])  # fmt: skip
    said = capsys.readouterr().err.strip().splitlines()[-1]
    assert stopped.value.code == 2
    assert message in said
    assert not (tmp_path / "out").exists()


def test_a_plan_for_another_model(saved, tmp_path) -> None:
    with pytest.raises(UserError, match="was made for another model"):
        compensate(saved("llama"), drop(saved("qwen3"), REMOVED), out=tmp_path / "out")


def test_one_sample_is_not_enough(saved, tmp_path) -> None:
    np.save(tmp_path / "one.npy", TOKENS[:1].numpy())
    how = RepairOptions("linear", {}, Calibration(tokens=str(tmp_path / "one.npy")))
    with pytest.raises(UserError, match="at least 2 calibration samples"):
        compensate(saved("llama"), drop(saved("llama"), REMOVED), compensating=how, out=tmp_path / "out")


def test_prune_with_a_compensation_in_one_step(saved, tmp_path) -> None:
    assert (
        cli.main(
            [
                "prune",
                str(saved("llama")),
                "--drop",
                "2,5",
                "--compensate",
                "linear",
                "--compensate-samples",
                "6",
                "--length",
                "16",
                "--set",
                "strength=0.5",
                "--out",
                str(tmp_path / "out"),
            ]
        )
        is None
    )
    told = json.loads((tmp_path / "out" / "shallower.json").read_text())["compensation"]
    settings = {"strength": 0.5, "loss": "squares", "seed": 0}
    assert (told["method"], told["settings"], told["calibration"]["samples"]) == ("linear", settings, 6)
