"""Parts of layers removed, written and loaded again: by a plain host class, or by custom code beside the weights."""

import copy
import json
import pickle
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import zoo
from forms import generated, logits, trusted, virtual_logits
from marks import rest_slow
from shrinking import shrink
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

import shallower
from shallower import Calibration, Refusal, RepairOptions, UserError, drop, evaluate, prune, score
from shallower.anatomy import modeling_shallower
from shallower.anatomy.decoding import Decoder, cache_growth
from shallower.anatomy.model import Model
from shallower.anatomy.sources import open_checkpoint
from shallower.artifacts import load
from shallower.storage.index import read_index

FAST = ("llama", "gpt2")
SLOW = (
    "gemma2",
    "opt",
    "phi3",
    "bloom",
    "gpt_neox",
    "falcon",
    "qwen3_moe",
    "recurrent_gemma",
    "gemma3_text",
    "smollm3",
    "olmo2",
)
HOSTED = {
    "llama": "Qwen2Moe",
    "llama+tied": "Qwen2Moe",
    "mistral": "Qwen2Moe",
    "qwen2": "Qwen2Moe",
    "qwen3": "Qwen3Moe",
}


def dense(name: str, folder: Path) -> Path:
    """A saved model of the zoo; without sliding windows where a host is to be found."""
    kind = name.partition("+")[0]
    if kind == "mistral":
        return zoo.save(zoo.build(name, shrink(kind, sliding_window=None)), folder)
    known = kind != "qwen2" and kind in zoo.FAMILIES
    return zoo.save(name if known else zoo.build(name, shrink(kind)), folder)


def written(name: str, folder: Path, units: list[str], layers: tuple[int, ...] = (), **how):
    """(record, plan, folder of the dense model) of a model without some parts, written to ``folder/out``."""
    source = dense(name, folder / "in")
    model = Model(source, device="cpu")
    plan = drop(model, [*units, *layers])
    return prune(model, plan, out=folder / "out", **how), plan, source


@pytest.mark.parametrize("name", [*FAST, *(pytest.param(name, marks=pytest.mark.slow) for name in SLOW)])
def test_custom_code_is_the_virtual_removal(name, tmp_path) -> None:
    pruned, plan, source = written(name, tmp_path, ["2.mlp", "5.attention"], format="custom")
    assert pruned.format == "custom" and pruned.verified.missing_keys == 0
    assert "layer 2 without its mlp" in pruned.config_changes
    loaded = trusted(tmp_path / "out")
    assert torch.equal(logits(loaded), virtual_logits(source, plan))
    assert generated(loaded, cached=True) == generated(loaded, cached=False)
    assert sum(parameter.numel() for parameter in loaded.parameters()) == plan.params_after
    record = Model(tmp_path / "out", device="cpu").record
    assert record.parameters == plan.params_after and record.family == plan.model.family
    gone = {2: plan.units["2.mlp"], 5: plan.units["5.attention"]}
    sizes = [size - gone.get(index, 0) for index, size in enumerate(plan.model.layer_parameters)]
    assert record.layer_parameters == sizes
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["model_type"] == "shallower" and config["base_config"]["model_type"] == plan.model.family


@pytest.mark.parametrize("name", rest_slow(["deepseek_v3", "apertus", "mbart"], {"mbart"}))
def test_buffers_go_with_a_part_and_what_nobody_uses_stays(name, tmp_path) -> None:
    """Buffers of a router or an activation; and attention to an encoder, which a decoder alone never asks for."""
    pruned, plan, source = written(name, tmp_path, ["0.attention", "4.mlp"], format="custom")
    loaded = trusted(tmp_path / "out")
    assert torch.equal(logits(loaded), virtual_logits(source, plan)) and pruned.verified.unexpected_keys == 0
    assert generated(loaded, cached=True) == generated(loaded, cached=False)


