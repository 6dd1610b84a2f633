"""Criteria of what enters products of experts, against a literal transcription: one wide product of all experts, whose
columns get zeros from tokens that are sent elsewhere.
"""

import numpy as np
import pytest
import torch
import zoo
from transformers import AutoModelForCausalLM

from shallower import Calibration, SelectionOptions, open_model, plan, prune, score
from shallower.artifacts import Unit
from shallower.artifacts.units import WIDTH

TOKENS = zoo.tokens(batch=5, length=20)
CRITERIA = ("activation", "wanda", "flap")


@pytest.fixture(scope="module")
def calibration(tmp_path_factory) -> Calibration:
    path = tmp_path_factory.mktemp("tokens") / "tokens.npy"
    np.save(path, TOKENS.numpy())
    return Calibration(tokens=str(path), samples=5, length=20)


@torch.no_grad()
def entering(folder) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Of the experts of every layer: what enters them, (sample, position, expert, neuron), and their last weights,
    (expert, stream, neuron), in float64.
    """
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    found = []

    def see(experts, args) -> None:
        stream, chosen, _ = args
        every = []
        for number in range(experts.num_experts):
            weight = experts.gate_up_proj[number]
            if hasattr(experts, "down_proj_bias"):  # gpt-oss: transposed, with biases
                neurons = experts._apply_gate(stream @ weight + experts.gate_up_proj_bias[number])
            else:
                gate, up = torch.nn.functional.linear(stream, weight).chunk(2, dim=-1)
                neurons = experts.act_fn(gate) * up
            every.append(neurons * (chosen == number).any(dim=-1, keepdim=True))
        last = experts.down_proj.mT if hasattr(experts, "down_proj_bias") else experts.down_proj
        found.append((torch.stack(every, dim=1).view(*TOKENS.shape, len(every), -1).double(), last.double()))

    for layer in model.model.layers:
        layer.mlp.experts.register_forward_pre_hook(see)
    model(input_ids=TOKENS, use_cache=False)
    return found


def literal(criterion: str, given: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """A score per neuron, the same one of all experts together."""
    if criterion == "activation":
        return given.norm(dim=1).mean(dim=0).sum(dim=0)
    if criterion == "wanda":
        return (weight.abs().mean(dim=1) * given.square().sum(dim=1).mean(dim=0).sqrt()).sum(dim=0)
    columns = given.flatten(0, 1).var(dim=0) * weight.square().sum(dim=1)
    return ((columns - columns.mean()) / columns.std()).mean(dim=0)


@pytest.mark.parametrize("name", ["mixtral", "qwen3_moe", "gpt_oss"])
def test_experts_are_scored_as_one_wide_product(name, saved, calibration) -> None:
    wanted = entering(saved(name))
    for layered in (False, True):
        model = open_model(saved(name), layered=layered)
        for scored in score(model, criterion=CRITERIA, units=WIDTH, calibration=calibration):
            values = np.array(scored.scores)
            for index, (given, weight) in enumerate(wanted):
                of_layer = model.units(WIDTH).by_part[Unit(index, "mlp")]
                by_hand = literal(scored.criterion, given, weight).numpy()
                near = 1e-5 * np.abs(by_hand).max()
                np.testing.assert_allclose(values[[*of_layer]], by_hand, rtol=2e-5, atol=near)


@pytest.mark.parametrize("name", ["qwen3_moe", "deepseek_v3"])
def test_experts_are_made_narrower_by_what_enters_them(name, saved, calibration, tmp_path) -> None:
    """By the default criterion; DeepSeek's first layer has a plain MLP, and its experts one that all tokens share."""
    model = open_model(saved(name))
    how = SelectionOptions("uniform", {"parts": "mlp"}, multiple_of=8)
    made = plan(model, ratio=0.1, units=WIDTH, choosing=how, calibration=calibration)
    assert made.criterion == "activation"
    pruned = prune(model, made, out=tmp_path / "out", format="auto" if name == "qwen3_moe" else "custom")
    assert pruned.verified.logits_difference <= 2e-6
