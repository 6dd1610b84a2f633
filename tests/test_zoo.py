"""Every family: surgery = bypass = reload, cached = uncached; or a refusal with a reason. Never silently wrong."""

import json

import pytest
import torch
import zoo
from transformers import AutoModelForCausalLM

from shallower import Refusal, UserError, drop, open_model, prune
from shallower.anatomy.bypass import bypass
from shallower.proof import CACHED_TOLERANCE


@pytest.mark.parametrize("name", zoo.FAMILIES)
def test_family(name: str, saved, tmp_path) -> None:
    family = zoo.FAMILIES[name]
    model = open_model(saved(name))
    for number, removed in enumerate(family.removals):
        out = tmp_path / str(number)
        pruned, refusal = attempt(model, removed, out)
        assert family.expect != ("exact" if refusal else "refused"), f"{removed}: {refusal}"
        if refusal:
            assert isinstance(refusal, Refusal) or "unpruned" in str(refusal), refusal
            assert not out.exists()
            continue
        assert pruned.verified["logits_difference"] == 0
        assert pruned.verified["cached_difference"] <= CACHED_TOLERANCE
        check_independently(name, model, removed, out)
    assert not [path.name for path in tmp_path.iterdir() if path.name.startswith(".")]


def attempt(model, removed, out):
    """(pruned, None) or (None, why not)."""
    try:
        return prune(model, drop(model, removed), out=out), None
    except UserError as refusal:
        return None, refusal


@torch.no_grad()
def check_independently(name: str, model, removed, out) -> None:
    """The verdict again without surgery's own comparison: another input, plain transformers."""
    tokens = zoo.tokens(seed=7)
    loaded, info = AutoModelForCausalLM.from_pretrained(out, output_loading_info=True, dtype="auto")
    assert not any(info[kind] for kind in ("missing_keys", "mismatched_keys", "unexpected_keys"))
    with bypass(model.stack, removed):
        wanted = model.module(input_ids=tokens, use_cache=False).logits
    dense = model.module(input_ids=tokens, use_cache=False).logits
    got = loaded.eval()(input_ids=tokens, use_cache=False).logits
    torch.testing.assert_close(got, wanted, rtol=0, atol=1e-5 * float(wanted.abs().max()))
    assert (dense - wanted).abs().max() > 1e-2, "the removed layers did not matter: the test shows nothing"
    written = json.loads((out / "shallower.json").read_text())
    assert written["plan"]["removed"] == sorted(removed)
    assert written["plan"]["params_after"] == sum(parameter.numel() for parameter in loaded.parameters())
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


def test_refusal_names_the_field_and_a_legal_removal(saved) -> None:
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
    with safe_open(tmp_path / "out" / "model.safetensors", "pt") as new, safe_open(saved("gemma3") / "model.safetensors", "pt") as old:
        assert vision
        assert all(torch.equal(new.get_tensor(name), old.get_tensor(name)) for name in vision)
