"""Criteria and selections of groups against literal transcriptions, which share nothing with the package."""

import numpy as np
import pytest
import torch
import zoo
from commands import status
from transformers import AutoModelForCausalLM

from shallower import Amount, Calibration, Scores, SelectionOptions, open_model, plan, score
from shallower.artifacts import load
from shallower.artifacts.units import WIDTH

HEADS, GROUPS, SIZE, NEURONS, LAYERS = 4, 2, 16, 96, 8  # of the tiny Llama
TOKENS = zoo.tokens(batch=5, length=20)


@pytest.fixture(scope="module")
def dense(saved):
    return AutoModelForCausalLM.from_pretrained(saved("llama"), dtype=torch.float32).eval()


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("zoo") / "llama"
    zoo.save("llama", folder)
    np.save(folder.with_name("tokens.npy"), TOKENS.numpy())
    return lambda name: folder


def products(model):
    """(part, its last product) of every layer, in order."""
    for layer in model.model.layers:
        yield from (("attention", layer.self_attn.o_proj), ("mlp", layer.mlp.down_proj))


@torch.no_grad()
def entering(model):
    """What enters every last product, (sample, position, feature) in float64."""
    seen = {}

    def see(place, given):
        seen[place] = given.double()

    hooks = [
        product.register_forward_pre_hook(lambda _, args, place=place: see(place, args[0]))
        for place, (_, product) in enumerate(products(model))
    ]
    model(input_ids=TOKENS, use_cache=False)
    for hook in hooks:
        hook.remove()
    return [seen[place].numpy() for place in range(2 * LAYERS)]


def scored(saved, criterion, **settings):
    """Scores by part, in order, from the package."""
    calibration = Calibration(tokens=str(saved("llama").with_name("tokens.npy")), samples=5, length=20)
    found = score(
        open_model(saved("llama")), criterion=criterion, settings=settings, units=WIDTH, calibration=calibration
    )
    values, parts = iter(found.scores), []
    for _ in range(LAYERS):
        parts += [[next(values) for _ in range(count)] for count in (GROUPS, NEURONS)]
    return parts


def by_head(values):
    """Scores of columns of an attention's last product, added by KV group: of two query heads each."""
    return values.reshape(GROUPS, -1).sum(axis=1)


def compare(found, wanted, near=0.0):
    for one, other in zip(found, wanted, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=near + 1e-6 * np.abs(other).max())


def test_wanda_is_the_mean_weight_times_the_running_norm(saved, dense):
    wanted = []
    for (part, product), given in zip(products(dense), entering(dense), strict=True):
        weight, running = product.weight.detach().double().numpy(), 0.0
        for samples, sample in enumerate(given):  # the running mean of the squared norms, sample after sample
            running = running * samples / (samples + 1) + np.linalg.norm(sample, axis=0) ** 2 / (samples + 1)
        columns = np.abs(weight).mean(axis=0) * np.sqrt(running)
        wanted.append(by_head(columns) if part == "attention" else columns)
    compare(scored(saved, "wanda"), wanted)


def test_flap_is_the_standardised_fluctuation(saved, dense):
    wanted = []
    for (part, product), given in zip(products(dense), entering(dense), strict=True):
        rows = given.reshape(-1, given.shape[-1])
        columns = rows.var(axis=0, ddof=1) * (product.weight.detach().double().numpy() ** 2).sum(axis=0)
        columns = columns**2 if part == "attention" else columns
        columns = (columns - columns.mean()) / columns.std(ddof=1)
        wanted.append(columns.reshape(GROUPS, -1).mean(axis=1) if part == "attention" else columns)
    compare(scored(saved, "flap"), wanted, near=1e-5)  # of a standard deviation


@pytest.mark.parametrize("norm", ["l2", "mean"])
def test_activation_is_the_size_of_what_enters(norm, saved, dense):
    wanted = []
    for (part, _), given in zip(products(dense), entering(dense), strict=True):
        columns = np.mean([np.linalg.norm(one, axis=0) for one in given], axis=0)
        columns = np.abs(given).mean(axis=(0, 1)) if norm == "mean" else columns
        wanted.append(by_head(columns) if part == "attention" else columns)
    compare(scored(saved, "activation", norm=norm), wanted)


