"""Pruned .gguf files: bytes copied, metadata cut or written out, refused where llama.cpp would count layers; proven.

What is proven in llama.cpp needs xllamacpp.
"""

import json
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from commands import status
from gguf_files import WIDE, WORDS, tiny_gguf

from shallower import Refusal, UserError, drop_gguf, open_model, prune, prune_gguf
from shallower.anatomy.patch import Edit
from shallower.artifacts import load
from shallower.settings.writing import Writing
from shallower.stages.repair_gguf import RepairedGguf
from shallower.storage.gguf import read_gguf
from shallower.surgery import gguf_proof, gguf_rules
from shallower.surgery.gguf_repair import remade_tensors
from shallower.surgery.gguf_rules import metadata_without
from shallower.surgery.llama_cpp import llama_cpp_version

needs_llama_cpp = pytest.mark.skipif(llama_cpp_version() is None, reason="xllamacpp is not installed")
UNPROVEN = Writing(verify=False)
CHANGED = ("mlp.down_proj.weight", "self_attn.q_proj.weight", "self_attn.k_proj.weight", "input_layernorm.weight")
OTHERS = ("llama", "qwen2", "qwen3", "phi3", "qwen3moe", "gemma2")


def changed(path: Path, removed: list[int]) -> dict:
    """Metadata that change, by their names behind the architecture's."""
    header = read_gguf(path)
    found = metadata_without(header, removed)
    return {key.removeprefix(f"{header.architecture}."): value.value for key, value in found.items()}


@pytest.mark.parametrize("kind", ["F32", "Q8_0"])
def test_bytes_are_those_of_the_file_and_the_gguf_package_reads_them(kind, tmp_path) -> None:
    source = tiny_gguf(tmp_path / "a.gguf", "llama", kind=kind)
    made = prune_gguf(source, drop_gguf(source, "1-2"), out=tmp_path / "b.gguf", writing=UNPROVEN)
    dense, small = (gguf.GGUFReader(path) for path in (source, tmp_path / "b.gguf"))
    assert small.get_field("llama.block_count").contents() == 4
    assert small.get_field("tokenizer.ggml.tokens").contents() == dense.get_field("tokenizer.ggml.tokens").contents()
    assert small.get_field("shallower.removed_layers").contents() == [1, 2]
    known = {tensor.name: tensor for tensor in dense.tensors}
    numbers = {0: 0, 1: 3, 2: 4, 3: 5}
    for tensor in small.tensors:
        old = tensor.name
        if old.startswith("blk."):
            _, number, rest = old.split(".", 2)
            old = f"blk.{numbers[int(number)]}.{rest}"
        assert (tensor.tensor_type, list(tensor.shape)) == (known[old].tensor_type, list(known[old].shape))
        assert np.array_equal(tensor.data, known[old].data)
    assert len(small.tensors) == 3 + 4 * 9 and made.bytes_after == (tmp_path / "b.gguf").stat().st_size
    again = prune_gguf(
        tmp_path / "b.gguf", drop_gguf(tmp_path / "b.gguf", "1"), out=tmp_path / "c.gguf", writing=UNPROVEN
    )
    assert (made.original, again.original, again.proof) == ([0, 3, 4, 5], [0, 4, 5], None)
    assert open_model(tmp_path / "c.gguf").record.fingerprint == again.fingerprint


