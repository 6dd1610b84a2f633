"""Files: shards, dtypes, tied heads, GGUF, prediction layers; the proof fails when it should; random configs."""

import json
import shutil

import pytest
import torch
import zoo
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig

from shallower import UserError, drop, prune
from shallower.anatomy.model import Model
from shallower.anatomy.quantised import renumber_modules
from shallower.storage import writer
from shallower.storage.index import read_header, read_index
from shallower.storage.writer import Cut, stored_content, write_shards
from shallower.surgery import contents as contents_of
from shallower.surgery import rewrite


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("inputs", "outputs"), [(None, "5GB"), ("200KB", "5GB"), (None, "200KB"), ("200KB", "150KB")])
def test_shards_and_dtypes(dtype, inputs, outputs, tmp_path) -> None:
    source = zoo.save("llama", tmp_path / "in", dtype=dtype, max_shard_size=inputs)
    pruned = prune(source, drop(source, (1, 4)), out=tmp_path / "out", max_shard_size=outputs)
    assert pruned.verified.logits == "bit for bit"
    files = sorted(path.name for path in (tmp_path / "out").glob("*.safetensors"))
    assert (len(files) > 1) == (outputs != "5GB")
    tensors = read_index(tmp_path / "out")
    assert {entry.dtype for entry in tensors.values()} == {
        {torch.float32: "F32", torch.bfloat16: "BF16", torch.float16: "F16"}[dtype]
    }
    assert all(
        sum(item.bytes for item in read_header(path).values()) <= 200e3
        for path in (tmp_path / "out").glob("model-*.safetensors")
    )


@pytest.mark.parametrize("save_dtype", ["bf16", "fp16"])
def test_save_dtype(save_dtype, saved, tmp_path) -> None:
    source = saved("llama")
    pruned = prune(source, drop(source, (2,)), out=tmp_path / "out", save_dtype=save_dtype)
    kind = {"bf16": torch.bfloat16, "fp16": torch.float16}[save_dtype]
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype="auto")
    wanted = AutoModelForCausalLM.from_pretrained(source, dtype=kind).state_dict()
    assert loaded.dtype == kind
    assert pruned.verified.logits == "bit for bit"
    assert torch.equal(
        loaded.state_dict()["model.layers.2.mlp.up_proj.weight"], wanted["model.layers.3.mlp.up_proj.weight"]
    )


@pytest.mark.parametrize("buffer", [8 << 20, 96, 40])  # rows together, a row at a time, rows longer than the buffer
@pytest.mark.parametrize("save_dtype", [None, torch.float32])
@pytest.mark.parametrize("kept", [(1, 2, 5), (0, 1, 2, 3, 4, 5), (3,)])
def test_tables_by_layer_are_cut(kept, save_dtype, buffer, tmp_path, monkeypatch) -> None:
    """Six parts of two along axis 0, 1 or 2, from two files into several."""
    monkeypatch.setattr(writer, "COPY_BYTES", buffer)
    shapes = {"rows": (12, 5), "columns": (7, 12), "middle": (3, 12, 4), "flat": (12,), "whole": (7, 12)}
    wanted = {name: torch.randn(shape).bfloat16() for name, shape in shapes.items()}
    save_file({name: wanted[name] for name in ("rows", "middle")}, tmp_path / "a.safetensors")
    save_file({name: wanted[name] for name in ("columns", "flat", "whole")}, tmp_path / "b.safetensors")
    entries = read_header(tmp_path / "a.safetensors") | read_header(tmp_path / "b.safetensors")
    axes = {"rows": 0, "columns": 1, "middle": 1, "flat": 0}
    contents = {
        name: stored_content(entry, Cut(axes[name], 6, kept) if name in axes else None)
        for name, entry in entries.items()
    }
    contents = {name: contents_of.convert_content(content, save_dtype) for name, content in contents.items()}
    (tmp_path / "out").mkdir()
    assert len(write_shards(tmp_path / "out", contents, max_bytes=200)) > 1
    for name, entry in read_index(tmp_path / "out").items():
        got = load_file(entry.file)[name]
        places = [2 * part + within for part in kept for within in (0, 1)]
        expected = wanted[name].index_select(axes[name], torch.tensor(places)) if name in axes else wanted[name]
        assert torch.equal(got, expected.to(save_dtype or torch.bfloat16)), name


def test_a_table_that_does_not_divide_is_not_cut(tmp_path) -> None:
    save_file({"table": torch.zeros(4, 13)}, tmp_path / "a.safetensors")
    with pytest.raises(UserError, match="does not divide into 6 parts along axis 1"):
        stored_content(read_header(tmp_path / "a.safetensors")["table"], Cut(1, 6, (0,)))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("inputs", "outputs"), [(None, "5GB"), ("60KB", "40KB")])