@pytest.fixture(scope="module")
def custom(tmp_path_factory):
    """Llama without the attention of its first layer, the MLP of the third, and its seventh layer."""
    folder = tmp_path_factory.mktemp("custom")
    pruned, plan, source = written("llama", folder, ["0.attention", "2.mlp"], (6,), format="custom")
    return folder / "out", pruned, plan, source


def test_the_first_attention_may_go(custom) -> None:
    """The cache tells by its first layer how much was read."""
    folder, pruned, plan, source = custom
    loaded = trusted(folder)
    assert [layer.self_attn.layer_idx for layer in loaded.model.layers[1:]] == [*range(6)]
    assert generated(loaded, cached=True) == generated(loaded, cached=False)
    assert torch.equal(logits(loaded), virtual_logits(source, plan))
    assert pruned.cache_bytes_per_token * 8 == pruned.cache_bytes_per_token_before * 6
    decoder = Decoder(loaded)
    decoder.prefill(zoo.tokens(1, 4))
    assert decoder.grown(zoo.tokens(1, 1))[1] == pruned.cache_bytes_per_token


@pytest.mark.parametrize(
    ("name", "without", "share"),
    [
        ("llama", lambda index, kind: True, 0),
        pytest.param("gemma3_text", lambda index, kind: kind == "sliding_attention", 1 / 8, marks=pytest.mark.slow),
        ("gemma3_text", lambda index, kind: kind == "full_attention", 7 / 8),
    ],
)
def test_all_attentions_of_a_kind_may_go(name, without, share, tmp_path) -> None:
    kinds = getattr(shrink(name), "layer_types", None) or [""] * 8
    gone = [f"{index}.attention" for index, kind in enumerate(kinds) if without(index, kind)]
    pruned, plan, source = written(name, tmp_path, gone, format="custom")
    loaded = trusted(tmp_path / "out")
    assert torch.equal(logits(loaded), virtual_logits(source, plan))
    assert generated(loaded, cached=True) == generated(loaded, cached=False)
    assert pruned.cache_bytes_per_token == share * pruned.cache_bytes_per_token_before


def test_plain_transformers_does_not_take_it_for_something_else(custom) -> None:
    folder = custom[0]
    with pytest.raises(ValueError, match="trust_remote_code"):
        AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=False)


def test_transformers_saves_and_builds_it(custom, tmp_path) -> None:
    folder = custom[0]
    loaded = trusted(folder)
    loaded.save_pretrained(tmp_path / "again")
    again = trusted(tmp_path / "again")
    assert torch.equal(logits(again), logits(loaded))
    assert torch.equal(logits(Model(tmp_path / "again", device="cpu").module), logits(loaded))
    config = AutoConfig.from_pretrained(folder, trust_remote_code=True)
    assert (
        config.hidden_size == 64 and config.num_hidden_layers == 7 and config.get_text_config().num_hidden_layers == 7
    )
    empty = AutoModelForCausalLM.from_config(config, trust_remote_code=True)
    assert {name: one.shape for name, one in empty.state_dict().items()} == {
        name: one.shape for name, one in loaded.state_dict().items()
    }
    assert (
        AutoModelForCausalLM.from_config(config, trust_remote_code=True, dtype=torch.bfloat16).dtype == torch.bfloat16
    )
    copied = pickle.loads(pickle.dumps(loaded))
    assert torch.equal(logits(copied), logits(loaded)) and torch.equal(logits(copy.deepcopy(loaded)), logits(loaded))
    eager = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True, attn_implementation="eager")
    assert eager.config._attn_implementation == "eager"
    assert AutoTokenizer.from_pretrained(folder, trust_remote_code=True)


def test_our_own_code_opens_it_and_never_that_in_the_folder(custom, tmp_path) -> None:
    folder = shutil.copytree(custom[0], tmp_path / "copy")
    code = folder / modeling_shallower.FILE
    assert code.read_text() == Path(modeling_shallower.__file__).read_text()
    fingerprint = open_checkpoint(folder).fingerprint
    code.write_text("raise SystemExit('run')")
    for trust in (False, True):
        model = Model(folder, device="cpu", trust_remote_code=trust)
        assert model.record.fingerprint == fingerprint
        assert len(model.stack) == 7 and model.tokenizer
        model.unload()


