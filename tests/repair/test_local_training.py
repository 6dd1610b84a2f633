"""Local training: one layer at a time learns the dense stream; norms behind writers take a diagonal."""

import re

import numpy as np
import pytest
import torch
import zoo
from kills import keep_every_step, killed_after
from marks import rest_slow
from shrinking import shrink
from transformers import AutoModelForCausalLM

from shallower import Calibration, Refusal, RepairOptions, UserError, cli, compensate, drop, methods, open_model
from shallower.anatomy.model import Model
from shallower.anatomy.patch import Patch
from shallower.artifacts import Compensation, Removal, load
from shallower.repair import local_training
from shallower.repair.case import Case
from shallower.repair.local_training import LOSSES, LocalRecipe, rate_share
from shallower.repair.paired import PairedWalk
from shallower.stages.repair import fit_repair
from shallower.storage.journal import journaled
from shallower.surgery.rewrite import Beside, prune_files
from shallower.walk.removals import all_nll

TOKENS = zoo.tokens(batch=96, length=24, vocab=24)  # few different ones, so that there is something to learn
REMOVAL = Removal.of_layers((2, 5))
QUICK = {"steps": 4, "batch_tokens": 192, "lr": 1e-3}
NORMED = ("gemma2", "gemma3_text", "olmo2")  # a norm stands behind every writer


@pytest.fixture
def tokens_file(tmp_path):
    np.save(tmp_path / "tokens.npy", TOKENS.numpy())
    return str(tmp_path / "tokens.npy")


def repaired(model: Model, tokens: str, method: str = "local", **settings) -> tuple[Patch, Compensation]:
    settings = settings if method != "local" else QUICK | settings
    return fit_repair(model, REMOVAL, RepairOptions(method, settings, Calibration(tokens=tokens)))


def proposed(model: Model, **settings) -> Patch:
    """What local training proposes, taken or not."""
    found = methods.find("compensation", "local")
    losses = iter(range(0, -100, -1))  # the later a candidate, the better: all layers
    case = Case(
        model,
        REMOVAL,
        TOKENS[:84],
        TOKENS[84:],
        lambda patch: next(losses),
        1.0,
        methods.configure(found, QUICK | settings),
    )
    return found.fit(case).patch


# ---------------------------------------------------------------- norms behind writers


def test_the_gain_of_a_norm_takes_the_diagonal_of_least_squares(saved) -> None:
    """The first fit of ``sequential`` on OLMo 2, against the streams of the plain model."""
    folder = saved("olmo2")
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    seen: dict[str, torch.Tensor] = {}
    layers = model.model.layers
    norm = layers[1].post_feedforward_layernorm
    norm.register_forward_hook(lambda module, args, out: seen.update(normed=out / module.weight))
    for index in (1, 2):
        layers[index].register_forward_hook(lambda _, __, out, index=index: seen.update({str(index): out}))
    with torch.no_grad():
        model(input_ids=TOKENS, use_cache=False)
    normed, reached, target = (seen[key].double().flatten(0, 1) for key in ("normed", "1", "2"))
    weight = 1 / target.norm(dim=-1, keepdim=True).clamp_min(1e-6)
    left, right = (normed * weight).square().sum(0), (normed * weight**2 * (target - reached)).sum(0)
    wanted = right / (left + 0.3 * left.mean())
    walk = PairedWalk(Model(folder, device="cpu"), TOKENS, Removal.of_layers([2]), gains=True, middles=True)
    sequential = methods.find("compensation", "sequential")
    for step in walk:
        if step.touched:
            fits = [*sequential.fits_of(step, sequential.Settings(), (0.3,))]
            assert [writer.module for writer, _ in fits] == ["post_attention_layernorm", "post_feedforward_layernorm"]
            edit = fits[1][1][0.3]["model.layers.1.post_feedforward_layernorm.weight"]
            assert edit.kind == "add" and torch.allclose(edit.value.double(), wanted, rtol=1e-3, atol=1e-5)
            break


@pytest.mark.parametrize("name", NORMED)
def test_families_with_norms_behind_their_writers_are_repaired(name, saved, tokens_file, tmp_path) -> None:
    how = RepairOptions("sequential", {}, Calibration(tokens=tokens_file))
    pruned = compensate(saved(name), drop(saved(name), (2, 5)), compensating=how, out=tmp_path / "out")
    assert pruned.compensation.loss.after < pruned.compensation.loss.before
    assert pruned.verified.changed_weights == len(pruned.compensation.changed)
    assert all("norm" in weight for weight in pruned.compensation.changed)
    model = Model(saved(name), device="cpu")
    with pytest.raises(Refusal, match=r"layer 1: no map folds into what post_\w+ adds"):
        repaired(model, tokens_file, "linear")


# ---------------------------------------------------------------- what is learned