def coupled(layer):
    """(weight, axis, features of each head or neuron along it) of what goes with a group, for both parts."""
    attention, mlp = layer.self_attn, layer.mlp
    heads = [(attention.q_proj.weight, 0), (attention.k_proj.weight, 0), (attention.v_proj.weight, 0)]
    neurons = [(mlp.gate_proj.weight, 0), (mlp.up_proj.weight, 0)]
    return [*heads, (attention.o_proj.weight, 1)], [*neurons, (mlp.down_proj.weight, 1)]


@pytest.mark.parametrize("group", ["element", "vector", "mix"])
def test_taylor_adds_over_coupled_rows_and_columns(group, saved, dense):
    weights = [weight for layer in dense.model.layers for part in coupled(layer) for weight, _ in part]
    total, squares = [0.0] * len(weights), [0.0] * len(weights)
    for sample in TOKENS:
        logits = dense(input_ids=sample[None], use_cache=False).logits[0, :-1]
        loss = torch.nn.functional.cross_entropy(logits.double(), sample[1:])
        for place, gradient in enumerate(torch.autograd.grad(loss, weights)):
            total[place] = total[place] + gradient.double() / len(TOKENS)
            squares[place] = squares[place] + gradient.double() ** 2 / len(TOKENS)
    wanted, place = [], 0
    for layer in dense.model.layers:
        for part, count in zip(coupled(layer), (GROUPS, NEURONS), strict=True):
            values = np.zeros(count)
            for weight, axis in part:
                salience = (weight.double() * total[place]).detach()
                if group == "mix":
                    salience = salience - 0.5 * (weight.double() * squares[place] * weight.double()).detach()
                each = salience.sum(dim=1 - axis).abs() if group == "vector" else salience.abs().sum(dim=1 - axis)
                values += each.reshape(count, -1).sum(dim=1).numpy()
                place += 1
            wanted.append(values)
    for weight in weights:
        weight.grad = None
    compare(scored(saved, "taylor", group=group), wanted)


def test_magnitude_adds_coupled_weights(saved, dense):
    wanted = []
    for layer in dense.model.layers:
        for part, count in zip(coupled(layer), (GROUPS, NEURONS), strict=True):
            sums = (
                weight.detach().double().abs().sum(dim=1 - axis).reshape(count, -1).sum(dim=1) for weight, axis in part
            )
            wanted.append(sum(one.numpy() for one in sums))
    compare(scored(saved, "magnitude"), wanted)


@pytest.mark.parametrize("criterion", ["magnitude", "taylor", "gradient"])
def test_biases_count_with_their_rows(criterion, tmp_path):
    zoo.save("opt", tmp_path / "opt")
    np.save(tmp_path / "tokens.npy", TOKENS.numpy())
    model = open_model(tmp_path / "opt")
    calibration = Calibration(tokens=str(tmp_path / "tokens.npy"), samples=5, length=20)
    found = score(model, criterion=criterion, units=WIDTH, calibration=calibration)
    dense = AutoModelForCausalLM.from_pretrained(tmp_path / "opt", dtype=torch.float32)
    dense(input_ids=TOKENS, labels=TOKENS).loss.backward()
    layer = dense.model.decoder.layers[0]
    rows = {"fc1.weight": 1, "fc1.bias": None, "fc2.weight": 0}
    wanted = 0.0
    for name, axis in rows.items():
        weight = layer.get_parameter(name)
        value = {"magnitude": weight, "taylor": weight * weight.grad, "gradient": weight.grad}[criterion].abs()
        if axis is not None:
            wanted = wanted + value.sum(dim=axis)
        elif criterion != "gradient":  # which looks at matrices alone
            wanted = wanted + value
    heads = 4
    got = found.scores[heads : heads + len(wanted)]
    np.testing.assert_allclose(got, wanted.detach().numpy(), rtol=2e-4)


