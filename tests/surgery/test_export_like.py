"""Export in the form of the .gguf file that a model was made of: unchanged tensors copied, changed ones stored anew."""

import json
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from commands import status
from gguf_files import tiny_gguf
from safetensors.torch import load_file, save_file

from shallower import Refusal, UserError, drop_gguf, export, open_model, prune
from shallower.artifacts import load
from shallower.stages import export_like
from shallower.surgery.llama_cpp import llama_cpp_version

KEPT = [0, 3, 4, 5]
MOVED = ("layers.1.self_attn.q_proj.weight", "layers.2.mlp.down_proj.weight", "layers.0.input_layernorm.weight")


@pytest.fixture(params=[("llama", "Q8_0"), ("llama", "F32"), ("gemma3", "F32"), ("qwen2", "F16")], ids=str)
def made(request, tmp_path):
    """(a .gguf file, a folder of what was left of it)."""
    arch, kind = request.param
    return source_and_folder(tmp_path, arch, kind)


def source_and_folder(tmp_path: Path, arch: str, kind: str) -> tuple[Path, Path]:
    source = tiny_gguf(tmp_path / "a.gguf", arch, kind=kind)
    prune(open_model(source), drop_gguf(source, "1-2"), out=tmp_path / "small", verify=False)
    return source, tmp_path / "small"


def move(folder: Path, names: tuple[str, ...] = MOVED) -> dict[str, torch.Tensor]:
    """Change weights, as a training does; all of them afterwards."""
    file = folder / "model.safetensors"
    weights = load_file(file)
    draw = torch.Generator().manual_seed(1)
    for name in [name for name in weights if name.endswith(names)]:
        weights[name] = weights[name] + 0.1 * torch.randn(weights[name].shape, generator=draw)
    save_file(weights, file, {"format": "pt"})
    return weights


def test_what_changed_is_stored_anew_and_the_rest_copied(made, tmp_path) -> None:
    source, folder = made
    weights = move(folder)
    out = tmp_path / "b.gguf"
    found = export(folder, out=out, like=source, verify=False)
    assert found.copied.remade == len(MOVED) and found.copied.of == "a.gguf"
    known = {tensor.name: tensor for tensor in gguf.GGUFReader(source).tensors}
    same = 0
    for tensor in gguf.GGUFReader(out).tensors:
        part = tensor.name.split(".")
        old = ".".join(["blk", str(KEPT[int(part[1])]), *part[2:]]) if part[0] == "blk" else tensor.name
        assert tensor.tensor_type == known[old].tensor_type
        same += np.array_equal(tensor.data, known[old].data)
    assert same == found.copied.copied
    again = load_file(next(open_model(out).checkpoint.folder.glob("*.safetensors")))
    assert again.keys() == weights.keys()
    for name, weight in weights.items():
        error = float((again[name] - weight).norm() / weight.norm())
        assert error <= (found.copied.rounding if name.endswith(MOVED) else 0) + 1e-6, name
    assert load(out.with_name("b.gguf.json"), "exported").copied == found.copied
    assert open_model(out).record.original == KEPT
    assert not list(tmp_path.glob(".*")), "nothing else is left"


@pytest.mark.skipif(llama_cpp_version() is None, reason="xllamacpp is not installed")
def test_where_everything_has_changed_nothing_is_copied(tmp_path) -> None:
    """As after a training of all weights."""
    source, folder = source_and_folder(tmp_path, "llama", "F32")
    count = len(move(folder, ("weight",)))
    found = export(folder, out=tmp_path / "b.gguf", like=source, verify=False)
    assert (found.copied.copied, found.copied.remade) == (0, count)


def test_it_is_proven(tmp_path, capsys) -> None:
    source, folder = source_and_folder(tmp_path, "llama", "F32")
    move(folder)
    assert status("export", folder, "--like", source, "--out", tmp_path / "b.gguf") == 0
    said = capsys.readouterr().out
    assert f"tensors copied from a.gguf, {len(MOVED)} anew as F32" in said and "proven in llama.cpp" in said
    found = load(tmp_path / "b.gguf.json", "exported")
    assert found.proof.divergence < 1e-4 > found.proof.rounded and "llama.block_count = 4" in found.changes


@pytest.mark.skipif(llama_cpp_version() is None, reason="xllamacpp is not installed")
def test_a_change_that_was_missed_is_found_by_the_proof(tmp_path, monkeypatch) -> None:
    source, folder = source_and_folder(tmp_path, "llama", "F32")
    move(folder)
    monkeypatch.setattr("shallower.stages.export_like.changed_weights", lambda *models: {})
    with pytest.raises(Refusal, match=r"weight would not be the model's own in"):
        export(folder, out=tmp_path / "b.gguf", like=source)
    assert not list(tmp_path.glob("*b.*gguf*"))


@pytest.mark.skipif(llama_cpp_version() is None, reason="xllamacpp is not installed")
def test_one_of_several_changes_that_was_missed_is_found_beside_a_rounded_one(tmp_path, monkeypatch) -> None:
    """Each weight is held against its own rounding, those that were copied against none."""
    source, folder = source_and_folder(tmp_path, "llama", "Q4_0")
    move(folder)
    found = export_like.changed_weights

    def fewer(*models):
        return {name: change for name, change in found(*models).items() if "q_proj" not in name}

    monkeypatch.setattr("shallower.stages.export_like.changed_weights", fewer)
    with pytest.raises(Refusal, match=r"q_proj\.weight would not be the model's own in"):
        export(folder, out=tmp_path / "b.gguf", like=source)


