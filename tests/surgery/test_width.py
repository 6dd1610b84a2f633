"""Groups of parts that go: what is written is the model with their columns masked, uniform results are plain, all else
is told apart or refused.
"""

import json
from unittest.mock import patch

import numpy as np
import pytest
import torch
import zoo
from marks import rest_slow
from shrinking import shrink
from transformers import AutoModelForCausalLM

import shallower
from shallower import Calibration, Refusal, UserError, drop, open_model, plan, prune
from shallower.artifacts import Scores
from shallower.artifacts.removal import Unit
from shallower.artifacts.units import WIDTH
from shallower.runtime.progress import shown
from shallower.walk.removals import LossWalk, all_nll

FAMILIES = (
    *("llama", "mistral", "qwen2", "qwen3", "gemma2", "gemma3_text", "phi3", "gpt2", "gpt_neox", "opt", "bloom"),
    *("falcon", "granite", "mixtral", "qwen3_moe", "gpt_oss", "qwen2_moe+sparse_step", "deepseek_v3", "starcoder2"),
)
PLAIN_HEADS = ("llama", "mistral", "qwen2", "qwen3", "gemma2", "gemma3_text", "phi3", "granite", "mixtral", "qwen3_moe")
FAST = ("phi3", "gpt2", "falcon", "qwen3_moe")  # Llama and its like stand below
EXPERTS = ("mixtral", "qwen3_moe", "gpt_oss", "qwen2_moe+sparse_step", "deepseek_v3")
UNKNOWN = {"bloom": "attention", "olmo2": "attention", "mamba": "", "zamba2": ""}


def save_tokens(folder):
    path = folder / "tokens.npy"
    np.save(path, zoo.tokens(batch=4, length=16).numpy())
    return path


def names(model, choose):
    """Names of what goes: of every part with so many groups those that are chosen."""
    found = []
    for part, numbers in model.units(WIDTH).by_part.items():
        gone = choose(part, len(numbers))
        found += [str(part._replace(groups=tuple(sorted(gone))))] if gone else []
    return found


def uniform(part: Unit, count: int) -> set[int]:
    return {*range(1, count, 3)} if part.part == "mlp" else {count - 1}


def mixed(part: Unit, count: int) -> set[int]:
    if part.layer not in (1, 4):
        return set()
    return {0} if part.part == "attention" else {*range(part.layer, count, 5)}


def mixed_experts(part: Unit, count: int) -> set[int]:
    """The same, with as many neurons as the products of experts ask for: multiples of 8."""
    gone = mixed(part, count)
    return {*range(16)} if gone and part.part == "mlp" else gone


@torch.no_grad()
def literal(folder, plan):
    """Logits of the dense model, the rows that serve a removed group set to zero in copies of its weights: of the last
    products their columns, looked up by hand for Llama's names.
    """
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    size = model.config.hidden_size // model.config.num_attention_heads
    group = size * model.config.num_attention_heads // model.config.num_key_value_heads
    for unit in plan.removal.units:
        layer = model.model.layers[unit.layer]
        for one in unit.groups:
            if unit.part == "mlp":
                layer.mlp.down_proj.weight[:, one] = 0
            else:
                layer.self_attn.o_proj.weight[:, one * group : (one + 1) * group] = 0
    return model(input_ids=zoo.tokens(), use_cache=False).logits


@pytest.mark.parametrize("name", rest_slow(FAMILIES, FAST))
def test_narrowed_models_are_written_as_they_are_meant(name, saved, tmp_path):
    model = open_model(saved(name))
    other = mixed_experts if name in EXPERTS else mixed
    for label, choose, form in (("uniform", uniform, "auto"), ("mixed", other, "custom")):
        chosen = names(model, choose)
        if label == "uniform" and name not in PLAIN_HEADS:  # no config tells of fewer heads
            chosen = [one for one in chosen if ".mlp" in one] if name != "bloom" else []
        if not chosen:
            continue
        pruned = prune(model, drop(model, chosen), out=tmp_path / label, format=form)
        assert pruned.format == ("plain" if label == "uniform" else "custom")
        assert pruned.verified.logits_difference <= 2e-6
        loaded = shallower.load(tmp_path / label)
        assert sum(one.numel() for one in loaded.parameters()) == pruned.plan.params_after
        assert pruned.weight_bytes < model.record.weight_bytes


