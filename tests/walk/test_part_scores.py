"""Scores of attention and MLP equal literal transcriptions on a plain model; plans of parts keep their amounts."""

import contextlib
from dataclasses import replace

import numpy as np
import pytest
import torch
from kills import SHORT, keep_every_step, killed_after
from literal import TOKENS, plain
from marks import rest_slow
from torch.nn.functional import cosine_similarity, cross_entropy

import shallower
from shallower import Amount, Calibration, Compute, SelectionOptions, UserError, artifacts, plan, score
from shallower.artifacts import Removal, Unit
from shallower.runtime.progress import shown
from shallower.stages.score import rescorer
from shallower.storage.journal import journaled

MODULES = {  # what writes to the stream, and the names of the parameters of either part
    "llama": (("self_attn", "mlp"), ("self_attn", "input_layernorm"), ("mlp", "post_attention_layernorm")),
    "gpt_neox": (("attention", "mlp"), ("attention", "input_layernorm"), ("mlp", "post_attention_layernorm")),
}
PARALLEL = ("gpt_neox",)
CPU = Compute(device="cpu")
CHEAP = {"calibration": Calibration(samples=4, length=16), "compute": CPU}


@pytest.fixture
def calibration(tmp_path) -> Calibration:
    np.save(tmp_path / "tokens.npy", TOKENS.numpy())
    return Calibration(tokens=str(tmp_path / "tokens.npy"))


def layers_of(model) -> torch.nn.ModuleList:
    return model.model.layers if hasattr(model, "model") else model.gpt_neox.layers


def loss_of(model) -> torch.Tensor:
    logits = model(input_ids=TOKENS, use_cache=False).logits[:, :-1].flatten(0, 1)
    return cross_entropy(logits, TOKENS[:, 1:].flatten())


def seen(folder, name) -> dict[str, dict[Unit, float]]:
    """Scores by hand: criterion -> unit -> score."""
    model = plain(folder).float()
    writers, *own = MODULES[name]
    streams: dict[int, torch.Tensor] = {}
    given: dict[Unit, torch.Tensor] = {}
    gates: dict[Unit, torch.Tensor] = {}

    def gate(unit):
        gates[unit] = torch.ones((), requires_grad=True)

        def scaled(_, __, output):
            first = output[0] if isinstance(output, tuple) else output
            given[unit] = first.detach()
            return (first * gates[unit], *output[1:]) if isinstance(output, tuple) else first * gates[unit]

        return scaled

    with contextlib.ExitStack() as hooks:
        for index, layer in enumerate(layers_of(model)):
            keep = layer.register_forward_pre_hook(
                lambda _, args, kwargs, index=index: streams.update({index: args[0].detach()}), with_kwargs=True
            )
            hooks.callback(keep.remove)
            for part, writer in zip(("attention", "mlp"), writers, strict=True):
                module = layer.get_submodule(writer)
                hooks.callback(module.register_forward_hook(gate(Unit(index, part))).remove)
        loss = loss_of(model)
        slopes = dict(zip(gates, torch.autograd.grad(loss, list(gates.values()), retain_graph=True), strict=True))
    model.requires_grad_(True).zero_grad()
    loss_of(model).backward()
    found = {name: {} for name in ("gate", "block_influence", "taylor", "magnitude")}
    for unit, slope in slopes.items():
        found["gate"][unit] = -float(slope)
        before = streams[unit.layer]
        if unit.part == "mlp" and name not in PARALLEL:
            before = before + given[Unit(unit.layer, "attention")]
        cosine = cosine_similarity(before.double(), (before + given[unit]).double(), dim=-1)
        found["block_influence"][unit] = 1 - float(cosine.mean())
        names = own[unit.part == "mlp"]
        weights = [
            weight for key, weight in layers_of(model)[unit.layer].named_parameters() if key.partition(".")[0] in names
        ]
        found["taylor"][unit] = sum(float((weight * weight.grad).detach().double().abs().sum()) for weight in weights)
        found["magnitude"][unit] = sum(float(weight.detach().double().abs().sum()) for weight in weights)
    return found