@pytest.mark.parametrize("layered", rest_slow([False, True], {True}))
def test_it_is_scored_and_pruned_again(custom, layered, tmp_path) -> None:
    folder, _, plan, source = custom
    model = Model(folder, device="cpu", layered=layered)
    with torch.no_grad():
        assert torch.equal(model.module(input_ids=zoo.tokens(), use_cache=False).logits, virtual_logits(source, plan))
    pruned = prune(model, drop(model, (3,)), out=tmp_path / "again")
    assert pruned.format == "custom"
    again = trusted(tmp_path / "again")
    assert len(again.model.layers) == 6 and generated(again, cached=True) == generated(again, cached=False)
    more = drop(Model(folder, device="cpu"), ["1.mlp", "4.attention", "2.attention"])
    assert more.removed == ["1.mlp", 2, "4.attention"]  # what was left of layer 2
    pruned = prune(folder, more, out=tmp_path / "more", format="custom")
    assert pruned.original == [0, 1, 3, 4, 5, 7]


def test_what_stays_whole_is_the_family_again(custom, tmp_path) -> None:
    """Without the layers that lack something a model is as plain as any."""
    again = prune(custom[0], drop(custom[0], (0, 2)), out=tmp_path / "again", format="plain")
    assert again.format == "plain" and AutoModelForCausalLM.from_pretrained(tmp_path / "again").model.layers[4]
    assert not list((tmp_path / "again").glob("*.py"))


def test_a_plan_that_does_not_fit_is_refused(saved, tmp_path) -> None:
    """Names and sizes of units are the model's own, and no layer stays of which nothing is left."""
    source = saved("llama")
    plan = drop(source, ["5.mlp", "6.attention"])
    mlp, attention = plan.units["5.mlp"], plan.units["6.attention"]
    for units, said in (
        ({"5.attention": mlp, "6.mlp": attention}, "5.attention has"),
        ({"5.mlp": mlp + 1, "6.attention": attention - 1}, "5.mlp has"),
        ({"5.mlp": mlp, "5.attention": attention}, "keeps layers of which nothing is left"),
    ):
        wrong = replace(plan, units=units, removed=[*units], params_after=plan.params_before - sum(units.values()))
        with pytest.raises(UserError, match=said):
            prune(source, wrong, out=tmp_path / "out")
    with pytest.raises(UserError, match=r"units name 05\.mlp, which is 5\.mlp"):
        replace(plan, units={"05.mlp": mlp, "6.attention": attention}, removed=["05.mlp", "6.attention"])


@pytest.mark.parametrize("layered", [False, True])
def test_it_is_evaluated_and_its_layers_scored(custom, layered, text) -> None:
    folder = custom[0]
    model = Model(folder, device="cpu", layered=layered)
    measured = evaluate(model, texts=[str(text)], length=32).perplexity["book"]
    assert measured.value == pytest.approx(evaluate(folder, texts=[str(text)], length=32).perplexity["book"].value)
    scores = score(model, criterion="perplexity", samples=2, length=16, text=str(text))
    assert len(scores.scores) == 7


