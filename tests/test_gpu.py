"""On a CUDA device: the same scores as on the CPU, and surgery proven there in bf16.

Without one the same tests run on the CPU, among the slow ones, so that they are known to work on the day of a GPU.
"""

import numpy as np
import pytest
import torch
import zoo
from shrinking import shrink

import shallower
from shallower.artifacts import Removal, Unit, plain
from shallower.stages.repair import fit_repair
from shallower.walk.replay import replay_of

PARTS = ("magnitude", "taylor", "gate", "perplexity", "block_influence")
GROUPS = ("magnitude", "taylor", "activation", "wanda", "flap")
EXPERTS = ("mixtral", "qwen3_moe", "gpt_oss", "deepseek_v3")
LOST = Removal.of((Unit(2, "mlp"), Unit(4, "attention"), Unit(6)))

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
pytestmark = pytest.mark.gpu if DEVICE == "cuda" else pytest.mark.slow


@pytest.mark.parametrize(
    "criterion", ["magnitude", "taylor", "gradient", "gate", "perplexity", "block_influence", "angular"]
)
def test_scores_agree_with_the_cpu(criterion, saved) -> None:
    on = {
        device: shallower.score(saved("llama"), criterion=criterion, compute=shallower.Compute(device=device)).scores
        for device in ("cpu", DEVICE)
    }
    assert on[DEVICE] == pytest.approx(on["cpu"], rel=2e-3, abs=1e-5)


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
@pytest.mark.parametrize(
    "criterion", ["magnitude", "taylor", "gradient", "gate", "perplexity", "block_influence", "angular"]
)
def test_layered_equals_resident(criterion, dtype, saved) -> None:
    ways = [shallower.Compute(device=DEVICE, dtype=dtype, layered=layered) for layered in (False, True)]
    resident, layered = (
        shallower.score(saved("llama"), criterion=criterion, compute=compute).scores for compute in ways
    )
    assert layered == resident


@pytest.mark.parametrize("name", ["llama", "gemma2", "mixtral", "gpt2"])
def test_bf16_surgery(name, tmp_path) -> None:
    source = zoo.save(name, tmp_path / "in", dtype=torch.bfloat16)
    model = shallower.open_model(source, shallower.Compute(device=DEVICE))
    pruned = shallower.prune(model, shallower.drop(model, (1, 4)), out=tmp_path / "out")
    assert pruned.verified.dtype == "bfloat16"


@pytest.mark.parametrize("dtype", ["fp32", "bf16", "fp16"])
@pytest.mark.parametrize("name", ["llama", "gemma2", "mixtral", "gpt2"])
def test_every_dtype_is_walked_layer_by_layer(name, dtype, saved) -> None:
    model = shallower.open_model(saved(name), shallower.Compute(device=DEVICE, dtype=dtype))
    assert replay_of(model) is not None


def test_a_model_whose_fp32_copy_does_not_fit_is_proven_layer_by_layer(saved, tmp_path, monkeypatch) -> None:
    model = shallower.open_model(saved("llama"), shallower.Compute(device=DEVICE, dtype="bf16"))
    monkeypatch.setattr("shallower.surgery.proof.total_memory", lambda device: 5 * model.record.parameters)
    assert shallower.prune(model, shallower.drop(model, (1, 4)), out=tmp_path / "out").verified.layered


@pytest.mark.parametrize("layered", [False, True])
@pytest.mark.parametrize("method", ["projection", "linear", "magnitude", "sequential"])
def test_a_compensation_lowers_the_loss_as_on_the_cpu(method, layered, saved) -> None:
    how = shallower.RepairOptions(method, {}, shallower.Calibration(samples=32, length=24))
    losses = {}
    for device in ("cpu", DEVICE):
        model = shallower.open_model(saved("llama"), shallower.Compute(device=device, layered=layered))
        losses[device] = plain(fit_repair(model, Removal.of_layers((2, 5)), how)[1].loss)
    assert losses[DEVICE] == pytest.approx(losses["cpu"], rel=2e-3)


@pytest.mark.parametrize("how", [{}, {"cache": "static"}, {"cache": "static", "compiled": True}])
def test_speed(how, saved) -> None:
    batches = (1,) if "compiled" in how else (1, 4)  # each is compiled anew
    grid = shallower.Grid.of(batches=batches, prompts=(16,), new=(8,), repeats=3, warmup=2, **how)
    found = shallower.bench(
        saved("llama"), against=saved("llama+tied"), grid=grid, compute=shallower.Compute(device=DEVICE)
    )
    assert [row.runs for row in found.rows] == [3] * 2 * len(batches) and len(found.speedups) == len(batches)
    assert all(row.peak_memory_bytes > found.analytic[row.of].weight_bytes for row in found.rows)