@pytest.mark.parametrize("layered", [False, True])
@pytest.mark.parametrize("name", MODULES)
def test_scores_of_parts(name, layered, saved, calibration) -> None:
    criteria = ["gate", "block_influence", "taylor", "magnitude"]
    compute = Compute(device="cpu", layered=layered)
    scored = shallower.score(
        saved(name), criterion=criteria, units="sublayer", calibration=calibration, compute=compute
    )
    for one, by_hand in zip(scored, seen(saved(name), name).values(), strict=True):
        assert dict(zip(map(Unit.parse, one.units), one.scores, strict=True)) == pytest.approx(
            by_hand, rel=1e-3, abs=1e-6
        )


def test_kinds_of_units(saved, calibration) -> None:
    both, attention, mlp = (
        shallower.score(saved("llama"), criterion="taylor", units=kind, calibration=calibration, compute=CPU)
        for kind in ("sublayer", "attention", "mlp")
    )
    scores = dict(zip(both.units, both.scores, strict=True))
    for one in (attention, mlp):
        assert dict(zip(one.units, one.scores, strict=True)) == pytest.approx({key: scores[key] for key in one.units})
    whole = shallower.score(saved("llama"), criterion="taylor", calibration=calibration, compute=CPU)
    assert whole.scores == pytest.approx([scores[f"{i}.attention"] + scores[f"{i}.mlp"] for i in range(8)])
    assert sum(both.units.values()) == sum(both.model.layer_parameters)


def test_a_layer_that_is_one_part_is_a_unit_as_a_whole(saved) -> None:
    with pytest.raises(UserError, match=r"^units=mlp: no layer of .* has such a part"):
        shallower.score(saved("mamba"), criterion="magnitude", units="mlp", compute=CPU)
    with pytest.raises(UserError, match=r"layer 0 has no parts that can go alone"):
        shallower.score(saved("minimax"), criterion="magnitude", units="sublayer", compute=CPU)


@pytest.mark.parametrize("selection", ["lowest", "greedy", "beam", "evolution"])
def test_an_amount_of_parameters_is_met(selection, saved) -> None:
    """A target is met with the fewest units; a share is the nearest."""
    options = {"criterion": "taylor", "units": "sublayer", **CHEAP}
    model = shallower.open_model(saved("llama"), CPU)
    choosing = SelectionOptions(selection, {"generations": "2"} if selection == "evolution" else {})
    target = model.record.parameters - 70_000
    plan = shallower.plan(model, amount=Amount(target_params=target), choosing=choosing, **options)
    assert plan.params_after <= target
    smallest = min(plan.units.values())
    if selection in ("lowest", "greedy"):
        last = [*plan.units][-1]
        assert plan.params_after + plan.units[last] > target or Unit.parse(last).layer in plan.removed
    assert plan.params_after > target - 70_000 + smallest


def test_iterative_plans_of_parts(saved) -> None:
    model = shallower.open_model(saved("llama"), CPU)
    choosing = SelectionOptions("lowest", iterative=True)
    plan = shallower.plan(
        model, amount=Amount(remove=3), choosing=choosing, criterion="gate", units="sublayer", **CHEAP
    )
    removal = Removal.of(())
    for name in plan.units:
        scored = rescorer(model, "gate", None, model.units("sublayer"), CHEAP["calibration"])(removal)
        units = model.units("sublayer")
        allowed = [number for number in scored if 1 <= units.listing[number].unit.layer < 7]
        assert units.name(min(allowed, key=scored.__getitem__)) == name
        removal = removal.plus(Unit.parse(name))


def test_a_journal_tells_kinds_of_units_apart(saved, tmp_path) -> None:
    """The same removal, scored among MLPs and among all parts: the numbers of the units are not the same."""
    model = shallower.open_model(saved("llama"), CPU)
    with journaled(tmp_path / "plan.json"):
        mlps, both = (
            rescorer(model, "gate", None, model.units(kind), CHEAP["calibration"])(Removal.of((Unit(5, "mlp"),)))
            for kind in ("mlp", "sublayer")
        )
    assert len(mlps) == 7 and len(both) == 15
    assert mlps[0] == pytest.approx(both[1], rel=1e-5)