def made_scores(saved, seed=0) -> Scores:
    """Scores of groups, drawn at random."""
    found = score(open_model(saved("llama")), criterion="random", units=WIDTH, settings={"seed": seed})
    return found


def test_uniform_takes_the_lowest_of_every_part(saved):
    found = made_scores(saved)
    made = plan(found, amount=Amount(ratio=0.2), choosing=SelectionOptions("uniform", {"parts": "mlp"}, multiple_of=8))
    assert abs(made.share - 0.2) < 0.01
    left = {NEURONS - len(unit.groups) for unit in made.removal.units}
    assert len(made.removal.units) == LAYERS and len(left) == 1 and left.pop() % 8 == 0
    for unit in made.removal.units:
        start = unit.layer * (GROUPS + NEURONS) + GROUPS
        values = found.scores[start : start + NEURONS]
        assert {*unit.groups} == {*np.argsort(values)[: len(unit.groups)].tolist()}
    both = plan(found, amount=Amount(ratio=0.2))
    assert {len(unit.groups) for unit in both.removal.units if unit.part == "attention"} in ({1}, set())
    assert abs(both.share - 0.2) < 0.01


@pytest.mark.parametrize(
    ("criterion", "parts", "kinds"),
    [
        ("activation", None, {"mlp"}),
        ("activation", "both", {"attention", "mlp"}),
        ("wanda", None, {"attention", "mlp"}),
    ],
)
def test_activation_narrows_mlps_unless_told_otherwise(criterion, parts, kinds, saved):
    choosing = SelectionOptions(settings={"parts": parts} if parts else {})
    calibration = Calibration(samples=4, length=16)
    how = {"criterion": criterion, "units": WIDTH, "calibration": calibration}
    made = plan(saved("llama"), amount=Amount(ratio=0.3), choosing=choosing, **how)
    assert {unit.part for unit in made.removal.units} == kinds
    assert made.settings["parts"] == ("mlp" if kinds == {"mlp"} else "both")


def test_scores_of_groups_take_settings_of_the_selection(saved, tmp_path, capsys):
    calibration = Calibration(samples=4, length=16)
    score(saved("llama"), criterion="activation", units=WIDTH, calibration=calibration, out=tmp_path / "scores.json")
    for given, parts in (([], {"mlp"}), (["--set", "parts=both"], {"attention", "mlp"})):
        out = tmp_path / f"{len(given)}.json"
        assert status("plan", str(tmp_path / "scores.json"), "--ratio", "0.3", *given, "--out", str(out)) == 0
        assert {unit.part for unit in load(out, "plan").removal.units} == parts
    assert status("plan", str(tmp_path / "scores.json"), "--ratio", "0.3", "--set", "norm=l2") == 2
    assert "norm" in capsys.readouterr().err


def test_standardised_finds_the_threshold_of_the_published_code(saved):
    found = made_scores(saved)
    ratio = 0.15
    made = plan(found, amount=Amount(ratio=ratio), choosing=SelectionOptions("standardised"))
    model = open_model(saved("llama"))
    sizes = [one.parameters for one in model.units(WIDTH).listing]
    metric, start = [], 0
    for _ in range(LAYERS):
        for count in (GROUPS, NEURONS):
            values = np.array(found.scores[start : start + count])
            metric += ((values - values.mean()) / values.std(ddof=1)).tolist()
            start += count
    metric, sizes = np.array(metric), np.array(sizes, dtype=float)
    order = np.argsort(-metric, kind="stable")
    stays = sizes.sum() - (ratio * model.record.parameters - sizes.min() / 2)
    threshold = metric[order[np.argmin(np.abs(np.cumsum(sizes[order]) - stays))]]
    gone, tied = (
        {place for place, value in enumerate(metric) if test(value)}
        for test in (lambda value: not value > threshold, lambda value: abs(value - threshold) < 1e-9)
    )
    names = model.units(WIDTH)
    told = {names.numbers[one] for unit in made.removal.units for one in unit.singles()}
    assert gone - tied <= told <= gone and told & tied  # the two heads of any layer have the same two values
    assert abs(made.share - ratio) < 0.01