def test_a_narrowed_llama_is_the_one_with_zeros_in_its_last_products(saved, tmp_path):
    model = open_model(saved("llama"))
    for label, choose, form in (("uniform", uniform, "auto"), ("mixed", mixed, "custom")):
        chosen = drop(model, names(model, choose))
        prune(model, chosen, out=tmp_path / label, format=form)
        got = shallower.load(tmp_path / label)(input_ids=zoo.tokens(), use_cache=False).logits
        torch.testing.assert_close(got, literal(saved("llama"), chosen), rtol=0, atol=1e-5)
    config = json.loads((tmp_path / "uniform/config.json").read_text())
    told = (config["intermediate_size"], config["num_attention_heads"], config["num_key_value_heads"])
    assert (*told, config["head_dim"]) == (64, 2, 1, 16)
    with pytest.raises(ValueError, match="custom code"):
        AutoModelForCausalLM.from_pretrained(tmp_path / "mixed")
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "mixed", trust_remote_code=True)
    assert plain.model.layers[1].mlp.down_proj.in_features < 96


def test_a_narrowed_model_is_pruned_again(saved, tmp_path):
    model = open_model(saved("llama"))
    prune(model, drop(model, names(model, mixed)), out=tmp_path / "once", format="custom")
    once = open_model(tmp_path / "once")
    assert once.grouped[1].groups["mlp"].count == 96 - 19
    again = drop(once, ["1.mlp:0-9", "2.mlp:3", "6"])
    pruned = prune(once, again, out=tmp_path / "twice", format="custom")
    assert pruned.verified.logits_difference <= 2e-6
    assert shallower.load(tmp_path / "twice").model.layers[1].mlp.down_proj.in_features == 96 - 19 - 10
    whole = prune(once, drop(once, [1, 4]), out=tmp_path / "whole")  # what stays is the family's own
    assert whole.format == "plain"


@pytest.mark.parametrize("name", UNKNOWN)
def test_parts_that_cannot_be_told_apart_keep_their_width(name, saved):
    model = open_model(saved(name))
    if not UNKNOWN[name]:
        with pytest.raises(Refusal, match="cannot be made narrower"):
            model.units(WIDTH)
        return
    assert {part.part for part in model.units(WIDTH).by_part} == {"mlp"}
    assert model.kept_widths[UNKNOWN[name]].startswith("layer 0: self_att")


def test_layered_reading_gives_the_same_scores_and_files(saved, tmp_path):
    how = {"calibration": Calibration(tokens=str(save_tokens(tmp_path)), samples=4, length=16), "units": WIDTH}
    for criterion in ("activation", "taylor"):
        one, other = (
            shallower.score(open_model(saved("llama"), layered=layered), criterion=criterion, **how)
            for layered in (False, True)
        )
        assert one.scores == other.scores
    model = open_model(saved("llama"), layered=True)
    sequential = shallower.RepairOptions("sequential", {}, how["calibration"])
    pruned = prune(model, plan(one, ratio=0.1), out=tmp_path / "out", compensating=sequential)
    assert pruned.verified.logits_difference <= 2e-6
    half = open_model(zoo.save(zoo.build("llama", shrink("llama")).bfloat16(), tmp_path / "half"), layered=True)
    made = plan(half, ratio=0.1, units=WIDTH, criterion="magnitude")
    for label, repair, most in (("plain", None, 2e-6), ("repaired", sequential, 3e-2)):
        pruned = prune(half, made, out=tmp_path / label, compensating=repair)
        assert pruned.verified.layered and pruned.verified.dtype == "float32"
        assert pruned.verified.logits_difference <= most


def test_a_bias_gives_back_what_was_constant(saved, tmp_path):
    """MLPs whose neurons are those of a bias alone: without half of them the new bias makes up for all."""
    opt = AutoModelForCausalLM.from_pretrained(saved("opt"), dtype=torch.float32)
    with torch.no_grad():
        for layer in opt.model.decoder.layers:
            layer.final_layer_norm.weight.zero_()
            layer.fc1.bias.fill_(0.5)
    opt.save_pretrained(tmp_path / "opt")
    model = open_model(tmp_path / "opt")
    chosen = drop(model, names(model, lambda part, count: {*range(0, count, 2)} if part.part == "mlp" else set()))
    how = {"calibration": Calibration(samples=4, length=16, tokens=str(save_tokens(tmp_path)))}
    pruned = prune(model, chosen, out=tmp_path / "out", compensating=shallower.RepairOptions("bias", {}, **how))
    assert pruned.compensation.changed
    tokens = zoo.tokens()
    with torch.no_grad():
        models = (AutoModelForCausalLM.from_pretrained(tmp_path / one) for one in ("out", "opt"))
        got, wanted = (one(input_ids=tokens).logits for one in models)
    torch.testing.assert_close(got, wanted, rtol=0, atol=1e-5)


