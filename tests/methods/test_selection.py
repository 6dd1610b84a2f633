"""Every selection against brute force; protection and amounts."""

import copy

import numpy as np
import pytest
import torch
import zoo
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM

from shallower import (
    Amount,
    Calibration,
    Plan,
    Scores,
    SelectionOptions,
    UserError,
    drop,
    open_model,
    plan,
    prune,
    score,
)
from shallower.artifacts import ModelRecord, Units
from shallower.methods.selection import lowest, positional, window
from shallower.planning.problem import Problem


def scores_of(values, sizes=None, windows=None, rest: int = 50) -> Scores:
    """Scores of a model that need not exist: one value and one number of parameters per layer."""
    sizes = sizes or [100] * len(values)
    model = ModelRecord("somewhere", "llama", len(sizes), sum(sizes) + rest, sizes, "0" * 16, list(range(len(sizes))))
    return Scores("magnitude", {}, [float(value) for value in values], model, None, 0.0, 0, "float32", windows=windows)


def chosen(scores, selection: str = "lowest", keep=(0, 0), settings=None, **amount) -> Plan:
    return plan(scores, amount=Amount(**amount), choosing=SelectionOptions(selection, settings or {}, *keep))


@pytest.fixture(scope="module")
def calibration(tmp_path_factory) -> Calibration:
    path = tmp_path_factory.mktemp("tokens") / "tokens.npy"
    np.save(path, zoo.tokens(batch=3, length=20).numpy())
    return Calibration(tokens=str(path))


