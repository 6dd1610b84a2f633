"""Parts of layers removed, written as DeciLM for other runtimes, and loaded again."""

import json
import shutil
from pathlib import Path

import pytest
import torch
import zoo
from forms import generated, logits, trusted, virtual_logits
from marks import rest_slow
from shrinking import shrink
from transformers import AutoConfig, AutoModelForCausalLM

import shallower
from shallower import Refusal, UserError, drop, prune
from shallower.anatomy import modeling_shallower
from shallower.anatomy.model import Model
from shallower.storage.index import read_index


def wide(kind: str, folder: Path, **fields) -> Path:
    """A model of which MLPs are wide enough for DeciLM's steps of 256 neurons."""
    more = {"sliding_window": None} if kind == "mistral" else {}
    return zoo.save(zoo.build(kind, shrink(kind, **{"intermediate_size": 512} | more | fields)), folder)


@pytest.mark.parametrize("kind", rest_slow(["llama", "qwen2", "mistral"], {"qwen2"}))
def test_deci_is_the_virtual_removal(kind, tmp_path) -> None:
    source = wide(kind, tmp_path / "in")
    plan = drop(source, ["2.mlp", "5.attention", 3])
    pruned = prune(source, plan, out=tmp_path / "out", format="deci")
    assert pruned.format == "deci" and pruned.verified.logits == "bit for bit" and pruned.verified.missing_keys == 0
    loaded, ours = trusted(tmp_path / "out"), shallower.load(tmp_path / "out")
    assert torch.equal(logits(loaded), virtual_logits(source, plan)) and torch.equal(logits(ours), logits(loaded))
    assert generated(loaded, cached=True) == generated(loaded, cached=False)
    with pytest.raises(ValueError, match="trust_remote_code"):
        AutoModelForCausalLM.from_pretrained(tmp_path / "out", trust_remote_code=False)
    before = sum(entry.count for entry in read_index(source).values())
    zeros = 3 * 256 * 64 + 64 + (6 * 64 if kind == "qwen2" else 0)  # an MLP, its norm, biases
    assert sum(entry.count for entry in read_index(tmp_path / "out").values()) == plan.params_after + zeros < before
    assert pruned.zeros == zeros - 64 and f"| {zeros - 64:,} |" in (tmp_path / "out" / "README.md").read_text()
    assert pruned.cache_bytes_per_token * 8 == pruned.cache_bytes_per_token_before * 6


def test_deci_is_told_in_the_words_that_its_readers_know(tmp_path) -> None:
    rope = {"rope_type": "linear", "factor": 2.0, "rope_theta": 5e4}
    source = wide("llama", tmp_path / "in", rope_parameters=rope)
    prune(source, drop(source, ["2.mlp", "5.attention"]), out=tmp_path / "out", format="deci")
    raw = json.loads((tmp_path / "out" / "config.json").read_text())
    assert raw["model_type"] == "nemotron-nas" and raw["architectures"] == ["DeciLMForCausalLM"]
    assert raw["rope_theta"] == 5e4 and raw["rope_scaling"] == {"rope_type": "linear", "factor": 2.0}
    whole = {"attention": {"no_op": False, "n_heads_in_group": 2, "replace_with_linear": False}}
    whole |= {"ffn": {"no_op": False, "ffn_mult": 12.0, "replace_with_linear": False}}
    assert raw["block_configs"][0] == whole and raw["block_configs"][2]["ffn"]["ffn_mult"] == 6.0
    assert raw["block_configs"][5]["attention"] == whole["attention"] | {"no_op": True, "n_heads_in_group": None}
    config = AutoConfig.from_pretrained(tmp_path / "out", trust_remote_code=True)
    assert config.block_configs[5].attention.no_op and not hasattr(config.block_configs[5].ffn, "intermediate_size")
    assert [modeling_shallower.deci_width(m, 4096) for m in (5.25, 5.2496, 0.09375)] == [14336, 14336, 256]