def test_biases_are_added_to_products_that_have_none(saved, tmp_path):
    model = open_model(saved("llama"))
    how = shallower.RepairOptions("bias", {}, Calibration(samples=4, length=16, tokens=str(save_tokens(tmp_path))))
    made = prune(model, drop(model, names(model, uniform)), out=tmp_path / "plain", compensating=how)
    config = json.loads((tmp_path / "plain/config.json").read_text())
    if made.compensation.changed:
        assert config["attention_bias"] and config["mlp_bias"] and made.format == "plain"
    made = prune(model, drop(model, names(model, mixed)), out=tmp_path / "own", compensating=how, format="custom")
    assert made.verified.logits_difference <= 2e-6


BAD = (
    ("5.mlp:0-200", "has the groups 0 to 95"),
    ("5.mlp:0-95", "nothing of 5.mlp would be left"),
    ("5.mlp:3, 5.mlp", "names 5.mlp:3 beside 5.mlp"),
    ("5.mlp:3, 6.attention", "not both"),
    ("5.mlp:3-1", "names no groups"),
    ("5.mlp:3, 5", "of which it is a part"),
)


@pytest.mark.parametrize(("given", "said"), BAD)
def test_wrong_groups_are_refused(given, said, saved):
    with pytest.raises(UserError, match=said):
        drop(open_model(saved("llama")), given)


def test_what_is_not_uniform_is_refused_as_plain(saved, tmp_path):
    model = open_model(saved("llama"))
    with pytest.raises(Refusal, match=r"no plain class holds llama .*custom"):
        prune(model, drop(model, names(model, mixed)), out=tmp_path / "out", format="plain")
    assert not (tmp_path / "out").exists()
    for asked, said in (
        ({"ratio": 0.9}, "all groups of the attention and mlps that may go have"),
        ({"ratio": 0.1, "choosing": shallower.SelectionOptions("greedy")}, "does not go with units=width"),
        ({"ratio": 0.1, "criterion": "perplexity"}, "scores layers and parts of layers"),
        ({"ratio": 0.1, "multiple_of": 96}, "holds no smaller multiple"),
        ({"ratio": 0.1, "iterative": True, "choosing": shallower.SelectionOptions("lowest")}, "iterative"),
        ({"max_ppl_increase": 0.1}, "counts units one by one"),
        ({"remove": 3}, "give ratio or target_params"),
    ):
        with pytest.raises(UserError, match=said):
            plan(model, units=WIDTH, **({"criterion": "magnitude"} | asked))
    with pytest.raises(UserError, match="give units=width"):
        plan(model, ratio=0.1, criterion="wanda")
    with pytest.raises(UserError, match="does not go with units=layer"):
        plan(model, ratio=0.1, choosing=shallower.SelectionOptions("standardised"))


def test_depth_and_width_share_one_amount(saved, tmp_path):
    model = open_model(saved("llama"))
    tokens = Calibration(tokens=str(save_tokens(tmp_path)), samples=4, length=16)
    made = plan(model, units="layer+width", ratio=0.3, calibration=tokens, out=tmp_path / "plan.json")
    assert abs(made.share - 0.3) < 0.01 and len(made.candidates) > 2
    assert all(abs(one.share - 0.3) < 0.01 for one in made.candidates)
    repaired = [one for one in made.candidates if one.repaired]
    best = min(repaired, key=lambda one: one.repaired.after)
    assert [*made.removal.layers] == best.layers
    assert 2 <= len(repaired) <= 6 and all(one.repaired.after <= one.repaired.before for one in repaired)
    assert {one.loss for one in repaired} >= {*sorted(one.loss for one in made.candidates)[:2]}
    place = made.candidates.index(best)
    assert len(repaired) == 6 or all(one.repaired for one in made.candidates[max(0, place - 1) : place + 2])
    assert len({len(one.layers) for one in made.candidates}) == len(made.candidates)
    assert shallower.artifacts.load(tmp_path / "plan.json", "plan").candidates == made.candidates
    pruned = prune(model, tmp_path / "plan.json", out=tmp_path / "out")
    assert pruned.format == "plain" and pruned.verified.logits_difference <= 2e-6
    assert made.seconds > 0 and made.calibration.samples == 4 and made.settings["parts"] == "mlp"
    with pytest.raises(UserError, match="counted in parameters"):
        plan(model, units="layer+width", remove=3, calibration=tokens)


