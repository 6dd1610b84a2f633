"""Selections that search: never worse than greedy, within their time, on the loss and on the divergence from the dense
model.
"""

import itertools
import math
import random
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from kills import keep_every_step, killed_after
from literal import TOKENS, literal_kl, walk_of

from shallower import Amount, Calibration, SelectionOptions, UserError, methods, plan
from shallower.artifacts import Units
from shallower.methods.selection import beam, evolution, greedy
from shallower.planning.choice import Method, Stopwatch, choices, searches
from shallower.planning.problem import Choice, Problem
from shallower.runtime.progress import shown
from shallower.settings.quantities import seconds_of

SEARCHING = {"beam": beam, "evolution": evolution}

each_search = pytest.mark.parametrize("name", SEARCHING)
each_objective = pytest.mark.parametrize("objective", ["loss", "kl"])


class Table:
    """Losses that were drawn or are given, one per set of layers and objective; counts what is asked for."""

    def __init__(self, seed: int = 0, known: dict | None = None):
        self.seed, self.known, self.asked = seed, known or {}, []

    def value(self, removed, objective: str = "loss") -> float:
        drawn = random.Random(f"{self.seed} {objective} {sorted(removed)}").random()
        return self.known.get(frozenset(removed), drawn)

    def __call__(self, removals, label: str, *, bounded: int = 0, objective: str = "loss"):
        sets = [frozenset(removal.layers) for removal in removals]
        self.asked += [(label.split()[0].strip(","), removed) for removed in sets]
        values = [self.value(removed, objective) for removed in sets]
        limit = sorted(values)[min(bounded, len(values)) - 1] if bounded else math.inf
        return torch.tensor([value if value <= limit else math.inf for value in values], dtype=torch.float64)


def problem_of(table: Table, layers: int, amount: int, own, first: int = 0) -> Problem:
    problem = Problem(Units.of_layers([1] * layers), amount, tuple(range(first, layers)), losses=table, settings=own)
    return replace(problem, start=greedy.select(problem))


cases = st.integers(3, 9).flatmap(
    lambda n: st.tuples(st.just(n), st.integers(1, n - 2), st.integers(0, 1), st.integers(0, 10**6))
)


# ---------------------------------------------------------------- on tables


@each_search
@each_objective
@settings(deadline=None, max_examples=60)
@given(case=cases, size=st.integers(1, 5))
def test_never_worse_than_greedy(name, objective, case, size) -> None:
    layers, amount, first, seed = case
    own = beam.Settings(size, objective) if name == "beam" else evolution.Settings(size, 4, objective, seed)
    problem = problem_of(Table(seed), layers, amount, own, first)
    choice = SEARCHING[name].select(problem)
    value, mine = (problem.losses.value(order, objective) for order in (choice.order, problem.start.order))
    assert value <= mine
    assert choice.trace[-1] == value and all(map(math.isfinite, choice.trace))
    assert len(set(choice.order) & set(problem.allowed)) == len(choice.order) == amount
    if set(choice.order) == set(problem.start.order):
        assert choice.order == problem.start.order


SINGLES = {frozenset({index}): 0.1 * (index + 1) for index in range(6)}
PAIRS = {frozenset(pair): 1.0 + sum(pair) for pair in itertools.combinations(range(6), 2)} | {frozenset({2, 3}): 0.0}


@each_search
def test_finds_what_greedy_misses(name) -> None:
    table = Table(known=SINGLES | PAIRS)
    own = beam.Settings(3) if name == "beam" else evolution.Settings()
    problem = problem_of(table, 6, 2, own)
    assert (problem.start.order, table.value(problem.start.order)) == ((0, 1), 2)
    choice = SEARCHING[name].select(problem)
    assert (sorted(choice.order), choice.trace[-1]) == ([2, 3], 0.0)


@settings(deadline=None, max_examples=30)
@given(cases)
def test_a_beam_as_wide_as_all_finds_the_best(case) -> None:
    layers, amount, first, seed = case
    table = Table(seed)
    choice = beam.select(problem_of(table, layers, amount, beam.Settings(1000), first))
    assert choice.trace[-1] == min(map(table.value, itertools.combinations(range(first, layers), amount)))
    steps = [choice.order[:count] for count in range(1, amount + 1)]
    assert choice.trace == tuple(map(table.value, steps)) or len(choice.trace) == 1


