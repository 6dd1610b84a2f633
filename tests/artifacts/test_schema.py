"""Schemas of artifacts: files of schema 1 are read and written again as schema 2 with the same numbers; what is newer,
or does not hold together, is refused in one line.
"""

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from commands import status

from shallower import UserError, artifacts
from shallower.artifacts import RECORDS

FILES = sorted((Path(__file__).parents[1] / "fixtures" / "schema1").glob("*.json"))


def content_of(name: str) -> dict[str, Any]:
    return json.loads(next(path for path in FILES if path.stem == name).read_text(encoding="utf-8"))


def read(content: Any) -> Any:
    return artifacts.read(content, content["kind"], "x.json")


def in_schema_2(content: dict[str, Any]) -> dict[str, Any]:
    plan = {"plan": content["plan"] | {"schema": 2}} if "plan" in content else {}
    return content | plan | {"schema": 2}


SINCE = {"exported", "pruned_gguf", "quantised"}  # kinds that schema 1 did not know


def test_there_is_a_file_of_every_kind() -> None:
    assert {json.loads(path.read_text())["kind"] for path in FILES} == set(RECORDS) - SINCE


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_schema_1_is_read_and_written_as_schema_2(path, tmp_path) -> None:
    """The same keys at the same places, the same numbers, in the same lines but for the schema's."""
    old = path.read_text(encoding="utf-8")
    record = artifacts.load(path, json.loads(old)["kind"])
    new = artifacts.save(record, tmp_path / "new.json")
    assert json.loads(new.read_text()) == in_schema_2(json.loads(old))
    assert new.read_text() == old.replace('"schema": 1', '"schema": 2')
    assert artifacts.load(new, record.kind) == record


@pytest.mark.parametrize("kind", sorted(set(RECORDS) - SINCE))
def test_a_newer_schema_is_refused_with_what_to_do(kind) -> None:
    content = next(one for one in map(json.loads, (path.read_text() for path in FILES)) if one["kind"] == kind)
    with pytest.raises(UserError, match=r"x\.json has schema 3; this version of shallower reads schema 1 and 2: read"):
        read(content | {"schema": 3})


def test_a_newer_plan_in_a_pruned_model_is_refused() -> None:
    content = content_of("shallower")
    with pytest.raises(UserError, match=r"plan\.schema: input should be 2"):
        read(content | {"plan": content["plan"] | {"schema": 3}})


def test_keys_that_are_not_known_are_left_aside() -> None:
    content = content_of("evaluation")
    content["perplexity"]["book"]["mood"] = content["mood"] = "good"
    assert read(content) == read(content_of("evaluation"))


@pytest.mark.parametrize(
    ("name", "place", "value", "said"),
    [
        ("scores", ("scores",), [1.0], "expected 8 finite scores, found 1"),
        ("scores", ("scores", 3), math.nan, "scores.3: input should be a finite number"),
        ("scores", ("halves",), [[1.0]], "halves must hold 8 scores each"),
        ("scores", ("calibration", "samples"), 9, "calibration: the samples of the sources do not add up"),
        ("plan", ("params_after",), 1, "params_before and params_after do not fit"),
        ("plan", ("model", "original"), [0] * 8, "model: original must hold rising numbers"),
        ("plan", ("settings",), {"norm": [1]}, "settings.norm"),
        ("shallower", ("original",), [0, 1], "original does not fit the plan"),
        ("shallower", ("verified",), {"logits": "bit for bit"}, "verified.proof.logits_difference: field required"),
        ("shallower", ("verified",), [], "verified"),
        ("unverified", ("verified", "skipped"), None, "verified.skipped.skipped: input should be a valid string"),
        ("shallower", ("compensation", "loss", "after"), "low", "compensation.loss.after"),
        ("shallower", ("healing", 0, "steps"), 0, "healing.0.steps: input should be greater than or equal to 1"),
        ("compensation", ("layers", 0, "after", "shift"), -1, "layers.0.after.shift"),
        ("compensation", ("layers", 0, "layer"), 1, "layers must name retained layers only"),
        ("compensation", ("removed",), [8], "removed names layers [8] of 8"),
        ("healing", ("rows", 2, "step"), 1, "rows must have rising steps"),
        ("healing", ("rows", 2, "eval", "book", "value"), 0, "rows.2.eval.book.value: input should be greater than 0"),
        ("healing", ("data", "length"), None, "data.length"),
        ("healing", ("reloaded",), None, "reloaded"),
        ("evaluation", ("removed",), [8], "removed leaves out layers [8] of 8"),
        ("evaluation", ("perplexity", "book", "parts", 0, 1), 30, "perplexity.book: the tokens of the parts"),
        ("evaluation", ("tasks", "piqa", "count"), 7, "tasks.piqa: items must be at most 7"),
        ("speed", ("against",), None, "rows, analytic and speedups speak of a model to hold against"),
        ("speed", ("rows", 0, "decode", "p10"), None, "rows.0.measured.decode.p10"),
        ("speed", ("settings", "typical"), "best", "settings.typical: input should be 'median' or 'mean'"),
        ("sweep", ("rows", 1, "layers"), [], "rows.1: layers must name 1 layers"),
        ("sweep", ("order",), [9], "layers beyond the 8"),
        ("comparison", ("base",), "nobody", "rows must begin with the base"),
        ("comparison", ("columns",), [], "columns lack layers"),
        ("comparison", ("rows", 0, "figures", "layers", "low"), 1.0, "an interval must have two ends"),
        ("inspection", ("layer_kinds",), [], "layer_kinds must have 8 entries"),
        ("inspection", ("removable",), [8], "removable names layers beyond the 8"),
    ],
)
def test_what_does_not_hold_together_is_refused(name, place, value, said) -> None:
    content = content_of(name)
    *way, last = place
    inside = content
    for step in way:
        inside = inside[step]
    inside[last] = value
    with pytest.raises(UserError) as error:
        read(content)
    assert f"x.json is not a valid {content['kind']} file: " in str(error.value) and said in str(error.value)
    assert "\n" not in str(error.value)


def test_a_record_is_checked_when_it_is_made() -> None:
    plan = read(content_of("plan"))
    with pytest.raises(UserError, match="not a valid plan record: removed and kept together must name"):
        replace(plan, removed=[0])
    with pytest.raises(UserError, match=r"scores\.0: input should be a finite number: does the model yield NaN"):
        replace(read(content_of("scores")), scores=[math.nan] * 8)


def test_reports_and_comparisons_read_schema_1(tmp_path, capsys) -> None:
    for path in FILES:
        if path.stem != "lora":  # of the dense model, whose healing belongs to no pruning
            (tmp_path / path.stem).mkdir()
            (tmp_path / path.stem / path.name).write_text(path.read_text())
    assert status("report", tmp_path, "--out", tmp_path / "page.html") == 0
    capsys.readouterr()
    evaluations = [tmp_path / name / f"{name}.json" for name in ("evaluation", "pruned", "tasks", "speed")]
    assert status("compare", *evaluations, "--json") == 0
    shown, old = json.loads(capsys.readouterr().out), content_of("comparison")
    assert (shown["columns"], shown["rows"]) == (old["columns"], old["rows"])