def test_tables_by_layer_in_shards_and_dtypes(dtype, inputs, outputs, tmp_path) -> None:
    source = zoo.save("gemma3n_text+noshare", tmp_path / "in", dtype=dtype, max_shard_size=inputs)
    pruned = prune(source, drop(source, (1, 4)), out=tmp_path / "out", max_shard_size=outputs)
    assert pruned.verified.logits == "bit for bit"
    old, new = read_index(source), read_index(tmp_path / "out")
    cut = {
        name: (entry.shape, new[name].shape)
        for name, entry in old.items()
        if ".layers." not in name and entry.shape != new[name].shape
    }
    assert sorted(cut.values()) == [((64, 64), (48, 64)), ((512, 64), (512, 48))]


@pytest.mark.parametrize(("name", "tied"), [("llama", False), ("llama+tied", True)])
def test_heads(name, tied, saved, tmp_path) -> None:
    prune(saved(name), drop(saved(name), (0,)), out=tmp_path / "out")
    assert ("lm_head.weight" in read_index(tmp_path / "out")) is not tied
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert (loaded.lm_head.weight is loaded.model.embed_tokens.weight) is tied


def test_side_files_are_carried(saved, tmp_path) -> None:
    source = shutil.copytree(saved("llama"), tmp_path / "in")
    (source / "chat_template.jinja").write_text("{{ messages[0].content }}")
    (source / "generation_config.json").write_text('{"max_new_tokens": 7, "temperature": 0.3, "do_sample": true}')
    (source / "LICENSE").write_text("terms")
    (source / "pytorch_model.bin").write_bytes(b"no")
    (source / "README.md").write_text("the card of the dense model")
    prune(source, drop(source, (3,)), out=tmp_path / "out")
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert {"chat_template.jinja", "LICENSE", "tokenizer.json", "tokenizer_config.json", "shallower.json"} <= names
    assert "pytorch_model.bin" not in names
    assert (tmp_path / "out" / "README.base.md").read_text() == "the card of the dense model"
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "out").generation_config.max_new_tokens == 7
    assert AutoTokenizer.from_pretrained(tmp_path / "out").chat_template == "{{ messages[0].content }}"


def test_stored_tensors_are_the_same_bytes(saved, tmp_path) -> None:
    source = saved("llama")
    prune(source, drop(source, (0, 3, 5)), out=tmp_path / "out")
    old, new = load_file(source / "model.safetensors"), load_file(tmp_path / "out" / "model.safetensors")
    for position, index in enumerate((1, 2, 4, 6, 7)):
        assert torch.equal(
            new[f"model.layers.{position}.mlp.gate_proj.weight"], old[f"model.layers.{index}.mlp.gate_proj.weight"]
        )
    assert (read_header(tmp_path / "out" / "model.safetensors")["lm_head.weight"].start) % 8 == 0


def test_prediction_layers_after_the_stack_are_left_out(saved, tmp_path) -> None:
    """Published DeepSeek-V3 files hold a prediction layer numbered after the last; its number would clash."""
    source = shutil.copytree(saved("deepseek_v3"), tmp_path / "in")
    tensors = load_file(source / "model.safetensors")
    tensors |= {
        name.replace("layers.7.", "layers.8."): value.clone() for name, value in tensors.items() if "layers.7." in name
    }
    save_file(tensors, source / "model.safetensors", {"format": "pt"})
    pruned = prune(source, drop(source, (4,)), out=tmp_path / "out")
    assert any("prediction" in change for change in pruned.config_changes)
    assert not any(".layers.7." in name or ".layers.8." in name for name in read_index(tmp_path / "out"))
    assert json.loads((tmp_path / "out" / "config.json").read_text())["num_nextn_predict_layers"] == 0


@pytest.mark.parametrize(
    ("entry", "wanted"),  # layers 1 and 4 of 8 go
    [
        ("lm_head", ["lm_head"]),
        ("model.layers.2.mlp.up_proj", ["model.layers.1.mlp.up_proj"]),
        ("model.layers.4.mlp.up_proj", []),
        (r"re:model\.layers\.2\..*", [r"re:model\.layers\.1\..*"]),
        ("model.layers.7.*", ["model.layers.5.*"]),
        (r"re:.*down_proj", [r"re:.*down_proj"]),
        (
            r"re:model\.layers\.[247]\.mlp.*",
            [r"re:^model\.layers\.1\.mlp(\..*)?$", r"re:^model\.layers\.5\.mlp(\..*)?$"],
        ),
        ("model.layers.[27].mlp*", [f"model.layers.{n}.mlp{end}" for n in (1, 5) for end in ("", ".*")]),
        (r"re:model\.layers\.[27]\.mlp$", [r"re:^model\.layers\.1\.mlp$", r"re:^model\.layers\.5\.mlp$"]),
        ("vision_tower.layers.2.mlp", ["vision_tower.layers.2.mlp"]),  # of another stack
    ],
)
def test_layer_numbers_inside_a_quantisation_config(entry, wanted, saved) -> None:
    model = Model(saved("llama"), device="cpu")
    names = rewrite.LayerNumbers(model, [0, 2, 3, 5, 6, 7]).names
    assert renumber_modules({"ignore": ["a", entry], "bits": 8}, names, [0, 2, 3, 5, 6, 7]) == {
        "ignore": ["a", *wanted],
        "bits": 8,
    }


