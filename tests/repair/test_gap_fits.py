"""Choosing for the repaired model: closed forms of gaps, their losses in shared walks, the best of the finalists."""

import pytest
import torch
import zoo
from marks import rest_slow

from shallower import Calibration, UserError, cli, methods, plan, prune, score
from shallower.anatomy.model import Model
from shallower.artifacts import Removal
from shallower.repair.gap_fits import MARK, GapFits, gaps_of
from shallower.repair.paired import PairedWalk
from shallower.walk.removals import LossWalk, all_nll

TOKENS = zoo.tokens(batch=24, length=24, vocab=40)
FITTED, COMPARED = TOKENS[:20], TOKENS[20:]
SHORT = Calibration(samples=4, length=24)
REPAIRED = {"objective": "repaired"}


def test_gaps_are_runs_behind_what_stays_whole() -> None:
    assert gaps_of(("0", "1", "1", "0", "0", "1")) == [(0, 3), (4, 6)]
    assert gaps_of(("1", "0", "attention", "1")) == []  # nothing in front, or something that loses a part


@pytest.mark.parametrize("name", ["llama", "gpt2", "granite", "mixtral", "olmo2"])
def test_a_fit_is_the_first_one_of_sequential(name, saved) -> None:
    model = Model(saved(name), device="cpu")
    fits = GapFits(model, FITTED)
    fits.steps([Removal.of_layers((2, 3)), Removal.of_layers((2,)), Removal.of_layers((5,))])
    assert sorted(fits.patches) == [(1, 3), (1, 4), (4, 6)]
    sequential = methods.find("compensation", "sequential")
    for layers, gap in (((2, 3), (1, 4)), ((5,), (4, 6))):
        for step in PairedWalk(model, FITTED, Removal.of_layers(layers), middles=True, gains=True):
            if step.touched:
                only = sequential.Settings(attention=False)
                ((_, fit),) = sequential.fits_of(step, only, (0.3,))
                break
        assert fits.patches[gap].keys() == fit[0.3].keys()
        for weight, edit in fit[0.3].items():
            assert torch.allclose(fits.patches[gap][weight].value, edit.value, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("layered", [False, True])
@pytest.mark.parametrize("units", ["layer", "sublayer"])
def test_losses_of_a_walk_are_those_of_each_repaired_model(units, layered, saved) -> None:
    model = Model(saved("llama"), device="cpu", layered=layered)
    fits = GapFits(model, FITTED)
    named = {
        "layer": [Removal.of_layers(layers) for layers in ((2,), (2, 3), (4, 5), (2, 5), (0, 4))],
        "sublayer": [Removal.told((), ["3.mlp"]), Removal.told((4,), ["3.mlp"]), Removal.told((), ["5.attention"])],
    }[units]
    found = LossWalk(model, COMPARED, steps=fits.steps)(named)
    steps = fits.steps(named)
    for removal, loss in zip(named, found, strict=True):
        patch = {}
        for place, state in enumerate(steps.states(removal)):
            patch |= fits.patches[place, int(state.removeprefix(MARK))] if state.startswith(MARK) else {}
        assert patch
        with model.patched(patch):
            wanted = float(all_nll(model, COMPARED, removal).double().sum())
        assert float(loss) == pytest.approx(wanted, rel=1e-5)
        assert float(loss) != pytest.approx(float(all_nll(model, COMPARED, removal).double().sum()), rel=1e-5)


@pytest.mark.parametrize("selection", rest_slow(["window", "greedy", "beam", "evolution"], {"window", "greedy"}))
def test_a_plan_for_the_repaired_model_is_the_best_of_its_finalists(selection, saved, tmp_path) -> None:
    model = Model(saved("llama"), device="cpu")
    found = plan(model, remove=2, selection=selection, calibration=SHORT, out=tmp_path / "plan.json", **REPAIRED)
    assert found.settings["objective"] == "repaired" and 1 <= len(found.candidates) <= 3
    best = min(found.candidates, key=lambda one: one.repaired.after)
    assert best.layers == sorted(found.removed)
    assert prune(model, found, out=tmp_path / "out", compensating="sequential").verified


def test_parts_are_chosen_for_the_repaired_model(saved) -> None:
    found = plan(Model(saved("llama"), device="cpu"), remove=3, units="sublayer", calibration=SHORT, **REPAIRED)
    assert found.selection == "greedy" and len(found.units) == 3


def test_within_a_share_of_perplexity_the_repaired_model_counts(saved) -> None:
    how = {"max_ppl_increase": "300%", "selection": "window", "calibration": SHORT, "compute": None}
    found = plan(Model(saved("llama"), device="cpu"), objective="repaired", **how)
    assert "repaired by sequential" in found.assumed


@pytest.mark.parametrize(("arguments", "message"), [
    (["--selection", "lowest"], "--objective repaired does not go with --selection lowest; it goes with"),
    (["--selection", "greedy", "--units", "width"], "--objective repaired"),
    (["--selection", "greedy", "--iterative"], "--iterative"),
    (["--objective", "best"], "known are loss, kl, repaired"),
])  # fmt: skip
def test_mistakes_are_told_in_a_line(arguments, message, saved, tmp_path, capsys) -> None:
    given = arguments if "--objective" in arguments else ["--objective", "repaired", *arguments]
    with pytest.raises(SystemExit) as end:
        cli.main(["plan", str(saved("llama")), "--ratio", "0.2", *given, "--out", str(tmp_path / "plan.json")])
    assert end.value.code == 2 and message in capsys.readouterr().err
    assert not [*tmp_path.iterdir()]


def test_what_cannot_be_repaired_is_refused(saved) -> None:
    model = Model(saved("llama"), device="cpu")
    with pytest.raises(UserError, match="needs the model"):
        plan(score(model, criterion="magnitude"), remove=1, selection="window", **REPAIRED)
    model.__dict__["replay"] = None
    with pytest.raises(UserError, match="nothing can be repaired"):
        GapFits(model, FITTED)