@pytest.mark.parametrize(
    "loss", ["relative", pytest.param("cosine", marks=pytest.mark.slow), pytest.param("huber", marks=pytest.mark.slow)]
)
def test_layers_learn_what_the_closed_form_cannot(loss, saved, tokens_file) -> None:
    _, report = repaired(Model(saved("llama"), device="cpu"), tokens_file, steps=30, loss=loss)
    assert [one.layer for one in report.trained] == [1, 3, 4, 6, 7]
    steps = [one.steps for one in report.trained]
    assert steps[:4] == [180, 60, 180, 60] and steps[4] in (0, 60)  # in front of a gap six times, behind it twice
    for one in report.trained:
        assert one.error <= one.error_closed_form < one.error_before
        assert one.error == min(point[2] for point in one.curve)
        assert one.curve[0] == (0, None, one.error_closed_form) and one.curve[-1][0] == one.steps
    assert sum(one.error < 0.98 * one.error_closed_form for one in report.trained) >= 2
    assert report.loss.after < report.loss.before


def test_a_rate_that_is_too_high_is_lowered(saved, tokens_file, monkeypatch) -> None:
    """From the weights with the least error on: without that nothing is learned."""
    model = open_model(saved("llama"))
    kept = {}
    for rose in (1.01, float("inf")):
        monkeypatch.setattr(local_training, "ROSE", rose)
        _, report = repaired(model, tokens_file, lr=0.05, steps=20)
        kept[rose] = {one.layer: one.kept_step for one in report.trained if one.steps}
        assert all(one.error <= one.error_closed_form for one in report.trained)
    print(kept)
    assert any(kept[1.01].values()) and not any(kept[float("inf")].values())


def test_small_weights_are_trained_at_a_share_of_the_rate() -> None:
    assert rate_share(torch.full((4, 8), 0.0125)) == pytest.approx(0.1)
    assert rate_share(torch.full((4, 8), 0.5)) == rate_share(torch.zeros(8)) == 1


def test_the_losses_are_their_formulas() -> None:
    stream, wanted = torch.randn(5, 8), torch.randn(5, 8)
    unit = wanted.square().mean(-1).sqrt()
    distance = (stream - wanted).abs() / unit[:, None]
    huber = torch.where(distance < 1, 0.5 * distance**2, distance - 0.5).mean(-1)
    cosine = 1 - (stream * wanted).sum(-1) / stream.norm(dim=-1) / wanted.norm(dim=-1)
    relative = (stream - wanted).square().sum(-1) / wanted.square().sum(-1)
    for name, value in {"relative": relative, "cosine": cosine, "huber": huber}.items():
        assert torch.allclose(LOSSES[name](stream, wanted), value, atol=1e-5)
    rates = [LocalRecipe(1.0, 64).rate_at(step, 20) for step in range(20)]
    assert rates[0] == pytest.approx(0.5) and max(rates) == rates[1] and rates[-1] < 0.01


def test_on_the_dense_stream_only_layers_in_front_of_a_gap_learn(saved, tokens_file) -> None:
    _, report = repaired(Model(saved("llama"), device="cpu"), tokens_file, input="dense")
    assert [one.layer for one in report.trained] == [1, 4]


@pytest.mark.parametrize("train", ["attention", "mlp", "norms"])
def test_a_part_of_the_layer_learns_alone(train, saved) -> None:
    patch = proposed(Model(saved("llama"), device="cpu"), train=train, start="none")
    inside = {name.split(".", 3)[3] for name in patch}
    wanted = {
        "attention": {f"self_attn.{name}_proj.weight" for name in "qkvo"} | {"input_layernorm.weight"},
        "mlp": {f"mlp.{name}_proj.weight" for name in ("gate", "up", "down")} | {"post_attention_layernorm.weight"},
        "norms": {"input_layernorm.weight", "post_attention_layernorm.weight"},
    }
    assert inside and inside <= wanted[train]


# ---------------------------------------------------------------- in files, in every form, resumed

WRITTEN = ("llama", "gpt2", "gemma2", "mixtral", "qwen3_moe", "gpt_neox", "phi3", "gpt_oss")
WRITTEN_FAST = {("llama", False), ("llama", True), ("mixtral", False), ("qwen3_moe", True), ("gemma2", False)}


@pytest.mark.parametrize(
    ("name", "layered"), rest_slow([(name, flag) for name in WRITTEN for flag in (False, True)], WRITTEN_FAST)
)
def test_trained_weights_in_files_are_the_virtual_model(name, layered, saved, tmp_path) -> None:
    model = Model(saved(name), device="cpu", layered=layered)
    patch = proposed(model, steps=2, start="none" if name == "gpt_oss" else "sequential")
    assert any(edit.kind == "set" for edit in patch.values())
    pruned = prune_files(model, drop(model, (2, 5)), tmp_path / "out", beside=Beside(patch))
    assert pruned.verified.changed_weights >= len(patch)
    with model.patched(patch):
        wanted = all_nll(model, TOKENS[:2], REMOVAL)
    written = open_model(tmp_path / "out", device="cpu")
    assert torch.allclose(all_nll(written, TOKENS[:2]), wanted, atol=1e-4)
    assert (wanted - all_nll(model, TOKENS[:2], REMOVAL)).abs().max() > 1e-3