def test_a_beam_of_one_is_greedy_and_equal_sets_count_once() -> None:
    table = Table()
    problem = problem_of(table, 9, 5, beam.Settings(1))
    assert beam.select(problem) == problem.start
    table.asked.clear()
    beam.select(replace(problem, settings=beam.Settings(7)))
    assert len(table.asked) == len(set(table.asked))


def test_evolution_is_repeatable_and_asks_for_no_set_twice() -> None:
    found = []
    for seed in (1, 1, 2):
        table = Table(3)
        found.append((evolution.select(problem_of(table, 12, 5, evolution.Settings(seed=seed))), table.asked))
        asked = [removed for label, removed in table.asked if label == "evolution"]
        assert len(asked) == len(set(asked)) and {len(removed) for removed in asked} == {5}
    assert found[0] == found[1]
    assert found[0][1] != found[2][1]


def test_evolution_sees_all_of_a_small_space_and_stops() -> None:
    table = Table(5)
    choice = evolution.select(problem_of(table, 6, 3, evolution.Settings(generations=1000)))
    assert choice.trace[-1] == min(map(table.value, itertools.combinations(range(6), 3)))
    assert len([label for label, _ in table.asked if label == "evolution"]) <= math.comb(6, 3)
    assert len(choice.trace) < 1000 and list(choice.trace) == sorted(choice.trace, reverse=True)


def test_the_order_of_an_evolved_set_begins_as_greedys() -> None:
    for seed in range(20):
        problem = problem_of(Table(seed), 10, 4, evolution.Settings(seed=seed))
        order, start = evolution.select(problem).order, problem.start.order
        kept = [index for index in start if index in order]
        assert list(order) == kept + sorted(set(order) - set(start))


@each_search
def test_only_one_set_is_possible(name) -> None:
    problem = problem_of(Table(), 4, 3, SEARCHING[name].Settings(), first=1)
    assert SEARCHING[name].select(problem).order == problem.start.order


# ---------------------------------------------------------------- time


@each_search
@pytest.mark.parametrize("calls", range(5))
def test_a_search_that_is_cut_returns_greedys_or_better(name, calls, capsys) -> None:
    left = iter([True] * calls + [False] * 99)
    problem = replace(problem_of(Table(3), 10, 4, SEARCHING[name].Settings()), affords=lambda variants: next(left))
    with shown():
        choice = SEARCHING[name].select(problem)
    said = capsys.readouterr().err
    if name == "evolution":
        assert (
            len(choice.trace) == (calls or 4)
            and f"the time ends before evolution, generation {calls + 1} of 20: " in said
        )
        assert ("greedy's choice stays" in said) == (set(choice.order) == set(problem.start.order))
        assert problem.losses.value(choice.order) <= problem.losses.value(problem.start.order)
    elif calls < 4:
        assert said == f"the time ends before beam, layer {calls + 1} of 4: greedy's choice stays\n"
    assert choice == problem.start or (calls and not said) or name == "evolution"


def test_the_stopwatch_goes_by_the_pace_of_the_last_call(monkeypatch) -> None:
    now = [100.0]
    monkeypatch.setattr("shallower.planning.choice.time.monotonic", lambda: now[0])

    def slow(removals, label, **options):
        now[0] += 2.0 * len(removals)
        return torch.zeros(len(removals))

    watch, free = Stopwatch(20.0), Stopwatch(None)
    watch.timed(slow)(torch.zeros(4, 8), "x", bounded=1)  # 8 s, 2 s each
    assert [watch.affords(count) for count in (1, 6, 7)] == [True, True, False]
    now[0] += 12.5
    assert not watch.affords(0)
    assert free.affords(10**9)


def test_every_size_of_a_sweep_has_the_whole_time() -> None:
    begun = []
    method = Method(SimpleNamespace(NEEDS="losses", select=lambda problem: Choice((0,) * problem.amount)), None)
    found = choices(method, lambda: begun.append(1) or Problem(Units.of_layers([1] * 4), 0, (0, 1, 2, 3)), (1, 2, 3))
    assert [len(choice.order) for choice in found] == [1, 2, 3] and len(begun) == 3


@pytest.mark.parametrize(
    ("text", "seconds"), [("120s", 120), ("10m", 600), ("2h", 7200), ("90", 90), (" 1.5H", 5400), ("0", 0)]
)
def test_times(text, seconds) -> None:
    assert seconds_of(text, "budget") == seconds


@pytest.mark.parametrize("text", ["soon", "", "s", "10d", "1:30"])
def test_what_is_no_time(text) -> None:
    with pytest.raises(UserError, match="give a time such as 120s"):
        seconds_of(text, "budget")


