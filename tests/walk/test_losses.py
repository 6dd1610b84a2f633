"""losses(removals): the divergence from the dense model against its formula, on every way through the model; bounds.

Journals.
"""

import math

import pytest
import torch
import zoo
from literal import TOKENS, literal_kl, walk_of

from shallower import Compute, UserError, open_model
from shallower.artifacts import Removal
from shallower.storage.journal import Journal, journaled
from shallower.walk import batching, removals
from shallower.walk.removals import LossWalk
from shallower.walk.replay import Replay

REMOVALS = [*map(Removal.of_layers, ((), (2,), (0, 3, 5), (2, 3), (6, 7), (2,)))]
SINGLE = [Removal.of_layers([index]) for index in range(zoo.LAYERS)]
each_objective = pytest.mark.parametrize("objective", ["loss", "kl"])


def literal(folder) -> list[float]:
    return [literal_kl(folder, removal.layers) for removal in REMOVALS]


@pytest.mark.parametrize("whole", [False, True])
@pytest.mark.parametrize("limit", [40, 4096])
@pytest.mark.parametrize("name", ["llama", "gpt2", "gemma2"])
def test_kl_equals_its_formula(name, limit, whole, saved, monkeypatch) -> None:
    if whole:
        monkeypatch.setattr(Replay, "faithful", lambda self: False)
    walk = walk_of(saved(name), limit)
    found = walk(REMOVALS, objective="kl").tolist()
    assert found == pytest.approx(literal(saved(name)), rel=1e-4)
    assert found[0] == 0.0 and found[1] == found[5]
    alone = [
        float(walk(REMOVALS[row : row + 1], objective="kl")) for row in (0, 2)
    ]  # the dense stream is walked all the same
    assert alone == pytest.approx([0.0, found[2]], rel=1e-6)
    assert (removals.replay_of(walk.model) is None) == whole


def test_kl_in_blocks_groups_and_rounds(saved, monkeypatch) -> None:
    wanted = walk_of(saved("llama"))(REMOVALS, objective="kl").tolist()
    monkeypatch.setattr(removals, "KL_VARIANTS", 2)
    monkeypatch.setattr(batching, "BLOCK_LOGIT_BYTES", 4 * 4 * zoo.VOCAB * 7)  # logits of 7 places
    assert walk_of(saved("llama"))(REMOVALS, objective="kl").tolist() == pytest.approx(wanted, rel=1e-5)
    monkeypatch.setattr(batching, "total_memory", lambda device: 1)
    assert walk_of(saved("llama"))(REMOVALS, objective="kl").tolist() == pytest.approx(wanted, rel=1e-5)


@each_objective
@pytest.mark.parametrize("bounded", [1, 3, 20])
def test_the_lowest_of_a_bounded_walk_are_exact(objective, bounded, saved, monkeypatch) -> None:
    monkeypatch.setattr(removals, "KL_VARIANTS", 2)
    monkeypatch.setattr(batching, "BLOCK_LOGIT_BYTES", 4 * 4 * zoo.VOCAB * 7)
    walk = walk_of(saved("llama"))
    exact = walk(SINGLE, objective=objective).tolist()
    found = walk(SINGLE, bounded=bounded, objective=objective).tolist()
    assert sorted(found)[:bounded] == sorted(exact)[:bounded]
    assert all(mine in (value, math.inf) for mine, value in zip(found, exact, strict=True))
    assert (math.inf in found) == (bounded < 20)


def test_a_journal_tells_objectives_and_bounds_apart(saved, tmp_path) -> None:
    ways = [{"objective": objective, "bounded": bounded} for objective in ("loss", "kl") for bounded in (0, 1, 2)]
    model = open_model(saved("llama"))
    wanted = [LossWalk(model, TOKENS)(SINGLE, **way).tolist() for way in ways]
    with journaled(tmp_path / "out"):
        walk = LossWalk(model, TOKENS, Journal({}))
        for _ in range(2):
            assert [walk(SINGLE, **way).tolist() for way in ways] == wanted


@each_objective
def test_broken_weights_are_an_error(objective, saved) -> None:
    walk = walk_of(saved("llama"))
    walk.model.stack.layers[3].mlp.up_proj.weight.data[0, 0] = torch.nan
    with pytest.raises(UserError, match="NaN"):
        walk(REMOVALS, objective=objective)


def test_a_layered_divergence_is_the_resident_one(saved) -> None:
    ways = [open_model(saved("gemma2"), Compute(device="cpu", layered=layered)) for layered in (True, False)]
    assert len({tuple(LossWalk(model, TOKENS)(REMOVALS, objective="kl").tolist()) for model in ways}) == 1
