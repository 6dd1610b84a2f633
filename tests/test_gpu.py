"""On a CUDA device: the same scores as on the CPU, and surgery proven there in bf16.

Without one the same tests run on the CPU, among the slow ones, so that they are known to work on the day of a GPU.
"""

import pytest
import torch
import zoo

import shallower
from shallower.artifacts import Removal, plain
from shallower.stages.repair import fit_repair
from shallower.walk.replay import replay_of

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
