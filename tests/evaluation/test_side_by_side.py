"""ShownAnswer by side: a variant within the unpruned model is the pruned model, and both answer as they would alone."""

import json
from functools import partial

import pytest
import torch
from safetensors.torch import load_file, save_file

from shallower import UserError, drop, open_model, prune
from shallower import plan as make_plan
from shallower.anatomy.generation import Generation
from shallower.artifacts import NOTHING, Removal, save
from shallower.evaluation.side_by_side import DENSE, Answerer, Variant, in_turns, keeps_cache, opinions
from shallower.settings.compute import Compute
from shallower.stages import variants
from shallower.stages.variants import offers, open_for_variants

PROMPT = [4, 9, 30, 12, 77]


def logits(model, variant=DENSE, tokens=(PROMPT,)):
    with torch.no_grad(), variant.within(model):
        return model.module(input_ids=torch.tensor(tokens)).logits


@pytest.fixture
def model(saved):
    return open_model(saved("llama"))


def test_a_folder_is_a_variant_of_the_model_that_it_was_made_from(saved, tmp_path) -> None:
    """Layers, parts and weights that a repair has changed: bit for bit what the folder's own model says."""
    for name, plan, how in (
        ("layers", ["2", "3"], {}),
        ("repaired", ["2", "3"], {}),
        ("parts", ["2.mlp", "4.attention"], {"format": "custom"}),
    ):
        prune(saved("llama"), drop(saved("llama"), plan), out=tmp_path / name, **how)
    file = tmp_path / "repaired" / "model.safetensors"
    weights = load_file(file)
    for name in ("model.norm.weight", "model.layers.2.mlp.down_proj.weight", "model.embed_tokens.weight"):
        weights[name] = 1.25 * weights[name]
    save_file(weights, file, {"format": "pt"})
    model, given = open_for_variants(str(saved("llama")), [str(path) for path in sorted(tmp_path.iterdir())], Compute())
    before = logits(model)
    for offer in offers(model, given):
        own = open_model(tmp_path / offer.name)
        assert torch.equal(logits(model, offer.at(0, repaired=False)), logits(own)), offer.name
        shared = offer.variant.bytes
        assert shared < 0.9 * sum(weight.nbytes for weight in own.module.parameters())  # what is common exists once
        assert (shared > 0) == (offer.name == "repaired")
    assert torch.equal(logits(model), before)  # and all is back


def test_a_folder_that_computes_otherwise_is_refused(saved, tmp_path) -> None:
    """Its weights do not tell all: here its config."""
    prune(saved("llama"), drop(saved("llama"), ["2"]), out=tmp_path / "small")
    config = tmp_path / "small" / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"rms_norm_eps": 0.5}))
    with pytest.raises(UserError, match="give its plan instead"):
        offers(open_model(saved("llama")), [str(tmp_path / "small")])


def test_folders_are_counted_together(saved, tmp_path, monkeypatch) -> None:
    """What earlier ones hold is no longer free."""
    model, held = open_model(saved("llama")), []
    for name in ("one", "two"):
        prune(saved("llama"), drop(saved("llama"), ["2"]), out=tmp_path / name)
        file = tmp_path / name / "model.safetensors"
        weights = {key: 1.5 * value for key, value in load_file(file).items()}
        save_file(weights, file, {"format": "pt"})
    monkeypatch.setattr(variants, "check_memory", lambda model, folders, more=0: held.append(more))
    first = offers(model, [str(tmp_path / "one"), str(tmp_path / "two")])[0]
    assert held == [0, first.variant.bytes] and first.variant.bytes > 0


def test_both_answer_as_they_would_alone(model) -> None:
    removal = Removal.of_layers([3, 4])
    answerers = [Answerer(model, one, PROMPT, [2]) for one in (DENSE, Variant(removal))]
    rounds = sum(1 for _ in in_turns(answerers, 12))
    assert rounds == sum(len(answerer.tokens) for answerer in answerers) and all(
        answerer.rate > 0 for answerer in answerers
    )
    for answerer, context in zip(answerers, (model.without(NOTHING), model.without(removal)), strict=True):
        with context:
            expected = Generation(model.module, model.tokenizer, longest=12).answers([PROMPT])[0]
        assert answerer.tokens[: len(expected)] == expected[: len(answerer.tokens)]


def test_where_a_cache_counts_by_a_removed_layer_everything_is_read_again(model) -> None:
    """Positions are counted in the first layer's cache: without that layer a cache would be wrong."""
    first = Variant(Removal.of_layers([0]))
    assert keeps_cache(model, DENSE) and keeps_cache(model, Variant(Removal.of_layers([3])))
    answerer = Answerer(model, first, PROMPT, [], partial(keeps_cache, model))
    assert not answerer.cached
    list(in_turns([answerer], 4))
    tokens = list(PROMPT)
    for token in answerer.tokens:
        assert token == int(logits(model, first, [tokens])[0, -1].argmax())
        tokens.append(token)


def test_opinions_are_the_other_models_probabilities(model) -> None:
    variant, answer = Variant(Removal.of_layers([3])), [5, 60, 7]
    said = opinions(model, variant, PROMPT, answer)
    chances = logits(model, variant, [[*PROMPT, *answer]])[0].double().softmax(-1)
    for place, (opinion, token) in enumerate(zip(said, answer, strict=True)):
        row = chances[len(PROMPT) - 1 + place]
        assert opinion.probability == pytest.approx(float(row[token]), rel=1e-4)
        assert opinion.likeliest == int(row.argmax()) and opinion.likely == (row[token] >= 0.1)
    assert opinions(model, variant, PROMPT, []) == []


def test_plans_are_nested_and_repaired_when_asked(saved, tmp_path) -> None:
    model = open_model(saved("llama"))
    layers = make_plan(model, ratio="40%", selection="lowest", samples=4, length=16)
    width = make_plan(model, ratio="20%", units="width", selection="uniform", samples=4, length=16)
    save(layers, tmp_path / "layers.json")
    save(width, tmp_path / "width.json")
    found = offers(model, [str(tmp_path / "layers.json"), str(tmp_path / "width.json")])
    for offer, plan in zip(found, (layers, width), strict=True):
        assert offer.removals[0] == NOTHING and offer.removals[-1] == plan.removal
        assert offer.gone[-1] == plan.params_before - plan.params_after and offer.gone == sorted(offer.gone)
        with model.without(plan.removal):
            expected = logits(model)
        assert torch.equal(logits(model, offer.at(len(offer.removals) - 1, repaired=False)), expected)
    offer, before = found[0], logits(model)
    offer.repair(model, 1)
    repaired = offer.at(1, repaired=True)
    assert bool(repaired.weights) != torch.equal(logits(model, repaired), logits(model, offer.at(1, repaired=False)))
    offer.repair(model, 2)
    assert [*offer.repaired] == [2] and torch.equal(logits(model), before)


def test_a_variant_leaves_the_model_as_it_was_when_something_fails(model) -> None:
    name = "model.layers.1.mlp.down_proj"
    before = logits(model)
    weight = model.module.get_parameter(f"{name}.weight")
    broken = Variant(NOTHING, {f"{name}.weight": torch.zeros_like(weight)})
    with pytest.raises(ZeroDivisionError), broken.within(model):
        raise ZeroDivisionError
    assert torch.equal(logits(model), before)
    with pytest.raises(UserError, match="NaN"):
        Answerer(model, Variant(NOTHING, {f"{name}.weight": torch.full_like(weight, torch.nan)}), PROMPT, []).step()