def test_depth_and_width_with_a_multiple_and_protected_layers(saved, tmp_path, capsys):
    model = open_model(saved("llama"))
    how = {"units": "layer+width", "calibration": Calibration(tokens=str(save_tokens(tmp_path)), samples=4, length=16)}
    made = plan(model, ratio=0.2, multiple_of=8, keep_first=2, keep_last=1, **how)
    assert (made.keep_first, made.keep_last, made.settings["multiple_of"]) == (2, 1, 8)
    assert {*(unit.layer for unit in made.removal.units)} <= {*range(2, 7)}
    left = 0.8 * model.record.parameters
    assert all(abs((1 - one.share) * model.record.parameters - left) <= 0.01 * left for one in made.candidates)
    with shown():
        made = plan(model, target_params=int(0.69 * model.record.parameters), multiple_of=32, **how)
    missed = made.params_after / (0.69 * model.record.parameters) - 1
    assert (f"is missed by {missed:.2%}" in capsys.readouterr().err) == (missed > 1e-5)
    for asked in ({"ratio": 0.3}, {"target_params": int(0.7 * model.record.parameters)}):
        with pytest.raises(UserError, match="holds no smaller multiple"):
            plan(model, multiple_of=96, **asked, **how)


def test_a_candidate_without_a_number_is_the_worst(saved, tmp_path, monkeypatch):
    from shallower.walk import removals

    model, nll = open_model(saved("llama")), removals.head_nll
    how = {"units": "layer+width", "calibration": Calibration(tokens=str(save_tokens(tmp_path)), samples=4, length=16)}
    asked = []

    def broken(*args):
        asked.append(nll(*args))
        return asked[-1] * (float("nan") if len(asked) == 3 else 1)

    monkeypatch.setattr(removals, "head_nll", broken)
    assert plan(model, ratio=0.3, **how).candidates


def test_what_was_narrowed_is_healed_compared_and_shown(saved, tmp_path, text):
    model = open_model(saved("llama"))
    prune(model, drop(model, names(model, mixed)), out=tmp_path / "own", format="custom")
    shallower.heal(tmp_path / "own", data=text, method="lora", train_tokens=512, length=32, out=tmp_path / "healed")
    healed = shallower.load(tmp_path / "healed")
    assert healed.model.layers[1].mlp.down_proj.in_features == 96 - 19
    value = shallower.evaluate(tmp_path / "healed", texts=text, max_tokens=512, out=tmp_path / "healed.json")
    assert value.perplexity
    scored = shallower.score(model, criterion="magnitude", units=WIDTH, out=tmp_path / "scores.json")
    with patch.object(Scores, "names", []):  # of each group once more for each bar: minutes on real models
        shallower.report(tmp_path, out=tmp_path / "report.html")
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "Importance of the groups of every part by magnitude" in page
    assert page.count("of 96 groups removed") == 4 and len(scored.scores) > 500
    assert "19 groups removed" in page and "narrower" in page
    card = (tmp_path / "own/README.md").read_text(encoding="utf-8")
    assert "without 1.attention:0, 19 groups of 1.mlp" in card


@pytest.mark.parametrize("name", ["llama", "gpt_neox"])
def test_losses_of_narrowed_models_share_their_walk_exactly(name, saved):
    model, tokens = open_model(saved(name)), zoo.tokens(batch=4, length=20)
    given = ("2.mlp:0-15", "2.mlp:0-15, 4", "2.mlp:0-15, 5.attention:1", "6, 1.mlp:3-10+20")
    removals = [drop(model, one).removal for one in given]
    walk = LossWalk(model, tokens)
    alone = [float(all_nll(model, tokens, removal, "alone").double().mean()) for removal in removals]
    assert (walk(removals, "together") / walk.predictions).tolist() == alone
    assert len({*alone}) == len(alone)