def test_a_head_that_has_the_numbers_of_the_embedding_is_told_apart(tmp_path) -> None:
    source = tiny_gguf(tmp_path / "a.gguf", "llama")
    tensors = {one.name: one for one in gguf.GGUFReader(source, "r+").tensors}
    tensors["output.weight"].data[:] = tensors["token_embd.weight"].data
    folder = tmp_path / "small"
    prune(open_model(source), drop_gguf(source, "1-2"), out=folder, verify=False)
    move(folder, ("lm_head.weight",))
    assert export(folder, out=tmp_path / "b.gguf", like=source, verify=False).copied.remade == 1
    small = {one.name: one.data for one in gguf.GGUFReader(tmp_path / "b.gguf").tensors}
    assert np.array_equal(small["token_embd.weight"], tensors["token_embd.weight"].data)
    assert not np.array_equal(small["output.weight"], tensors["output.weight"].data)


def test_a_folder_that_computes_otherwise_is_refused(tmp_path) -> None:
    source, folder = source_and_folder(tmp_path, "llama", "F32")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"rms_norm_eps": 0.1}))
    with pytest.raises(Refusal, match=r"small has rms_norm_eps 0\.1 in its config, and what"):
        export(folder, out=tmp_path / "b.gguf", like=source, verify=False)


def test_numbers_that_are_not_finite_are_refused(tmp_path) -> None:
    source, folder = source_and_folder(tmp_path, "llama", "F32")
    weights = load_file(folder / "model.safetensors")
    weights["model.layers.1.mlp.down_proj.weight"][0, 0] = float("nan")
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(Refusal, match=r"down_proj\.weight holds numbers that are not finite"):
        export(folder, out=tmp_path / "b.gguf", like=source, verify=False)


def test_the_file_that_is_copied_from_is_not_written_over(tmp_path) -> None:
    source, folder = source_and_folder(tmp_path, "llama", "F32")
    export(folder, out=tmp_path / "b.gguf", like=source, verify=False)
    with pytest.raises(UserError, match="it is the file that is copied from"):
        export(folder, out=tmp_path / "b.gguf", like=tmp_path / "b.gguf", verify=False, overwrite=True)


def test_a_namesake_in_the_current_folder_is_another_file(tmp_path, monkeypatch) -> None:
    """transformers takes a bare name of a .gguf file for one in the current folder, and read that one's weights."""
    for place, seed in (("here", 1), ("there", 2)):
        (tmp_path / place).mkdir()
        tiny_gguf(tmp_path / place / "m.gguf", "llama", seed=seed)
    monkeypatch.chdir(tmp_path / "here")
    head = open_model(tmp_path / "there/m.gguf").module.get_output_embeddings().weight
    own = {one.name: one.data for one in gguf.GGUFReader(tmp_path / "there/m.gguf").tensors}["output.weight"]
    assert np.array_equal(head.detach().numpy(), own)


def test_weights_saved_in_fewer_bits_are_the_same(tmp_path) -> None:
    source = tiny_gguf(tmp_path / "a.gguf", "llama", kind="Q8_0")
    prune(open_model(source), drop_gguf(source, "1-2"), out=tmp_path / "small", verify=False, save_dtype="bf16")
    assert export(tmp_path / "small", out=tmp_path / "b.gguf", like=source, verify=False).copied.remade == 0
    move(tmp_path / "small")
    found = export(tmp_path / "small", out=tmp_path / "c.gguf", like=source, verify=False, type="f16")
    assert found.copied.types == ["F16", "F32"]  # matrices as asked, the norm as it was


def test_weights_with_equal_numbers_are_told_apart_by_name(tmp_path) -> None:
    source, folder = source_and_folder(tmp_path, "llama", "F32")
    for tensor in gguf.GGUFReader(source, "r+").tensors:
        if "norm" in tensor.name:
            tensor.data[:] = 1
    prune(open_model(source), drop_gguf(source, "1-2"), out=folder, verify=False, overwrite=True)
    move(folder, ("layers.1.post_attention_layernorm.weight", "layers.2.input_layernorm.weight"))
    export(folder, out=tmp_path / "b.gguf", like=source, verify=False)
    changed = [
        one.name for one in gguf.GGUFReader(tmp_path / "b.gguf").tensors if "norm" in one.name and any(one.data != 1)
    ]
    assert changed == ["blk.1.ffn_norm.weight", "blk.2.attn_norm.weight"]


def test_mistakes(tmp_path, saved) -> None:
    source, folder = source_and_folder(tmp_path, "llama", "F32")
    out = tmp_path / "b.gguf"
    with pytest.raises(UserError, match="what is copied is not converted"):
        export(folder, out=out, like=source, llama_cpp=tmp_path)
    with pytest.raises(UserError, match=r"the name of the \.gguf file is needed"):
        export(folder, out=out, like=folder, verify=False)
    other = tiny_gguf(tmp_path / "other.gguf", "llama", layers=2)
    with pytest.raises(Refusal, match=r"layer 3 of the first model is in .* and not in other\.gguf"):
        export(folder, out=out, like=other, verify=False)
    words = tiny_gguf(tmp_path / "words.gguf", "llama", keys={"shallower": 1})
    data = words.read_bytes()
    words.write_bytes(data.replace(b"w17", b"v17"))
    with pytest.raises(Refusal, match=r"has another vocabulary than words\.gguf"):
        export(folder, out=out, like=words, verify=False)
    (folder / "shallower.json").unlink()
    with pytest.raises(Refusal, match=r"no shallower\.json says which are the same"):
        export(folder, out=out, like=source, verify=False)
    assert not list(tmp_path.glob("*b.*gguf*"))