@pytest.fixture(scope="module")
def calibration(tmp_path_factory):
    path = tmp_path_factory.mktemp("tokens") / "tokens.npy"
    np.save(path, zoo.tokens(batch=32, length=24).numpy())
    return shallower.Calibration(tokens=str(path), samples=32, length=24)


@pytest.mark.parametrize("name", ["llama", "gpt_neox", "qwen3_moe"])
@pytest.mark.parametrize(("units", "criteria"), [("sublayer", PARTS), ("width", GROUPS)])
def test_parts_and_groups_are_scored_as_on_the_cpu(name, units, criteria, calibration, saved) -> None:
    found = []
    for device, layered in (("cpu", False), (DEVICE, False), (DEVICE, True)):
        how = {"units": units, "calibration": calibration, "compute": shallower.Compute(device=device, layered=layered)}
        found.append(shallower.score(saved(name), criterion=criteria, **how))
    for other, resident, layered in zip(*found, strict=True):
        np.testing.assert_allclose(resident.scores, other.scores, rtol=2e-3, atol=2e-4 * np.abs(other.scores).max())
        assert layered.scores == resident.scores, layered.criterion


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
@pytest.mark.parametrize(("lost", "form"), [("2.mlp, 4.attention, 6", "custom"), ("2.mlp, 5.mlp", "auto")])
def test_models_without_parts_are_written_and_opened(lost, form, dtype, calibration, saved, tmp_path) -> None:
    model = shallower.open_model(saved("llama"), shallower.Compute(device=DEVICE, dtype=dtype))
    how = shallower.RepairOptions("sequential", {}, calibration)
    made = shallower.prune(model, shallower.drop(model, lost), out=tmp_path / "out", compensating=how, format=form)
    assert made.proof.logits == "bit for bit"
    loaded = shallower.load(tmp_path / "out").to(DEVICE)
    assert loaded(input_ids=zoo.tokens().to(DEVICE)).logits.isfinite().all()


@pytest.mark.parametrize("layered", [False, True])
def test_a_repair_of_parts_lowers_the_loss_as_on_the_cpu(layered, calibration, saved) -> None:
    losses = {}
    for device in ("cpu", DEVICE):
        model = shallower.open_model(saved("llama"), shallower.Compute(device=device, layered=layered))
        report = fit_repair(model, LOST, shallower.RepairOptions("sequential", {}, calibration))[1]
        losses[device] = plain(report.loss)
    assert losses[DEVICE] == pytest.approx(losses["cpu"], rel=2e-3)


@pytest.mark.parametrize("units", ["layer", "mlp", "sublayer"])
@pytest.mark.parametrize("selection", ["greedy", "beam"])
def test_a_search_finds_what_it_finds_on_the_cpu(selection, units, calibration, saved) -> None:
    choosing = shallower.SelectionOptions(selection, keep_first=0, keep_last=0)
    found = [
        shallower.plan(
            saved("llama"),
            remove=3,
            units=units,
            choosing=choosing,
            calibration=calibration,
            compute=shallower.Compute(device=device),
        ).removal
        for device in ("cpu", DEVICE)
    ]
    assert found[0] == found[1]


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
@pytest.mark.parametrize(
    ("criterion", "selection", "repair"), [("wanda", "uniform", None), ("flap", "standardised", "bias")]
)
def test_narrowed_models_are_proven(criterion, selection, repair, dtype, calibration, saved, tmp_path) -> None:
    model = shallower.open_model(saved("llama"), shallower.Compute(device=DEVICE, dtype=dtype))
    choosing = shallower.SelectionOptions(selection)
    made = shallower.plan(
        model, ratio=0.1, units="width", criterion=criterion, choosing=choosing, calibration=calibration
    )
    how = repair and shallower.RepairOptions(repair, {}, calibration)
    pruned = shallower.prune(model, made, out=tmp_path / "out", compensating=how, format="custom")
    assert pruned.verified.logits_difference <= (2e-6 if dtype == "fp32" else 3e-2)
    how = shallower.RepairOptions("sequential", {}, calibration)
    report = fit_repair(model, made.removal, how)[1]
    assert report.loss.after <= report.loss.before


def test_depth_and_width_are_chosen_and_written(calibration, saved, tmp_path) -> None:
    model = shallower.open_model(saved("llama"), shallower.Compute(device=DEVICE, dtype="bf16"))
    made = shallower.plan(model, units="layer+width", ratio=0.3, calibration=calibration)
    assert abs(made.share - 0.3) < 0.01
    pruned = shallower.prune(model, made, out=tmp_path / "out")
    assert pruned.format == "plain" and pruned.verified.logits_difference <= 3e-2


