"""The whole job in one command: what it makes, says and refuses, and that a killed one goes on."""

import json
import re
import shlex

import pytest
from kills import Killed, killed_after

from shallower import UserError, cli, open_model, shrink
from shallower.stages.shrink import is_ours

SHORT = ("--samples", "4", "--length", "24", "--budget", "6s", "--no-speed")


@pytest.fixture(autouse=True)
def few_samples(monkeypatch) -> None:
    monkeypatch.setattr("shallower.stages.shrink.TRAINED", 8)


def run(capsys, *arguments: object) -> str:
    """What a command prints."""
    try:
        cli.main([*map(str, arguments)])
    except SystemExit as end:
        assert not end.code, capsys.readouterr().err
    return capsys.readouterr().out


def test_one_command_makes_the_model_and_all_that_is_measured(saved, tmp_path, capsys) -> None:
    out = tmp_path / "small"
    told = run(capsys, "shrink", saved("llama"), "--remove", 2, *SHORT[:-1], "--out", out)
    names = {path.name for path in out.iterdir()}
    made = {
        "model",
        "plan.json",
        "evaluation-dense.json",
        "evaluation-pruned.json",
        "speed.json",
        "report.html",
        "report",
    }
    assert names == made and is_ours(out)
    assert "6 (without" in told and "logits equal" in told and "repaired" in told and "decoding" in told
    told_model = json.loads((out / "model" / "shallower.json").read_text())
    assert told_model["compensation"]["method"] == "local"
    assert json.loads((out / "plan.json").read_text())["settings"]["objective"] == "repaired"
    page = (out / "report.html").read_text()
    assert "Error behind each layer while it is repaired" in page and "Local training of the layers" in page
    steps = re.findall(r"^  shallower (.+)$", told.replace("\n  shallower", "\n\n  shallower"), re.MULTILINE)
    assert [one.split()[0] for one in steps] == ["plan", "prune", "evaluate", "evaluate", "bench", "report"]
    for line in steps:
        run(capsys, *shlex.split(line.replace(str(out), str(tmp_path / "single"))))
    one, other = (json.loads((tmp_path / name / "plan.json").read_text()) for name in ("single", "small"))
    assert one["removed"] == other["removed"]
    one, other = (
        json.loads((tmp_path / name / "model" / "compensation.json").read_text()) for name in ("single", "small")
    )
    assert one["settings"] == other["settings"]


def test_a_family_with_norms_behind_its_writers_and_a_share(saved, tmp_path) -> None:
    options = {"samples": 4, "length": 24, "budget": "6s", "measure_speed": False}
    made = shrink(saved("gemma2"), ratio="20%", out=tmp_path / "small", **options)
    assert (
        made.repair is not None and made.pruned.verified and open_model(made.model).record.layers == len(made.plan.kept)
    )


def test_two_models_that_do_not_fit_are_not_timed_and_old_figures_go(saved, tmp_path, monkeypatch) -> None:
    options = {"remove": 1, "samples": 4, "length": 24, "budget": "4s", "out": tmp_path / "small"}
    shrink(saved("llama"), **options)
    assert (tmp_path / "small" / "speed.json").is_file()
    monkeypatch.setattr("shallower.evaluation.speed.total_memory", lambda device: 1 << 20)
    made = shrink(saved("llama"), overwrite=True, **options)
    assert made.speed is None and not (tmp_path / "small" / "speed.json").exists()


def test_what_cannot_be_repaired_is_still_made_shallower(saved, tmp_path) -> None:
    model = open_model(saved("llama"))
    model.__dict__["replay"] = None  # as for models whose layers hand on more than the stream
    made = shrink(model, remove=1, out=tmp_path / "small", samples=4, length=24, measure_speed=False)
    assert made.repair is None and made.pruned.compensation is None and "objective" not in made.plan.settings


def test_a_killed_one_goes_on_and_another_folder_is_refused(saved, tmp_path, monkeypatch, capsys) -> None:
    out = tmp_path / "small"
    arguments = ["shrink", str(saved("llama")), "--remove", "2", *SHORT, "--out", str(out)]
    monkeypatch.setattr("shallower.stages.shrink.report", lambda folder: (_ for _ in ()).throw(Killed))
    with pytest.raises(Killed):
        cli.main(arguments)
    monkeypatch.undo()
    assert is_ours(out)
    with pytest.raises(SystemExit) as end:
        cli.main(arguments)
    assert end.value.code == 2 and "--overwrite" in capsys.readouterr().err
    assert "the report" in run(capsys, *arguments, "--overwrite")
    (out / "mine.txt").write_text("mine")
    with pytest.raises(SystemExit) as end:
        cli.main([*arguments, "--overwrite"])
    assert end.value.code == 2 and (out / "mine.txt").read_text() == "mine"


def test_a_killed_choice_goes_on(saved, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr("shallower.storage.journal.JOURNAL_SECONDS", 0.0)
    options = {
        "remove": 2,
        "samples": 4,
        "length": 24,
        "budget": "6s",
        "measure_speed": False,
        "out": tmp_path / "small",
    }
    killed_after(monkeypatch, 4, lambda: shrink(saved("llama"), **options))
    assert (tmp_path / ".small.journal").is_dir()
    assert shrink(saved("llama"), **options).pruned.verified
    assert not (tmp_path / ".small.journal").exists()


@pytest.mark.parametrize(("arguments", "message"), [
    ((), "say how much to remove"),
    (("--remove", "99"), "99 layers cannot go"),
    (("--remove", "2", "--budget", "soon"), "give a time such as"),
    (("--remove", "2", "--budget", "0.001s"), "one step of every layer"),
])  # fmt: skip
def test_mistakes_are_told_in_a_line(arguments, message, saved, tmp_path, capsys) -> None:
    with pytest.raises(SystemExit) as end:
        cli.main(
            [
                "shrink",
                str(saved("llama")),
                *arguments,
                "--samples",
                "4",
                "--length",
                "24",
                "--out",
                str(tmp_path / "o"),
            ]
        )
    error = capsys.readouterr().err.splitlines()[-1]
    assert end.value.code == 2 and error.startswith("error: ") and message in error
    assert not (tmp_path / "o" / "model").exists()


def test_a_folder_with_other_things_is_left_alone(saved, tmp_path) -> None:
    (tmp_path / "o").mkdir()
    (tmp_path / "o" / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match="exists and is not empty"):
        shrink(saved("llama"), remove=1, out=tmp_path / "o")


def test_an_iterative_choice_is_taken_as_it_is_given(saved, tmp_path) -> None:
    options = {"samples": 4, "length": 24, "budget": "4s", "measure_speed": False}
    made = shrink(saved("llama"), remove=2, iterative=True, refit="magnitude", out=tmp_path / "small", **options)
    assert (made.plan.selection, made.plan.iterative, made.plan.refit) == ("lowest", True, "magnitude")