def test_a_record_tells_the_form_and_older_ones_nothing(custom, saved, tmp_path) -> None:
    assert load(custom[0] / "shallower.json", "pruned").format == "custom"
    whole = prune(saved("llama"), drop(saved("llama"), (4,)), out=tmp_path / "out", format="custom")
    assert whole.format == "plain" and whole.cache_bytes_per_token is None
    assert not (tmp_path / "out" / modeling_shallower.FILE).exists()


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("base_config", {"model_type": "os.system"}),
        ("base_config", None),
        ("stack", "model.layers; import os"),
        ("silent", [1]),
        ("silent", [[{"module": "mlp"}]]),
        ("silent", []),
        ("shapes", [{}]),
        ("shapes", [{"mlp.up_proj.weight": [64, 10**9]}] * 7),
        ("silent", [[{"module": "mlp", "part": "mlp", "container": None, "streams": [], "width": 64}]] * 7),
        ("silent", [[{"module": "mlp", "part": "mlp", "container": None, "streams": [True], "width": -1}]] * 7),
        ("silent", [[{"module": "mlp", "part": "mlp", "container": None, "streams": [True], "width": 32}]] * 7),
        (
            "silent",
            [[{"module": "self_attn", "part": "attention", "container": None, "streams": [True], "width": 64}]] * 7,
        ),
        ("silent", [[{"module": "none", "part": "mlp", "container": None, "streams": [True], "width": 64}]] * 7),
    ],
)
def test_a_config_that_is_not_ours_is_refused_in_one_line(field, value, custom, tmp_path) -> None:
    folder = shutil.copytree(custom[0], tmp_path / "copy")
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {field: value}))
    with pytest.raises(UserError) as caught:
        _ = Model(folder, device="cpu").module
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", rest_slow(HOSTED, {"llama"}))
def test_a_plain_class_holds_layers_without_mlp(name, tmp_path) -> None:
    pruned, plan, source = written(name, tmp_path, ["0.mlp", "3.mlp"], (5,), format="auto")
    assert pruned.format == "host" and pruned.verified.logits == "bit for bit"
    assert f"written as {HOSTED[name]}ForCausalLM" in pruned.config_changes
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "out").eval()
    assert type(loaded).__module__.startswith("transformers.models.")
    assert torch.equal(logits(loaded), virtual_logits(source, plan))
    assert generated(loaded, cached=True) == generated(loaded, cached=False)
    assert not list((tmp_path / "out").glob("*.py"))
    zeros = [entry for at, entry in read_index(tmp_path / "out").items() if "expert" in at]
    assert zeros and max(entry.count for entry in zeros) == 8 * 64


@pytest.mark.parametrize("name", rest_slow(HOSTED, {"qwen3"}))
def test_a_plain_class_holds_mlps_of_a_second_width(name, tmp_path) -> None:
    """A third of the neurons of some layers, among them two that keep all and one that goes."""
    narrow = [f"{layer}.mlp:0-31" for layer in (1, 3, 4, 6)]
    pruned, _, source = written(name, tmp_path, narrow, (5,), format="auto")
    assert pruned.format == "host" and pruned.verified.logits_difference <= 2e-6
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "out").eval()
    assert type(loaded).__name__ == f"{HOSTED[name]}ForCausalLM" and loaded.config.moe_intermediate_size == 64
    wanted = virtual_logits(source, pruned.plan)
    torch.testing.assert_close(logits(loaded), wanted, rtol=0, atol=2e-6)
    assert generated(loaded, cached=True) == generated(loaded, cached=False)
    assert sum(one.numel() for one in loaded.parameters()) == pruned.plan.params_after + pruned.zeros
    again = prune(tmp_path / "out", drop(tmp_path / "out", (0, 4)), out=tmp_path / "again")
    assert again.verified.logits == "bit for bit"
    with pytest.raises(Refusal, match="single experts of another width already"):
        prune(tmp_path / "out", drop(tmp_path / "out", ["0.mlp"]), out=tmp_path / "more")
    np.save(tmp_path / "tokens.npy", zoo.tokens(batch=6, length=16).numpy())
    tokens = Calibration(tokens=str(tmp_path / "tokens.npy"), samples=6, length=16)
    how = RepairOptions("sequential", {"strength": "0.01"}, tokens)
    mended = prune(source, drop(source, narrow), out=tmp_path / "mended", compensating=how)
    assert mended.format == "host" and mended.verified.changed_weights == len(mended.compensation.changed)


