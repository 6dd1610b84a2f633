"""Losses without parts of layers equal those of a plain model whose parts give zeros; half layers share streams."""

import contextlib

import pytest
import torch
import zoo
from literal import TOKENS, plain, walk_of

from shallower.anatomy.units.steps import Steps
from shallower.artifacts import Removal, Unit
from shallower.walk import removals as module
from shallower.walk.removals import all_nll

MODULES = {  # what is zeroed in a plain model
    "llama": ("self_attn", "mlp"),
    "gemma2": ("post_attention_layernorm", "post_feedforward_layernorm"),
    "gpt_neox": ("attention", "mlp"),
}
PARTS = ("attention", "mlp")
SETS = [
    (),
    (Unit(2, "mlp"),),
    (Unit(2, "attention"),),
    (Unit(0, "attention"), Unit(2, "mlp"), Unit(5)),
    (Unit(2, "mlp"), Unit(3, "mlp"), Unit(3, "attention")),
    (Unit(7, "attention"),),
]


def literal(folder, name, units) -> float:
    """Summed NLL of plain transformers with hooks that zero what the parts give."""
    model = plain(folder)
    layers = model.model.layers if hasattr(model, "model") else model.gpt_neox.layers

    def zero(_, __, output):
        return (torch.zeros_like(output[0]), *output[1:]) if isinstance(output, tuple) else torch.zeros_like(output)

    with contextlib.ExitStack() as hooks, torch.no_grad():
        for unit in units:
            for part in [unit.part] if unit.part else PARTS:
                inside = layers[unit.layer].get_submodule(MODULES[name][PARTS.index(part)])
                hooks.callback(inside.register_forward_hook(zero).remove)
        logits = model(input_ids=TOKENS, use_cache=False).logits[:, :-1].double()
    return float(-logits.log_softmax(-1).gather(-1, TOKENS[:, 1:, None]).sum())


@pytest.mark.parametrize("limit", [40, 4096])
@pytest.mark.parametrize("name", MODULES)
def test_losses_without_parts(name, limit, saved) -> None:
    walk = walk_of(saved(name), limit)
    removals = [Removal.of(units) for units in SETS]
    wanted = [literal(saved(name), name, units) for units in SETS]
    assert walk(removals).tolist() == pytest.approx(wanted, rel=1e-5)
    for removal, value in zip(removals, wanted, strict=True):
        assert float(all_nll(walk.model, TOKENS, removal).double().sum()) == pytest.approx(value, rel=1e-5)


def test_whole_forwards_without_parts(saved, monkeypatch) -> None:
    monkeypatch.setattr(module, "replay_of", lambda model: None)
    found = walk_of(saved("llama"))([Removal.of(units) for units in SETS]).tolist()
    assert found == pytest.approx([literal(saved("llama"), "llama", units) for units in SETS], rel=1e-5)


def test_streams_are_shared_down_to_half_a_layer(saved, monkeypatch) -> None:
    """All leave-one-out variants of 2 N parts cost the ideal number of half-layer forwards."""
    ran: list[int] = []
    whole = module._Round.run
    monkeypatch.setattr(
        module._Round,
        "run",
        lambda work, place, state, streams: ran.append(len(streams)) or whole(work, place, state, streams),
    )
    halves = 2 * zoo.LAYERS
    walk = walk_of(saved("llama"))
    walk([Removal.of([Unit(layer, part)]) for layer in range(zoo.LAYERS) for part in PARTS])
    assert sum(ran) == halves * (halves + 1) // 2 - 1


def test_steps_of_layers_whose_parts_read_the_same_stream(saved) -> None:
    model = walk_of(saved("gpt_neox")).model
    steps = Steps.of_parts(model.parts)
    assert len(steps.steps) == zoo.LAYERS
    removal = Removal.of([Unit(1, "mlp"), Unit(2, "mlp"), Unit(2, "attention"), Unit(4)])
    assert steps.states(removal) == ("0", "mlp", "1", "0", "1", "0", "0", "0")


def test_a_removal_says_what_goes() -> None:
    assert repr(Removal.of_layers([5, 3, 4])) == "<Removal of layers 3-5>"
    assert str(Removal.of([Unit(9), Unit(5, "mlp"), Unit(9, "attention")])) == "5.mlp, 9"
    assert not Removal() and repr(Removal()) == "<Removal of nothing>"