def test_budgets_that_mean_nothing(saved) -> None:
    for seconds in (-1.0, math.inf, math.nan):
        with pytest.raises(UserError, match=r"budget=.*: a number of seconds, 0 or more"):
            SelectionOptions("beam", budget=seconds)
    for name in methods.names("selection"):
        if not searches(methods.find("selection", name)):
            with pytest.raises(UserError, match=f"selection={name}; it goes with beam, evolution"):
                plan(saved("llama"), amount=Amount(remove=1), choosing=SelectionOptions(name, budget=10.0))


@pytest.mark.parametrize("setting", ["beam width=0", "evolution population=0", "evolution generations=-1"])
def test_bad_settings(setting) -> None:
    name, key, value = setting.replace("=", " ").split()
    with pytest.raises(UserError, match=f"{setting.replace(' ', ': ')}: at least 1"):
        methods.configure(SEARCHING[name], {key: value})
    with pytest.raises(UserError, match="allowed are loss, kl"):
        methods.configure(SEARCHING[name], {"objective": "ppl"})


# ---------------------------------------------------------------- plans


@pytest.fixture(scope="module")
def calibration(tmp_path_factory) -> Calibration:
    path = tmp_path_factory.mktemp("tokens") / "tokens.npy"
    np.save(path, TOKENS.numpy())
    return Calibration(tokens=str(path))


def planned(folder, calibration, name: str, own: dict | None = None, **more):
    choosing = SelectionOptions(name, own or {}, 0, 0, budget=more.pop("budget", None))
    return plan(folder, amount=Amount(remove=3), choosing=choosing, calibration=calibration, **more)


@each_search
@each_objective
def test_a_plan_is_never_worse_than_greedys(name, objective, saved, calibration) -> None:
    found = planned(saved("llama"), calibration, name, {"objective": objective})
    start = planned(saved("llama"), calibration, "greedy")
    removals = [item.removal for item in (found, start)]
    mine, its = (walk_of(saved("llama"))(removals, objective=objective) / TOKENS[:, 1:].numel()).tolist()
    assert mine <= its
    assert found.trace[-1] == pytest.approx(mine, rel=1e-5)
    assert (found.selection, found.settings["objective"], found.criterion, found.budget) == (
        name,
        objective,
        None,
        None,
    )
    if objective == "kl":
        assert mine == pytest.approx(literal_kl(saved("llama"), tuple(found.removed)) / TOKENS[:, 1:].numel(), rel=1e-4)


@each_search
def test_without_time_it_is_greedys_plan(name, saved, calibration, capsys) -> None:
    start = planned(saved("llama"), calibration, "greedy")
    with shown():
        found = planned(saved("llama"), calibration, name, budget=0.0)
    assert (found.order, found.trace, found.budget) == (start.order, start.trace, 0.0)
    assert f"the time ends before {name}, " in capsys.readouterr().err


SHORT = Calibration(samples=4, length=16, seed=7)


def test_the_common_seed_seeds_evolution(saved) -> None:
    plans = [planned(saved("llama"), SHORT, "evolution", {"generations": "1", **own}) for own in ({}, {"seed": "3"})]
    assert [item.settings["seed"] for item in plans] == [7, 3]


@each_search
def test_a_parameter_target_is_met(name, saved) -> None:
    choosing = SelectionOptions(name, {"width": "2"} if name == "beam" else {"generations": "2"}, 0, 0)
    found = plan(saved("llama"), amount=Amount(target_params=250688.0), choosing=choosing, calibration=SHORT)
    assert len(found.removed) == 2 and found.params_after <= 250688


@pytest.mark.parametrize(("name", "objective"), [("beam", "kl"), ("evolution", "loss")])
def test_a_killed_search_goes_on(name, objective, saved, tmp_path, monkeypatch) -> None:
    keep_every_step(monkeypatch)
    own = {"objective": objective} | ({"width": "2"} if name == "beam" else {"generations": "3", "population": "4"})
    wanted = planned(saved("qwen3"), SHORT, name, own)
    for count in (30, 12, 5):
        killed_after(monkeypatch, count, lambda: planned(saved("qwen3"), SHORT, name, own, out=tmp_path / "plan.json"))
    got = planned(saved("qwen3"), SHORT, name, own, out=tmp_path / "plan.json")
    assert (got.order, got.trace) == (wanted.order, wanted.trace)
    assert [path.name for path in tmp_path.iterdir()] == ["plan.json"]