def test_layered_is_resident(saved) -> None:
    one, other = (proposed(Model(saved("llama"), device="cpu", layered=layered)) for layered in (False, True))
    assert one.keys() == other.keys()
    assert all(torch.equal(edit.value, other[name].value) for name, edit in one.items())


@pytest.mark.parametrize("units", ["5.mlp,3.attention,2", "2-5.mlp:0-31,4.attention:0"])
def test_what_is_left_of_parts_and_groups_learns(units, saved, tokens_file, tmp_path) -> None:
    how = RepairOptions("local", QUICK | {"steps": 2}, Calibration(tokens=tokens_file))
    folder = saved("llama")
    pruned = compensate(
        folder, drop(folder, units.split(",")), compensating=how, out=tmp_path / "out", format="custom", overwrite=True
    )
    told = load(tmp_path / "out" / "compensation.json", "compensation")
    assert told.trained and pruned.verified.changed_weights == len(told.changed)
    gone = {"model.layers.5.mlp", "model.layers.3.self_attn"} if "3.attention" in units else set()
    assert not [name for name in told.changed if any(name.startswith(one) for one in gone)]


def test_narrower_layers_in_half_precision(tmp_path) -> None:
    """More neurons than a number of bfloat16 can count."""
    zoo.save(zoo.build("llama", shrink("llama", intermediate_size=640)), tmp_path / "wide", dtype=torch.bfloat16)
    np.save(tmp_path / "tokens.npy", TOKENS.numpy())
    tokens = Calibration(tokens=str(tmp_path / "tokens.npy"))
    how = RepairOptions("local", QUICK | {"steps": 1, "start": "none"}, tokens)
    model = open_model(tmp_path / "wide", device="cpu", dtype="bf16")
    chosen = drop(model, [f"{index}.mlp:0-300" for index in range(8)])
    pruned = compensate(model, chosen, compensating=how, out=tmp_path / "out")
    assert pruned.verified.changed_weights == len(pruned.compensation.changed)


def test_gradients_of_float16_are_not_lost(saved) -> None:
    """On streams of large numbers the loss, divided by their squares, has gradients below what float16 holds."""
    patches = {}
    for dtype in ("fp32", "fp16"):
        patches[dtype] = proposed(open_model(saved("llama"), device="cpu", dtype=dtype), start="none")
    assert patches["fp16"].keys() == patches["fp32"].keys()


def test_a_killed_training_goes_on_at_its_step(saved, tokens_file, tmp_path, monkeypatch, capsys) -> None:
    def run(out):
        how = RepairOptions("local", QUICK, Calibration(tokens=tokens_file))
        return compensate(saved("llama"), drop(saved("llama"), (2, 5)), compensating=how, out=out)

    whole = run(tmp_path / "whole")
    keep_every_step(monkeypatch)
    for count in (7, 9):  # inside the training of the first layer, and of a later one
        killed_after(monkeypatch, count, lambda: run(tmp_path / "out"))
    resumed = run(tmp_path / "out")
    assert resumed.compensation.changed == whole.compensation.changed
    for name in ("model.safetensors",):
        assert (tmp_path / "out" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    one, other = (load(tmp_path / name / "compensation.json", "compensation") for name in ("whole", "out"))
    assert one.trained == other.trained


# ---------------------------------------------------------------- a time, and mistakes


def test_steps_fit_into_a_time(saved, tokens_file, tmp_path) -> None:
    model = Model(saved("llama"), device="cpu")
    own = {"batch_tokens": 192, "lr": 1e-3}
    how = RepairOptions("local", own, Calibration(tokens=tokens_file), repair_budget="12s")
    with journaled(tmp_path / "out"):
        _, report = fit_repair(model, REMOVAL, how)
    steps = [one.steps for one in report.trained]
    assert max(steps) > 12 and report.settings["budget"] == "12s"
    assert report.seconds < 30


@pytest.mark.parametrize(("arguments", "message"), [
    (["--compensate", "local", "--repair-budget", "0.001s"], "--repair-budget 0.001s: one step of every layer"),
    (["--compensate", "linear", "--repair-budget", "9s"], "has no meaning for linear.*it goes with local"),
    (["--compensate", "local", "--repair-budget", "soon"], "--repair-budget"),
    (["--compensate", "local", "--set", "steps=0"], "local: steps=0: more than 0 is needed"),
    (["--compensate", "local", "--set", "train=heads"], "allowed are all, attention, mlp, norms"),
])  # fmt: skip
def test_mistakes_are_told_in_a_line(arguments, message, saved, tokens_file, tmp_path, capsys) -> None:
    common = ["--drop", "2,5", "--out", str(tmp_path / "out"), "--tokens", tokens_file]
    with pytest.raises(SystemExit) as end:
        cli.main(["prune", str(saved("llama")), *common, *arguments])
    told = capsys.readouterr().err
    assert end.value.code == 2 and not (tmp_path / "out").exists()
    assert re.search(message, told), told


def test_settings_that_no_training_can_have(saved) -> None:
    with pytest.raises(UserError, match="more than 0 is needed"):
        methods.configure(methods.find("compensation", "local"), {"lr": 0})