@pytest.mark.parametrize(
    ("criterion", "layered"), rest_slow([("taylor", True), ("perplexity", False), ("gate", False)], {("taylor", True)})
)
def test_a_killed_score_of_parts_goes_on(criterion, layered, saved, tmp_path, monkeypatch, capsys) -> None:
    keep_every_step(monkeypatch)
    compute = replace(CPU, layered=layered)
    options = {"criterion": criterion, "calibration": SHORT, "units": "sublayer", "compute": compute}
    wanted = score(saved("qwen3"), **options)
    for count in (1, 3, 2):
        killed_after(monkeypatch, count, lambda: score(saved("qwen3"), **options, out=tmp_path / "scores.json"))
    with shown():
        got = score(saved("qwen3"), **options, out=tmp_path / "scores.json")
    assert " 6 of " in capsys.readouterr().err.split("resuming at")[-1]
    assert got.scores == wanted.scores and len(got.scores) == 16
    assert [path.name for path in tmp_path.iterdir()] == ["scores.json"]


def test_a_killed_search_among_parts_goes_on(saved, tmp_path, monkeypatch) -> None:
    keep_every_step(monkeypatch)
    choosing = SelectionOptions("greedy", keep_first=0, keep_last=0)
    options = {"amount": Amount(remove=3), "choosing": choosing, "calibration": SHORT, "units": "sublayer"}
    wanted = plan(saved("qwen3"), **options, compute=CPU)
    for count in (2, 12, 5):
        killed_after(
            monkeypatch, count, lambda: plan(saved("qwen3"), **options, compute=CPU, out=tmp_path / "plan.json")
        )
    got = plan(saved("qwen3"), **options, compute=CPU, out=tmp_path / "plan.json")
    assert (got.units, got.trace) == (wanted.units, wanted.trace) and len(got.units) == 3


def test_a_plan_of_parts_is_kept(saved, tmp_path) -> None:
    """Both parts of a layer are the whole layer; names, counts and files agree."""
    plan = shallower.drop(saved("llama"), "5.mlp, 3.attention, 3.mlp, 6", compute=CPU, out=tmp_path / "plan.json")
    assert artifacts.load(tmp_path / "plan.json", "plan") == plan
    assert plan.removed == [3, "5.mlp", 6] and [*plan.units] == [
        "5.mlp",
        "3.attention",
        "3.mlp",
        "6.attention",
        "6.mlp",
    ]
    assert plan.removal == Removal.of((Unit(3), Unit(6), Unit(5, "mlp")))
    gone = 2 * plan.model.layer_parameters[3] + plan.units["5.mlp"]
    assert plan.params_after == plan.params_before - gone
    found = shallower.evaluate(saved("llama"), removed="5.mlp,3,6", compute=CPU)
    assert found.removal == plan.removal and found.parameters == plan.params_after


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ("5.ffn", "'5.ffn' is no unit; write 12, 12.attention, 12.mlp or"),
        ("5.mlp,5", "names 5.mlp beside layer 5, of which it is a part; name one of them"),
        ("5.MLP, 5.mlp-7.mlp", "'5.mlp-7.mlp' is no unit; write 12, 12.attention or 3-5.mlp"),
        ("5.mlp,5.mlp", "names 5.mlp twice; name each unit once"),
        ("8.mlp", "8.mlp: the model has the layers 0 to 7"),
        ("0-7.mlp, 0-7.attention", "at least one must go and one must stay"),
    ],
)
def test_units_that_are_none(asked, said, saved) -> None:
    with pytest.raises(UserError, match="layers") as caught:
        shallower.drop(saved("llama"), asked, compute=CPU)
    assert said in str(caught.value) and "\n" not in str(caught.value)


def test_what_only_whole_layers_know(saved) -> None:
    with pytest.raises(UserError, match=r"selection=window chooses among whole layers; with units=mlp go beam"):
        shallower.plan(saved("llama"), remove=2, selection="window", units="mlp", compute=CPU)
    scores = shallower.score(saved("llama"), criterion="block_influence", units="mlp", **CHEAP)
    assert scores.windows is None
    assert shallower.plan(scores, remove=2).selection == "lowest"
    with pytest.raises(UserError, match="scores were given"):
        shallower.plan(scores, remove=2, units="mlp")