def test_deci_is_pruned_again_and_changes_its_form(tmp_path) -> None:
    source = wide("qwen2", tmp_path / "in")
    prune(source, drop(source, ["2.mlp", "5.attention", 3]), out=tmp_path / "deci", format="deci", verify=False)
    again = Model(tmp_path / "deci", device="cpu")
    plan = drop(again, ["1.mlp", "3.attention", 6])
    more = prune(again, plan, out=tmp_path / "more")
    assert more.format == "deci" and more.original == [0, 1, 2, 4, 5, 6]
    assert not any("silent" in change for change in more.config_changes)
    want = virtual_logits(tmp_path / "deci", plan)
    assert torch.equal(logits(trusted(tmp_path / "more")), want)
    prune(again, plan, out=tmp_path / "custom", format="custom", verify=False)
    assert torch.equal(logits(trusted(tmp_path / "custom")), want)
    trusted(tmp_path / "custom").save_pretrained(tmp_path / "saved")
    assert torch.equal(logits(trusted(tmp_path / "saved")), want)
    first = drop(again, (0, 1, 2, 3))  # what is first now lacks its attention
    lost = prune(again, first, out=tmp_path / "lost", verify=False)
    assert lost.format == "custom" and lost.config_changes[-1].startswith("no DeciLM any more (layer 4, its first")
    last = drop(tmp_path / "custom", ["4.mlp"])
    back = prune(tmp_path / "custom", last, out=tmp_path / "back", format="deci", verify=False)
    assert back.format == "deci"
    assert torch.equal(logits(trusted(tmp_path / "back")), virtual_logits(tmp_path / "custom", last))


@pytest.mark.parametrize(
    ("fields", "units", "reason"),
    [
        ({}, ["0.attention"], "layer 0, its first one, has to keep its attention"),
        ({"intermediate_size": 384}, ["3.attention"], "an MLP of 384 neurons is no multiple of 256"),
        ({"intermediate_size": 256}, ["3.mlp"], "an MLP of 256 neurons would not become smaller"),
        ({"head_dim": 32}, ["3.mlp"], "its heads together are not as wide as the stream"),
        ({"mlp_bias": True}, ["3.mlp"], "its MLPs have biases"),
        (
            {"rope_parameters": {"rope_type": "yarn", "factor": 2.0, "rope_theta": 1e4}},
            ["3.mlp"],
            "its rotary positions are none of default, linear, llama3",
        ),
    ],
)
def test_what_no_deci_holds_is_refused(fields, units, reason, tmp_path) -> None:
    source = wide("llama", tmp_path / "in", **fields)
    with pytest.raises(Refusal) as caught:
        prune(source, drop(source, units), out=tmp_path / "out", format="deci")
    said = str(caught.value)
    assert reason in said and "format=custom" in said and "\n" not in said and not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("hidden_size", None),
        ("num_key_value_heads", 0),
        ("block_configs", {}),
        ("block_configs", [1]),
        ("block_configs", [{"attention": {"no_op": 3}, "ffn": {}}]),
        (
            "block_configs",
            [{"attention": {"no_op": True, "n_heads_in_group": None}, "ffn": {"no_op": False, "ffn_mult": 1e99}}],
        ),
        (
            "block_configs",
            [{"attention": {"no_op": False, "n_heads_in_group": 1}, "ffn": {"no_op": False, "ffn_mult": 6.0}}],
        ),
        (
            "block_configs",
            [{"attention": {"no_op": False, "n_heads_in_group": 2}, "ffn": {"no_op": False, "ffn_mult": 9e4}}] * 8,
        ),
    ],
)
def test_a_deci_config_that_is_not_ours_is_refused_in_one_line(field, value, deci, tmp_path) -> None:
    folder = shutil.copytree(deci, tmp_path / "copy")
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {field: value}))
    with pytest.raises(UserError) as caught:
        _ = Model(folder, device="cpu").module
    assert "\n" not in str(caught.value)


@pytest.fixture(scope="module")
def deci(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("deci")
    source = wide("llama", folder / "in")
    prune(source, drop(source, ["2.mlp", "5.attention"]), out=folder / "out", format="deci", verify=False)
    return folder / "out"