@pytest.mark.parametrize(
    ("arch", "keys", "removed", "found"),
    [
        ("gemma3", {}, [1, 2], {"attention.sliding_window_pattern": [True, True, True, False]}),
        ("gemma3", {}, [0], {"attention.sliding_window_pattern": [True, True, True, True, False]}),
        ("gemma3", {"attention.sliding_window": 0}, [0], {}),
        ("gemma3", {"attention.sliding_window_pattern": 2}, [0, 1], {}),
        ("gemma3", {"attention.sliding_window_pattern": 2}, [0],
         {"attention.sliding_window_pattern": [False, True, False, True, False]}),
        ("gemma3", {"attention.sliding_window_pattern": [True, False, True, True, True, False]}, [0],
         {"attention.sliding_window_pattern": [False, True, True, True, False]}),
        ("gemma2", {}, [2], {"attention.sliding_window_pattern": [True, False, False, True, False]}),
        ("llama", {"rope.dimension_sections": [1, 2, 3, 4, 5, 6]}, [2], {}),
        ("llama", {"attention.head_count_kv": [2, 2, 2, 2, 2, 2]}, [2], {"attention.head_count_kv": [2] * 5}),
        ("llama", {"leading_dense_block_count": 3}, [1], {"leading_dense_block_count": 2}),
    ],
)  # fmt: skip
def test_patterns_are_written_out_where_layers_were_counted(arch, keys, removed, found, tmp_path) -> None:
    path = tiny_gguf(tmp_path / "a.gguf", arch, keys=keys)
    assert changed(path, removed) == {"block_count": 6 - len(removed), **found}


@pytest.mark.parametrize(
    ("arch", "keys", "removed", "said"),
    [
        ("smollm3", {}, [1], "every 4th.*layer 3 would be counted as 2"),
        ("llama", {"nextn_predict_layers": 1}, [5], "layer 5 predicts further tokens"),
        ("llama", {"attention.causal": False}, [1], "is an encoder"),
        ("llama", {"attention.shared_kv_layers": 2}, [1], "has a part for every layer"),
    ],
)
def test_what_llama_cpp_would_count_is_refused(arch, keys, removed, said, tmp_path) -> None:
    path = tiny_gguf(tmp_path / "a.gguf", arch, keys=keys)
    with pytest.raises(Refusal, match=said):
        changed(path, removed)


def test_a_depth_that_means_another_scale_is_refused(tmp_path) -> None:
    """llama.cpp takes a Gemma 3 of 62 layers for the one of 27B, which scales its attention otherwise."""
    path = tiny_gguf(tmp_path / "a.gguf", "gemma3", layers=62)
    with pytest.raises(Refusal, match="computes gemma3 with 61 layers otherwise than with 62"):
        changed(path, [3])
    path = tiny_gguf(tmp_path / "b.gguf", "gemma3", layers=64)
    with pytest.raises(Refusal, match="with 62 layers otherwise than with 64"):
        changed(path, [3, 4])
    assert changed(path, [3])["block_count"] == 63


def test_runs_of_the_period_go(tmp_path) -> None:
    assert changed(tiny_gguf(tmp_path / "a.gguf", "smollm3", layers=9), [2, 3, 4, 5])["block_count"] == 5


@needs_llama_cpp
@pytest.mark.parametrize(
    "arch",
    ["gemma3", "lfm2", *(pytest.param(name, marks=pytest.mark.slow) for name in OTHERS)],
)
def test_llama_cpp_gives_the_same_log_probabilities(arch, tmp_path) -> None:
    source = tiny_gguf(tmp_path / "a.gguf", arch, kind="Q8_0")
    made = prune_gguf(source, drop_gguf(source, "1-2"), out=tmp_path / "b.gguf")
    assert (made.proof.by, made.proof.difference) == ("llama.cpp", 0.0)
    assert made.proof.prompts == ([5, 33, 48] if "gemma" in arch else [5, 33])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.gguf", "b.gguf", "b.gguf.json"]


@needs_llama_cpp
def test_a_pattern_that_is_left_out_does_not_pass_the_proof(tmp_path, monkeypatch) -> None:
    """What a pruner that only counts layers writes loads, runs, and is wrong."""
    source = tiny_gguf(tmp_path / "a.gguf", "gemma3")
    monkeypatch.setattr(gguf_rules, "_patterns", lambda header, kept: {})
    with pytest.raises(Refusal, match="gives other values for the pruned gemma3"):
        prune_gguf(source, drop_gguf(source, "1-2"), out=tmp_path / "b.gguf")
    assert [path.name for path in tmp_path.iterdir()] == ["a.gguf"]


