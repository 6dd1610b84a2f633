"""Slow: the real demo model and real text, against plain procedures."""

import json
import math

import pytest
import torch
from torch import nn

import shallower
from shallower import Calibration
from shallower.cli import main
from shallower.data.tokens import calibration_samples

pytestmark = pytest.mark.slow


@pytest.fixture(autouse=True)
def _two_threads(_threads):
    torch.set_num_threads(2)


@torch.no_grad()
def plain_perplexity(module: nn.Module, tokens: torch.Tensor) -> float:
    """exp of the mean NLL, sample by sample, by the model's own loss."""
    losses = [float(module(input_ids=row[None], labels=row[None], use_cache=False).loss) for row in tokens]
    return math.exp(sum(losses) / len(losses))


def test_perplexity_of_every_layer_equals_the_plain_procedure(smollm2, shared) -> None:
    """Delete the layer, run the model: relative difference at most 1e-5 in fp32."""
    calibration = Calibration(text=str(shared / "text" / "wikitext2.valid.txt"))
    found = shallower.score(smollm2, criterion="perplexity", calibration=calibration)
    tokens = calibration_samples(calibration, lambda: smollm2.tokenizer, smollm2.vocabulary).tokens
    module = smollm2.module
    layers = list(module.model.layers)
    try:
        for index in range(len(layers)):
            module.model.layers = nn.ModuleList(layers[:index] + layers[index + 1 :])
            module.config.num_hidden_layers = len(layers) - 1
            assert found.scores[index] == pytest.approx(plain_perplexity(module, tokens), rel=1e-5)
    finally:
        module.model.layers = nn.ModuleList(layers)
        module.config.num_hidden_layers = len(layers)


def test_taylor_equals_a_plain_backward(smollm2) -> None:
    found = shallower.score(smollm2, criterion="taylor")
    tokens = calibration_samples(Calibration(), lambda: smollm2.tokenizer, smollm2.vocabulary).tokens
    module = smollm2.module
    try:
        module.requires_grad_(True)
        module(input_ids=tokens, labels=tokens, use_cache=False).loss.backward()
        for index, layer in enumerate(module.model.layers):
            wanted = sum(float((p.detach() * p.grad).abs().double().sum()) for p in layer.parameters())
            assert found.scores[index] == pytest.approx(wanted, rel=1e-4)
    finally:
        module.requires_grad_(False)
        module.zero_grad(set_to_none=True)


def test_greedy_finds_the_known_layers(smollm2, shared) -> None:
    """A regression anchor, measured independently before the project: 12, 13, 14, 17, 25, 26."""
    calibration = Calibration(text=str(shared / "text" / "wikitext2.valid.txt"))
    plan = shallower.plan(
        smollm2,
        amount=shallower.Amount(remove=6),
        choosing=shallower.SelectionOptions("greedy"),
        calibration=calibration,
    )
    assert plan.removed == [12, 13, 14, 17, 25, 26]


def test_demo_makes_what_it_says(tmp_path, capsys, smollm2) -> None:
    main(["demo", "--out", str(tmp_path / "demo")])
    table = capsys.readouterr().out
    assert str(tmp_path / "demo") in table.replace("\n", "")
    written = json.loads((tmp_path / "demo" / "model" / "shallower.json").read_text())
    assert written["verified"]["logits"] == "bit for bit"
    assert len(written["plan"]["removed"]) == 6
    assert not set(written["plan"]["removed"]) & {0, 1, 2, 3, 28, 29}
    dense, pruned = (
        json.loads((tmp_path / "demo" / f"evaluation-{name}.json").read_text())["perplexity"]["shipped"]["value"]
        for name in ("dense", "pruned")
    )
    assert 10 < dense < pruned