def test_pruning_twice_carries_the_map_to_the_ancestor(saved, tmp_path) -> None:
    prune(saved("llama"), drop(saved("llama"), (1, 4)), out=tmp_path / "one")
    prune(tmp_path / "one", drop(tmp_path / "one", (0, 2)), out=tmp_path / "two")
    assert json.loads((tmp_path / "two" / "shallower.json").read_text())["original"] == [2, 5, 6, 7]


def test_a_wrong_file_is_not_accepted(saved, tmp_path, monkeypatch) -> None:
    """The proof is not a formality: with two layers swapped in the file nothing is left at the target."""
    honest = rewrite.rename

    def swapped(*args):
        renaming = honest(*args)
        names = renaming.sources
        for name in [name for name in names if ".layers.1." in name]:
            other = name.replace(".layers.1.", ".layers.2.")
            names[name], names[other] = names[other], names[name]
        return renaming

    monkeypatch.setattr(rewrite, "rename", swapped)
    with pytest.raises(UserError, match="not the intended one"):
        prune(saved("llama"), drop(saved("llama"), (4,)), out=tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_a_lost_weight_is_not_accepted(saved, tmp_path, monkeypatch) -> None:
    honest = rewrite.rename

    def lossy(*args):
        renaming = honest(*args)
        del renaming.sources["model.layers.3.mlp.up_proj.weight"]
        return renaming

    monkeypatch.setattr(rewrite, "rename", lossy)
    with pytest.raises(UserError, match="lacks weights"):
        prune(saved("llama"), drop(saved("llama"), (4,)), out=tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_a_changed_config_is_not_accepted(saved, tmp_path, monkeypatch) -> None:
    honest = rewrite.write_config

    def changed(*args):
        honest(*args)
        path = args[0] / "config.json"
        content = json.loads(path.read_text())
        path.write_text(json.dumps(content | {"rms_norm_eps": 0.1}))

    monkeypatch.setattr(rewrite, "write_config", changed)
    with pytest.raises(UserError, match="not the intended one"):
        prune(saved("llama"), drop(saved("llama"), (4,)), out=tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_the_control_speaks_before_the_pruned_model(saved, tmp_path) -> None:
    """A model that is broken before pruning is named as such."""
    source = shutil.copytree(saved("llama"), tmp_path / "in")
    tensors = load_file(source / "model.safetensors")
    del tensors["model.layers.6.mlp.up_proj.weight"]
    save_file(tensors, source / "model.safetensors", {"format": "pt"})
    with pytest.raises(UserError, match=r"in lacks weights when loaded.*layers\.6\.mlp\.up_proj"):
        prune(source, drop(source, (4,)), out=tmp_path / "out")
    assert not (tmp_path / "out").exists()


@settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_random_configs_and_removals(data, tmp_path_factory) -> None:
    layers = data.draw(st.integers(2, 6), label="layers")
    kv_heads = data.draw(st.sampled_from([1, 2, 4]), label="kv heads")
    config = LlamaConfig(
        vocab_size=data.draw(st.sampled_from([96, 512]), label="vocabulary"),
        hidden_size=16 * data.draw(st.integers(1, 3), label="hidden / 16") * 4,
        intermediate_size=data.draw(st.integers(8, 80), label="intermediate"),
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=kv_heads,
        max_position_embeddings=128,
        tie_word_embeddings=data.draw(st.booleans(), label="tied"),
        attention_bias=data.draw(st.booleans(), label="bias"),
    )
    removed = data.draw(st.sets(st.integers(0, layers - 1), min_size=1, max_size=layers - 1), label="removed")
    folder = tmp_path_factory.mktemp("random")
    model = AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        zoo.randomise(model, data.draw(st.integers(0, 99), label="seed"))
    model.save_pretrained(folder / "in")
    pruned = prune(folder / "in", drop(folder / "in", sorted(removed)), out=folder / "out")
    assert pruned.verified.logits == "bit for bit"
    with safe_open(folder / "out" / "model.safetensors", "pt") as file:
        assert len({name.split(".")[2] for name in file.keys() if ".layers." in name}) == layers - len(removed)  # noqa: SIM118