problems = st.integers(3, 40).flatmap(
    lambda n: st.tuples(st.just(n), st.integers(0, n // 2), st.integers(0, n // 3), st.integers(1, n))
)


def problem_of(case, **more) -> Problem:
    """A problem of N layers, protections and an amount that fits and leaves one layer."""
    layers, first, last, amount = case
    allowed = tuple(range(first, layers - last))
    return Problem(Units.of_layers([1] * layers), min(amount, len(allowed), layers - 1), allowed, **more)


def test_lowest_takes_the_lowest_and_ties_go_to_the_earlier() -> None:
    result = chosen(scores_of([9, 2, 5, 2, 0, 7, 1, 8]), remove=4)
    assert (result.order, result.trace) == ([4, 6, 1, 3], [0, 1, 2, 2])
    assert (result.removed, result.kept) == ([1, 3, 4, 6], [0, 2, 5, 7])
    assert chosen(scores_of([9, 2, 5, 2, 0, 7, 1, 8]), keep=(2, 2), remove=3).order == [4, 3, 2]


@given(problems, st.randoms(use_true_random=False))
def test_lowest_has_the_least_sum_in_order(case, chance) -> None:
    values = [chance.choice([chance.random(), 0.5]) for _ in range(case[0])]
    problem = problem_of(case, scores=values)
    order = lowest.select(problem).order
    assert len(set(order) & set(problem.allowed)) == problem.amount
    assert [values[index] for index in order] == sorted(values[index] for index in problem.allowed)[: problem.amount]


@pytest.mark.parametrize("criterion", ["taylor", "block_influence", "angular", "perplexity"])
def test_iterative_is_pruning_one_layer_at_a_time(criterion, saved, calibration, tmp_path) -> None:
    order, trace, model = [], [], open_model(saved("llama"))
    for step in range(3):
        values = score(model, criterion=criterion, calibration=calibration).scores
        worst = min(range(1, len(values) - 1), key=values.__getitem__)
        trace.append(values[worst])
        order.append(model.record.original[worst])
        prune(model, drop(model, [worst]), out=tmp_path / str(step), verify=False)
        model = open_model(tmp_path / str(step))
    choosing = SelectionOptions(iterative=True, keep_first=1, keep_last=1)
    result = plan(
        saved("llama"), amount=Amount(remove=3), choosing=choosing, criterion=criterion, calibration=calibration
    )
    assert (result.order, result.iterative) == (order, True)
    assert result.trace == pytest.approx(trace, rel=1e-5)


def test_iterative_is_refused_without_a_model_and_elsewhere(saved) -> None:
    with pytest.raises(UserError, match="give MODEL"):
        plan(scores_of(range(8)), amount=Amount(remove=1), choosing=SelectionOptions(iterative=True))
    with pytest.raises(UserError, match="no meaning"):
        plan(saved("llama"), amount=Amount(remove=1), choosing=SelectionOptions("positional", iterative=True))


@given(problems, st.randoms(use_true_random=False))
def test_window_has_the_least_sum_of_all_runs(case, chance) -> None:
    values = [float(chance.randint(0, 30)) for _ in range(case[0])]  # sums are exact, and ties happen
    problem = problem_of(case, scores=values)
    runs = (tuple(range(start, start + problem.amount)) for start in range(problem.layers))
    sums = {run: sum(values[index] for index in run) for run in runs if set(run) <= set(problem.allowed)}
    assert window.select(problem).order == min(sums, key=sums.get)
    assert window.select(problem).trace == (min(sums.values()),)


@pytest.mark.parametrize("size", range(1, 7))
def test_angular_window_is_the_run_with_the_smallest_angle(size, saved, calibration) -> None:
    scores = score(saved("llama"), criterion="angular", calibration=calibration)
    angles = {start: scores.windows[size - 1][start] for start in range(1, 8 - size)}  # 0 and 7 protected
    best = min(angles, key=angles.get)
    result = chosen(scores, "window", keep=(1, 1), remove=size)
    assert (result.removed, result.trace) == (list(range(best, best + size)), [angles[best]])


def test_window_refuses_iterative(saved) -> None:
    with pytest.raises(UserError, match="iterative"):
        plan(
            saved("llama"),
            amount=Amount(remove=2),
            choosing=SelectionOptions("window", iterative=True),
            criterion="magnitude",
        )


PUBLISHED = {
    "input": [*range(1, 13)],
    "output": [*range(11, 23)],
    "middle": [*range(6, 18)],
    "both": [*range(1, 7), *range(17, 23)],
}
PUBLISHED["max-gap"] = sorted(set(range(24)) - {round(23 * step / 11) for step in range(12)})  # N = 24, 12 removed


@pytest.mark.parametrize("strategy", PUBLISHED)
def test_positional_index_sets(strategy) -> None:
    result = chosen(scores_of([0] * 24), "positional", keep=(None, None), settings={"strategy": strategy}, remove=12)
    assert result.removed == PUBLISHED[strategy]
    assert (result.keep_first, result.keep_last, result.criterion, result.scores) == (1, 1, None, None)


def test_positional_input_of_32_and_an_odd_both_and_the_default() -> None:
    keep = (None, None)
    assert chosen(scores_of([0] * 32), "positional", keep, {"strategy": "input"}, remove=16).removed == [*range(1, 17)]
    assert chosen(scores_of([0] * 24), "positional", keep, {"strategy": "both"}, remove=5).removed == [1, 2, 3, 21, 22]
    assert chosen(scores_of([0] * 24), "positional", keep, remove=12).removed == PUBLISHED["max-gap"]


@given(problems, st.sampled_from(sorted(PUBLISHED)))
def test_positional_removes_that_many_allowed_layers(case, strategy) -> None:
    problem = problem_of(case, settings=positional.Settings(strategy))
    order = positional.select(problem).order
    assert len(order) == len(set(order) & set(problem.allowed)) == problem.amount


@given(st.integers(4, 60), st.data())
def test_max_gap_leaves_even_gaps(layers, data) -> None:
    amount = data.draw(st.integers(1, layers - 2))
    problem = Problem(
        Units.of_layers([1] * layers), amount, tuple(range(1, layers - 1)), settings=positional.Settings("max-gap")
    )
    kept = sorted(set(range(layers)) - set(positional.select(problem).order))
    assert (kept[0], kept[-1]) == (0, layers - 1)
    assert np.ptp(np.diff(kept)) <= 1


def test_max_gap_spares_a_protected_last_layer() -> None:
    assert chosen(scores_of([0] * 8), "positional", keep=(0, 1), remove=7).kept == [7]


@torch.no_grad()
def brute_force_greedy(folder, tokens, amount: int, allowed) -> tuple[list[int], list[float]]:
    """A shorter model is built and run for every candidate of every step."""
    dense, order, losses = AutoModelForCausalLM.from_pretrained(folder).eval(), [], []
    for _ in range(amount):
        tried = {}
        for candidate in set(allowed) - set(order):
            model = copy.deepcopy(dense)
            stack = model.transformer.h if hasattr(model, "transformer") else model.model.layers
            for index in sorted([*order, candidate], reverse=True):
                del stack[index]
            tried[candidate] = float(model(input_ids=tokens, labels=tokens, use_cache=False).loss)
        order.append(min(tried, key=tried.get))
        losses.append(tried[order[-1]])
    return order, losses


@pytest.mark.parametrize("name", ["llama", "gpt2", "qwen3_moe"])
@pytest.mark.parametrize("keep", [(0, 0), (2, 1)])
def test_greedy_equals_brute_force(name, keep, saved, calibration) -> None:
    tokens = torch.from_numpy(np.load(calibration.tokens))
    order, losses = brute_force_greedy(saved(name), tokens, 3, range(keep[0], 8 - keep[1]))
    result = plan(
        saved(name), amount=Amount(remove=3), choosing=SelectionOptions("greedy", {}, *keep), calibration=calibration
    )
    assert result.order == order
    assert result.trace == pytest.approx(losses, rel=1e-5)
    with pytest.raises(UserError, match="give MODEL"):
        chosen(scores_of([0] * 8), "greedy", remove=1)


@pytest.mark.parametrize(
    ("layers", "auto"), [(80, (4, 2)), (30, (4, 2)), (24, (4, 2)), (12, (2, 1)), (8, (1, 1)), (4, (1, 1))]
)
def test_automatic_protection(layers, auto) -> None:
    falling = scores_of(range(layers, 0, -1))
    for selection, wanted in (("lowest", auto), ("window", auto), ("positional", (1, 1))):
        result = chosen(falling, selection, keep=(None, None), remove=1)
        assert (result.keep_first, result.keep_last) == wanted
    assert chosen(falling, keep=(None, None), remove=1).removed == [layers - 1 - auto[1]]
    assert chosen(falling, keep=(None, 0), remove=1).removed == [layers - 1]
    assert chosen(falling, keep=(0, 0), remove=1).removed == [layers - 1]


def test_too_much_is_an_error() -> None:
    with pytest.raises(UserError, match=r"leave at most 24.*keep_first"):
        chosen(scores_of([0] * 30), keep=(None, None), remove=25)
    assert len(chosen(scores_of([0] * 30), keep=(None, None), remove=24).removed) == 24
    for keep, match in (((5, 3), "protect all 8"), ((-1, 0), "a number of layers")):
        with pytest.raises(UserError, match=match):
            chosen(scores_of([0] * 8), keep=keep, remove=1)


@pytest.mark.parametrize("selection", ["lowest", "positional", "window"])
def test_one_layer_stays(selection) -> None:
    windows = [[1.0] * (8 - size) for size in range(7)]
    with pytest.raises(UserError):
        chosen(scores_of([0] * 8, windows=windows), selection, remove=8)


layer_sizes = st.lists(st.integers(1, 1000), min_size=3, max_size=10)


@settings(deadline=None)
@given(layer_sizes, st.data())
def test_the_true_share_is_told(sizes, data) -> None:
    count = data.draw(st.integers(1, len(sizes) - 1))
    result = chosen(scores_of(range(len(sizes)), sizes, rest=77), remove=count)
    assert (result.params_before, result.params_after) == (sum(sizes) + 77, sum(sizes[count:]) + 77)
    assert result.share == pytest.approx(sum(sizes[:count]) / (sum(sizes) + 77))


@pytest.mark.parametrize(("ratio", "count"), [(0.05, 1), (0.1, 1), (0.2, 2), (0.25, 3), (0.5, 5), (0.52, 5), (0.53, 6)])
def test_ratio_goes_to_the_nearest_number_of_layers(ratio, count) -> None:
    scores = scores_of(range(10), rest=50)  # a layer is 100 of 1050
    result = chosen(scores, ratio=ratio)
    assert result.removed == list(range(count))
    assert all(abs(result.share - ratio) <= abs(other * 100 / 1050 - ratio) + 1e-12 for other in range(1, 10))
    with pytest.raises(UserError, match="less than half a layer"):
        chosen(scores, ratio=0.03)


@settings(max_examples=30, deadline=None)
@given(layer_sizes, st.integers(0, 500), st.randoms(use_true_random=False), st.sampled_from(["lowest", "window"]))
def test_target_is_met_by_the_smallest_removal(sizes, rest, chance, selection) -> None:
    scores = scores_of([chance.random() for _ in sizes], sizes, rest=rest)
    plans = [chosen(scores, selection, remove=count) for count in range(1, len(sizes))]
    target = float(chance.randint(min(item.params_after for item in plans), sum(sizes) + rest - 1))
    wanted = next(item for item in plans if item.params_after <= target)
    assert chosen(scores, selection, target_params=target).removed == wanted.removed


def test_impossible_amounts_are_errors() -> None:
    scores = scores_of(range(10))
    for amount, match in (
        ({"target_params": 2e3}, "ask for less"),
        ({"target_params": 1e2}, "cannot be met"),
        ({"ratio": 0.9}, "cannot go"),
    ):
        with pytest.raises(UserError, match=match):
            chosen(scores, keep=(2, 2), **amount)
    for amount in (
        {},
        {"remove": 0},
        {"ratio": 20.0},
        {"ratio": 0.0},
        {"target_params": -1.0},
        {"remove": 1, "ratio": 0.1},
    ):
        with pytest.raises(UserError, match=r"remove|ratio|target_params"):
            Amount(**amount)
