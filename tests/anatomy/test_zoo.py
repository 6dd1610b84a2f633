"""Every family: surgery = bypass = reload, cached = uncached; or a refusal with a reason. Never silently wrong."""

import json

import pytest
import shrinking
import torch
import zoo
from checks import EFFECT, LOGITS_TOLERANCE, compare

from shallower import Refusal, UserError, drop, open_model, prune
from shallower.anatomy import names
from shallower.artifacts import Removal
from shallower.surgery.proof import CACHED_TOLERANCE

SLOW = {
    "inkling2_text",
    "inkling2_text+refused",
    "gemma4",
    "zamba",
    "zamba+refused",
    "longcat_flash",
    "recurrent_gemma",
    "gemma4_text+hetero",
    "gemma3n_text+noshare",
    "qwen2_moe+sparse_step",
    "gemma4_text+noshare",
    "gemma3",
    "minicpm3",
    "diffllama",
    "zamba2+refused",
    "gemma4_text+refused",
    "gemma3n_text+refused",
    "jamba",
    "starcoder2",
    "qwen3_moe",
    "gptj",
    "jamba+period",
    "olmo2",
    "qwen2",
    "mistral",
    "phi3",
    "stablelm",
    "llama4_text",
    "gpt_neo",
    "gemma4_text",
    "qwen3_moe+sparse_step",
    "minimax",
    "llama4_text+every",
    "roberta",
    "hy_v4",
    "smollm3",
    "granite",
    "cohere2",
    "modernbert-decoder",
}


WHOLE = [pytest.param(name, True, marks=pytest.mark.slow) for name in zoo.FAMILIES]


@pytest.mark.parametrize(("name", "every"), [*((name, False) for name in zoo.FAMILIES if name not in SLOW), *WHOLE])
def test_family(name: str, every: bool, saved, tmp_path) -> None:
    family = zoo.FAMILIES[name]
    model = open_model(saved(name))
    for number, removed in enumerate(family.removals if every else (family.removals[0], family.removals[-1])):
        out = tmp_path / str(number)
        pruned, refusal = attempt(model, removed, out)
        assert family.expect != ("exact" if refusal else "refused"), f"{removed}: {refusal}"
        if refusal:
            assert isinstance(refusal, Refusal) or "dense" in str(refusal), refusal
            assert not out.exists()
            continue
        assert pruned.verified.logits_difference == 0
        assert pruned.verified.cached_difference <= CACHED_TOLERANCE
        check_independently(model, removed, out)
    assert not [path.name for path in tmp_path.iterdir() if path.name.startswith(".")]


def attempt(model, removed, out):
    """(pruned, None) or (None, why not)."""
    try:
        return prune(model, drop(model, removed), out=out), None
    except UserError as refusal:
        return None, refusal


def check_independently(model, removed, out) -> None:
    """The verdict again without surgery's own comparison."""
    found = compare(model, Removal.of_layers(removed), out)
    assert not found.keys
    assert found.difference <= LOGITS_TOLERANCE
    assert found.effect > EFFECT, "the removed layers did not matter: the test shows nothing"
    written = json.loads((out / "shallower.json").read_text())
    assert written["plan"]["removed"] == sorted(removed)
    assert written["plan"]["params_after"] == found.parameters
    assert written["original"] == [index for index in range(zoo.LAYERS) if index not in removed]


@pytest.mark.parametrize(
    ("name", "removed", "field", "value"),
    [
        ("smollm3", (2,), "no_rope_layers", [1, 1, 0, 1, 1, 1, 0]),
        ("qwen3_moe+sparse_step", (2,), "mlp_only_layers", [0, 3, 5]),
        ("deepseek_v3", (1, 4), "first_k_dense_replace", 1),
    ],
)
def test_known_silent_failures(name, removed, field, value, saved, tmp_path) -> None:
    """Three families that reload without complaint and wrong when only the depth is changed."""
    model = open_model(saved(name))
    prune(model, drop(model, removed), out=tmp_path / "out")
    assert json.loads((tmp_path / "out" / "config.json").read_text())[field] == value


def test_refusal_names_the_field_and_a_legal_removal(saved, monkeypatch) -> None:
    monkeypatch.setattr("shallower.anatomy.config.NEAREST_SECONDS", 60.0)  # the machine may be busy
    model = open_model(saved("jamba"))
    with pytest.raises(Refusal, match=r"attn_layer_period.*layer 3.*nearest legal removal: 7"):
        model.solver.solve((2,))
    model.solver.solve((7,))


def test_tail_of_the_multimodal_wrapper_is_carried(saved, tmp_path) -> None:
    """Of a multimodal model the text part is pruned and the vision part arrives whole."""
    from safetensors import safe_open

    model = open_model(saved("gemma3"))
    prune(model, drop(model, (1,)), out=tmp_path / "out")
    vision = [name for name in model.checkpoint.tensors if "vision" in name]
    with (
        safe_open(tmp_path / "out" / "model.safetensors", "pt") as new,
        safe_open(saved("gemma3") / "model.safetensors", "pt") as old,
    ):
        assert vision
        assert all(torch.equal(new.get_tensor(name), old.get_tensor(name)) for name in vision)


def test_the_config_of_the_whole_where_the_model_is_a_part(tmp_path) -> None:
    """Published multimodal files hold the config of the whole; AutoModelForCausalLM builds the text part of it."""
    config = shrinking.shrink("qwen3_5")
    source = zoo.save(zoo.build("qwen3_5", config), tmp_path / "in")
    config.save_pretrained(source)
    model = open_model(source)
    prune(model, drop(model, (1, 4)), out=tmp_path / "out")
    check_independently(model, (1, 4), tmp_path / "out")
    content = json.loads((tmp_path / "out" / "config.json").read_text())
    assert (content["model_type"], content["text_config"]["num_hidden_layers"]) == ("qwen3_5", 6)


def test_tensors_by_layer_under_other_names(tmp_path) -> None:
    """A list that begins at layer 1, and a larger list of as many parts that is no stack."""
    owners = {f"model.llm.layers.{index}.experts.{expert}.up": index for index in range(4) for expert in range(2)}
    owners |= {f"model.llm.queries.{index}": index + 1 for index in range(3)}
    found = names._by_owner(owners)
    assert found["model.llm.layers.3.experts.1.up"].name(2) == "model.llm.layers.2.experts.1.up"
    assert found["model.llm.queries.2"].name(1) == "model.llm.queries.0"
    sizes = {f"vision.layers.{index}.w": 100 for index in range(9)} | {f"h.{index}.w": 10 for index in range(4)}
    assert {place.head for place in names._by_size(sizes, 9).values()} == {"vision.layers."}