@pytest.mark.parametrize(
    ("narrow", "said"),
    [
        (["1.mlp:0-31", "3.mlp:0-15"], "get 2 widths, and a plain class holds one"),
        (["1.mlp:0-32"], "is no multiple of 8: multiple_of=8 makes it one"),
        (["1.mlp:0-31", "3.attention:0"], "how narrow its layers are"),
    ],
)
def test_widths_that_no_plain_class_holds_are_refused(narrow, said, saved, tmp_path) -> None:
    model = Model(saved("llama"), device="cpu")
    with pytest.raises(Refusal, match=said):
        prune(model, drop(model, narrow), out=tmp_path / "out")


@pytest.mark.parametrize("name", rest_slow(["qwen2", "qwen3"], {"qwen3"}))
def test_a_host_is_pruned_again(name, tmp_path) -> None:
    """A further MLP, and a layer of either sort."""
    written(name, tmp_path, ["0.mlp", "3.mlp"], format="auto")
    source = tmp_path / "out"
    plan = drop(source, ["5.mlp", 1, 3])
    again = prune(source, plan, out=tmp_path / "again", format="plain")
    assert again.format == "host" and again.verified.logits == "bit for bit" and again.original == [0, 2, 4, 5, 6, 7]
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "again")
    assert torch.equal(logits(loaded), virtual_logits(source, plan))
    assert loaded.config.mlp_only_layers == [1, 2, 4, 5] and type(loaded.model.layers[3].mlp.gate.weight)


def test_a_host_in_another_dtype(tmp_path) -> None:
    pruned, _, _ = written("llama", tmp_path, ["3.mlp"], format="plain", save_dtype="bf16")
    assert pruned.format == "host" and {entry.dtype for entry in read_index(tmp_path / "out").values()} == {"BF16"}
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "out").dtype == torch.bfloat16


@pytest.mark.parametrize(
    ("name", "units", "reason"),
    [
        ("llama", ["3.attention"], "no plain class lacks an attention"),
        ("gpt2", ["3.mlp"], "for an MLP there is one for llama, mistral, qwen2, qwen3 only"),
    ],
)
@pytest.mark.parametrize("wanted", ["auto", "plain"])
def test_what_no_plain_class_holds_is_refused(name, units, reason, wanted, saved, tmp_path) -> None:
    model = Model(saved(name), device="cpu")
    with pytest.raises(Refusal) as caught:
        prune(model, drop(model, units), out=tmp_path / "out", format=wanted)
    said = str(caught.value)
    assert reason in said and "format=custom" in said and "trust_remote_code" in said and "\n" not in said
    assert not (tmp_path / "out").exists()


def test_windows_and_biases_have_no_host(tmp_path) -> None:
    for number, (kind, fields) in enumerate([("mistral", {}), ("llama", {"mlp_bias": True})]):
        source = zoo.save(zoo.build(kind, shrink(kind, **fields)), tmp_path / str(number))
        model = Model(source, device="cpu")
        with pytest.raises(Refusal, match=r"sliding window|biases"):
            prune(model, drop(model, ["3.mlp"]), out=tmp_path / "out")


def test_a_loaded_model_is_whole(saved) -> None:
    module = shallower.load(saved("llama"), device="cpu")
    assert isinstance(module, PreTrainedModel) and not module.training
    with pytest.raises(UserError, match="open_model"):
        shallower.load(saved("llama"), layered=True)


def test_an_unknown_format_is_refused(saved, tmp_path) -> None:
    with pytest.raises(UserError, match="allowed are auto, plain, custom, deci"):
        prune(saved("llama"), drop(saved("llama"), (4,)), out=tmp_path / "out", format="gguf")


def test_growth_of_a_cache_is_told_without_weights(saved) -> None:
    model = Model(saved("llama"), device="cpu")
    decoder = Decoder(model.module)
    decoder.prefill(zoo.tokens(1, 4))
    assert cache_growth(model.checkpoint, torch.float32) == decoder.grown(zoo.tokens(1, 1))[1]