@pytest.mark.parametrize("method", ["continued", "lora", "distill"])
def test_models_without_parts_and_narrowed_ones_are_healed(method, calibration, saved, text, tmp_path) -> None:
    compute = shallower.Compute(device=DEVICE, dtype="bf16")
    model = shallower.open_model(saved("llama"), compute)
    narrow = shallower.plan(model, ratio=0.1, units="width", criterion="magnitude")
    for label, made in (("parts", shallower.drop(model, [*map(str, LOST.units)])), ("narrow", narrow)):
        shallower.prune(model, made, out=tmp_path / label, format="custom")
        healed = shallower.heal(
            tmp_path / label,
            data=text,
            method=method,
            train_tokens=512,
            training=shallower.Training(length=32, batch_tokens=128),
            out=tmp_path / f"{label}-healed",
            compute=compute,
        )
        assert healed.rows and shallower.evaluate(tmp_path / f"{label}-healed", texts=text, max_tokens=512).perplexity


@pytest.mark.parametrize("layered", [False, True])
@pytest.mark.parametrize("name", EXPERTS)
def test_experts_are_walked_and_told_apart_as_on_the_cpu(name, layered, calibration, saved) -> None:
    found = []
    for device, dtype in (("cpu", "fp32"), (DEVICE, "fp32"), (DEVICE, "bf16")):
        model = shallower.open_model(saved(name), shallower.Compute(device=device, dtype=dtype, layered=layered))
        scores = shallower.score(model, criterion=("perplexity", "taylor"), calibration=calibration)
        found.append((model.parts, model.grouped, [one.scores for one in scores], replay_of(model) is None))
    for dtype, one in zip(("fp32", "bf16"), found[1:], strict=True):
        assert (one[0], one[1], one[3]) == (found[0][0], found[0][1], found[0][3])
        np.testing.assert_allclose(one[2], found[0][2], rtol=2e-3 if dtype == "fp32" else 0.1)


@pytest.mark.parametrize("name", zoo.FAMILIES)
def test_every_family_is_looked_through_as_on_the_cpu(name, saved) -> None:
    found = []
    for device, dtype in (("cpu", "fp32"), (DEVICE, "bf16")):
        model = shallower.open_model(saved(name), shallower.Compute(device=device, dtype=dtype))
        try:
            parts = model.grouped
        except shallower.Refusal:  # of another layer, where rounding makes the first ones look alike
            parts = None
        found.append((parts, replay_of(model) is None))
    assert found[0] == found[1]


@pytest.mark.parametrize("layered", [False, True])
@pytest.mark.parametrize("dtype", ["fp32", "bf16", "fp16"])
def test_local_training_lowers_the_loss(dtype, layered, calibration, saved) -> None:
    compute = shallower.Compute(device=DEVICE, dtype=dtype, layered=layered)
    model = shallower.open_model(saved("llama"), compute)
    how = shallower.RepairOptions("local", {"steps": "6", "batch_tokens": "64"}, calibration)
    patch, report = fit_repair(model, Removal.of_layers([2, 3]), how)
    assert report.loss.after <= report.loss.before and (patch or not report.changed)


@pytest.mark.parametrize("selection", ["window", "greedy"])
def test_layers_are_chosen_for_the_repaired_model_as_on_the_cpu(selection, calibration, saved) -> None:
    chosen = {
        device: shallower.plan(
            saved("llama"), remove=2, selection=selection, objective="repaired", calibration=calibration,
            compute=shallower.Compute(device=device, dtype="fp32"),
        ).removed
        for device in ("cpu", DEVICE)
    }  # fmt: skip
    assert chosen[DEVICE] == chosen["cpu"]


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_answers_and_drafts(dtype, tmp_path) -> None:
    folder = zoo.save(zoo.build("llama", shrink("llama", max_position_embeddings=512)), tmp_path / "model")
    model = shallower.open_model(folder, shallower.Compute(device=DEVICE, dtype=dtype))
    how = {"max_prompts": 4, "answer_tokens": 12}
    same = shallower.evaluate(model, answers=shallower.Answers(model, **how)).agreement
    assert (same.divergence, same.next_token, same.first_token) == (0.0, 1.0, 1.0)
    draft = shallower.evaluate(
        folder, answers=shallower.Answers(as_draft_of=folder, **how), device=DEVICE, dtype=dtype, removed=[1]
    ).draft
    assert draft.identical + draft.tied == 4 and draft.acceptance_length >= 1