def test_without_llama_cpp_transformers_proves_what_is_known(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(gguf_proof, "llama_cpp_version", lambda: None)
    source = tiny_gguf(tmp_path / "a.gguf", "llama")
    made = prune_gguf(source, drop_gguf(source, "1-2"), out=tmp_path / "b.gguf")
    assert made.proof.by == "transformers" and made.proof.difference <= 1e-5
    assert b"transformers" in (tmp_path / "b.gguf").read_bytes()
    monkeypatch.setattr(gguf_proof, "KNOWN", set())
    with pytest.raises(Refusal, match=r"is not known here: pip install xllamacpp"):
        prune_gguf(source, drop_gguf(source, "1-2"), out=tmp_path / "c.gguf")


def test_the_command_line_and_a_plan(tmp_path, capsys) -> None:
    source = tiny_gguf(tmp_path / "a.gguf", "llama")
    small = tmp_path / "new" / "b.gguf"
    assert status("prune", source, "--drop", "1-2", "--out", small, "--no-verify") == 0
    assert "no weight was decoded" in capsys.readouterr().out
    assert load(small.with_name("b.gguf.json"), "pruned_gguf").plan.removed == [1, 2]
    assert status("prune", source, "--drop", "1", "--out", small, "--no-verify") == 2
    assert status("prune", source, "--drop", "1", "--out", small, "--no-verify", "--overwrite", "--json") == 0
    assert json.loads(capsys.readouterr().out)["original"] == [0, 2, 3, 4, 5]
    plan = tmp_path / "plan.json"
    assert status("plan", source, "--criterion", "block_influence", "--remove", "2", "--samples", "4",
                  "--length", "16", "--out", plan) == 0  # fmt: skip
    assert status("prune", source, "--plan", plan, "--out", tmp_path / "c.gguf", "--no-verify") == 0
    chosen = load(plan, "plan")
    made = load(tmp_path / "c.gguf.json", "pruned_gguf")
    assert made.plan.removed == chosen.removed and made.plan.model.fingerprint == chosen.model.fingerprint
    assert prune(open_model(source), chosen, out=tmp_path / "d.gguf", verify=False).original == made.original


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--drop", "9"), "the model has the layers 0 to 5"),
        (("--drop", "1.mlp"), "holds whole layers only"),
        (("--drop", "0-5"), "at least one must stay"),
        (("--drop", "1", "--save-dtype", "bf16"), "keeps the types that it has"),
        (("--drop", "1", "--format", "custom"), "it speaks of folders"),
        (("--drop", "1", "--out", "a.gguf"), "it is the file that is read"),
        (("--drop", "1", "--out", "other.gguf"), "it was not written by us"),
    ],
)
def test_what_cannot_be_written(options, said, tmp_path, capsys, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    source = tiny_gguf(tmp_path / "a.gguf", "llama")
    (tmp_path / "other.gguf").write_bytes(b"GGUF of somebody else")
    out = () if "--out" in options else ("--out", "b.gguf")
    assert status("prune", source, *options, *out, "--no-verify") == 2
    assert said in capsys.readouterr().err.strip().splitlines()[-1]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.gguf", "other.gguf"]


def test_broken_files_and_folders(tmp_path, saved) -> None:
    source = tiny_gguf(tmp_path / "a.gguf", "llama")
    short = tmp_path / "short.gguf"
    short.write_bytes(source.read_bytes()[:-400])
    with pytest.raises(UserError, match="bytes behind its end"):
        drop_gguf(short, "1")
    with pytest.raises(UserError, match=r"made of a \.gguf file"):
        prune(saved("llama"), drop_gguf(source, "1"), out=tmp_path / "b.gguf")
    other = tiny_gguf(tmp_path / "other.gguf", "llama", seed=1)
    with pytest.raises(UserError, match="the plan was made for another model"):
        prune_gguf(other, drop_gguf(source, "1"), out=tmp_path / "b.gguf")


def test_the_record_is_that_of_the_unpacked_model(tmp_path) -> None:
    """Counted from the header alone, but for tensors that the importer leaves out."""
    from shallower.stages.prune_gguf import gguf_record

    source = tiny_gguf(tmp_path / "a.gguf", "llama")
    ours, theirs = gguf_record(read_gguf(source)), open_model(source).record
    assert (ours.layers, ours.layer_parameters, ours.fingerprint) == (6, theirs.layer_parameters, theirs.fingerprint)
    assert ours.parameters == theirs.parameters == 6 * ours.layer_parameters[0] + 2 * WORDS * WIDE + WIDE


@pytest.mark.parametrize(("arch", "kind"), [("llama", "F32"), ("llama", "Q8_0"), ("llama", "F16"), ("gemma3", "F32")])
def test_a_repair_goes_into_the_file(arch, kind, tmp_path) -> None:
    """What transformers unpacks of it is the patched model, but for the rounding that is told.

    Queries lie in another order there, and a norm's gain of Gemma is stored plus one.
    """
    source = tiny_gguf(tmp_path / "a.gguf", arch, kind=kind)
    model, chosen = open_model(source, dtype="fp32"), drop_gguf(source, "1-2")
    layer, draw = f"{model.outline.name}.3", torch.Generator().manual_seed(0)
    weights = {name: model.module.get_parameter(f"{layer}.{name}") for name in CHANGED}
    noise = {name: 0.1 * torch.randn(weight.shape, generator=draw) for name, weight in weights.items()}
    patch = {
        f"{layer}.{name}": Edit("set", weight.detach() + noise[name]) if "q_proj" in name else Edit("add", noise[name])
        for name, weight in weights.items()
    }
    tensors = remade_tensors(read_gguf(source), model, patch)
    assert len(tensors.remade) == len(CHANGED) and 0 <= tensors.rounding <= {"F32": 0, "F16": 1e-3, "Q8_0": 0.01}[kind]
    made = prune_gguf(source, chosen, out=tmp_path / "b.gguf", repair=RepairedGguf(tensors, None))
    assert made.proof.difference <= 1e-5 and made.rounding == tensors.rounding
    asked = torch.arange(4, 40)[None]
    with torch.no_grad():
        with model.patched(patch), model.without(chosen.removal):
            wanted = model.module(asked).logits
        with model.without(chosen.removal):
            plain = model.module(asked).logits
        found = open_model(tmp_path / "b.gguf", dtype="fp32").module(asked).logits
    moved = float((wanted - plain).norm())
    assert float((found - wanted).norm()) <= {"F32": 1e-5, "F16": 1e-2, "Q8_0": 0.1}[kind] * moved


def test_changes_that_have_no_place_in_the_file_are_refused(tmp_path) -> None:
    source = tiny_gguf(tmp_path / "a.gguf", "llama")
    model, value = open_model(source, dtype="fp32"), torch.zeros(WIDE)
    bias = f"{model.outline.name}.3.mlp.down_proj.bias"
    with pytest.raises(Refusal, match="is not in the unpacked file"):
        remade_tensors(read_gguf(source), model, {bias: Edit("new", value)})
    other = read_gguf(tiny_gguf(tmp_path / "b.gguf", "llama", seed=1))
    with pytest.raises(Refusal, match=r"is in no tensor of b\.gguf in a form that is known"):
        remade_tensors(other, model, {bias.replace("bias", "weight"): Edit("scale", torch.tensor(2.0))})


def test_a_repair_by_the_command_line(tmp_path, capsys) -> None:
    source = tiny_gguf(tmp_path / "a.gguf", "llama")
    tokens = tmp_path / "tokens.npy"
    np.save(tokens, np.random.default_rng(0).integers(3, WORDS, (24, 24)))
    out = tmp_path / "b.gguf"
    options = ["--drop", "1-2", "--compensate", "sequential", "--tokens", tokens, "--out", out, "--no-verify"]
    assert status("prune", source, *options) == 0
    made = load(tmp_path / "b.gguf.json", "pruned_gguf")
    assert made.compensation.method == "sequential" and made.compensation.loss.after <= made.compensation.loss.before
