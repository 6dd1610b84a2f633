"""Repairs where parts of layers are gone: what stands in front of a removed part is fitted to the stream behind it."""

import numpy as np
import pytest
import torch
from literal import TOKENS, plain

import shallower
from shallower import Calibration, Compute, RepairOptions
from shallower.artifacts import Removal, Unit, load
from shallower.repair.paired import PairedWalk
from shallower.stages.repair import fit_repair

CPU = Compute(device="cpu")
LOST = Removal.of((Unit(2, "mlp"), Unit(4, "attention"), Unit(6)))


def dense_streams(folder) -> dict[tuple[int, str], torch.Tensor]:
    """The dense streams in front of every layer, and behind its attention, rows of tokens."""
    model = plain(folder)
    streams: dict[tuple[int, str], torch.Tensor] = {}
    hooks = []
    for index, layer in enumerate(model.model.layers):
        hooks.append(
            layer.register_forward_pre_hook(
                lambda _, args, kwargs, index=index: streams.update({(index, "in"): args[0]}), with_kwargs=True
            )
        )
        hooks.append(
            layer.self_attn.register_forward_hook(
                lambda _, __, out, index=index: streams.update({(index, "middle"): streams[index, "in"] + out[0]})
            )
        )
    with torch.no_grad():
        model(input_ids=TOKENS, use_cache=False)
    for hook in hooks:
        hook.remove()
    return {key: stream.flatten(0, 1) for key, stream in streams.items()}


def test_targets_are_the_dense_stream_behind_what_is_gone(saved) -> None:
    model = shallower.open_model(saved("llama"), CPU)
    dense = dense_streams(saved("llama"))
    wanted = {2: (3, "in"), 3: (4, "middle"), 4: (5, "in"), 5: (7, "in")}
    writers = {2: ["self_attn.o_proj"], 3: ["self_attn.o_proj", "mlp.down_proj"], 4: ["mlp.down_proj"]}
    gaps = {}
    for step in PairedWalk(model, TOKENS, LOST, middles=True):
        gaps[step.index] = step.gap
        if step.index in wanted:
            (batch,) = step.batches(*step.writers())
            torch.testing.assert_close(batch.wanted, dense[wanted[step.index]])
            assert batch.target is not None and torch.equal(batch.target, batch.wanted)
        if step.index in writers:
            assert [writer.module for writer in step.writers()] == writers[step.index]
    assert gaps == {0: 0, 1: 0, 2: 1, 3: 1, 4: 0, 5: 1, 7: 0}


def test_the_pruned_stream_lacks_the_parts(saved) -> None:
    """Streams of the walk, and the loss behind it, are those of the virtually pruned model."""
    model = shallower.open_model(saved("llama"), CPU)
    for step in PairedWalk(model, TOKENS, LOST):
        last = torch.cat([batch.after for batch in step.batches()])
    seen = []
    hook = model.module.model.norm.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    with torch.no_grad(), model.without(LOST):
        model.module(input_ids=TOKENS, use_cache=False)
    hook.remove()
    torch.testing.assert_close(last, seen[0].flatten(0, 1))


METHODS = [
    ("sequential", {}),
    ("sequential", {"accept": "layer"}),
    ("linear", {}),
    ("magnitude", {}),
    ("projection", {}),
]


@pytest.mark.parametrize(("method", "settings"), METHODS)
@pytest.mark.parametrize("name", ["llama", "gpt_neox"])
def test_repairs_of_parts(name, method, settings, saved) -> None:
    model = shallower.open_model(saved(name), CPU)
    patch, report = fit_repair(model, LOST, RepairOptions(method, settings, Calibration(samples=32, length=32)))
    assert report.loss.after <= report.loss.before and bool(patch) == (report.loss.after < report.loss.before)
    assert report.removed == [6] and [*report.units] == ["2.mlp", "4.attention", "6.attention", "6.mlp"]
    stack = model.stack.name
    lost = ("2.mlp", "4.self_attn", "4.attention", "6.")
    assert not [key for key in patch if key.startswith(tuple(f"{stack}.{one}" for one in lost))]


def test_a_repaired_model_without_parts_is_written_and_proven(saved, tmp_path) -> None:
    np.save(tmp_path / "tokens.npy", TOKENS.repeat(8, 1).numpy())
    model = shallower.open_model(saved("llama"), CPU)
    how = RepairOptions("sequential", {"accept": "layer"}, Calibration(tokens=str(tmp_path / "tokens.npy")))
    plan = shallower.drop(model, "2.mlp, 4.attention, 6")
    pruned = shallower.prune(model, plan, out=tmp_path / "out", compensating=how, format="custom")
    assert pruned.proof.logits == "bit for bit" and pruned.compensation.changed
    record = load(tmp_path / "out" / "compensation.json", "compensation")
    found = shallower.evaluate(tmp_path / "out", tokens=tmp_path / "tokens.npy", compute=CPU)
    assert record.loss.after < record.loss.before
    assert found.model.parameters == plan.params_after
