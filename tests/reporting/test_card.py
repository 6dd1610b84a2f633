"""The model card of a written model: its metadata, what it tells, what it leaves alone."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import artifacts_by_hand as hand
import pytest
import yaml
from commands import status

from shallower import Calibration, RepairOptions, UserError, card, compensate, drop, prune
from shallower.artifacts import Evaluation, load, save
from shallower.reporting.card import BASE_CARD, CARD, MARK, Base, card_text, metadata

BASE = """---
license: llama3.1
license_name: "odd \\"name\\""
language: [en, fr]
base_model: org/first
pipeline_tag: image-classification
widget: [{text: hi}]
---
# The base
"""


def front(text: str) -> dict:
    """The metadata as YAML readers see it."""
    assert text.startswith("---\n")
    return yaml.safe_load(text.split("---\n")[1])


@pytest.fixture
def source(saved, tmp_path) -> Path:
    """A model with a card of its own."""
    folder = shutil.copytree(saved("llama"), tmp_path / "in")
    (folder / CARD).write_text(BASE)
    return folder


def test_every_written_model_has_a_card(source, tmp_path) -> None:
    prune(source, drop(source, (1, 4)), out=tmp_path / "my-model")
    text = (tmp_path / "my-model" / CARD).read_text()
    assert front(text) == {
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        "base_model": "org/first",
        "license": "llama3.1",
        "license_name": 'odd "name"',
        "language": ["en", "fr"],
        "tags": ["shallower", "depth-pruning", "layer-pruning"],
    }
    for said in (
        "# my-model",
        "2 of its 8 layers",
        "numbered from 0: 1, 4",
        "bit for bit",
        'from_pretrained("my-model")',
        "not measured",
    ):
        assert said in text
    assert (tmp_path / "my-model" / BASE_CARD).read_text() == BASE


def test_nothing_is_made_up(saved, tmp_path) -> None:
    prune(saved("llama"), drop(saved("llama"), (1,)), out=tmp_path / "out", verify=False)
    text = (tmp_path / "out" / CARD).read_text()
    assert set(front(text)) == {"library_name", "pipeline_tag", "tags"}
    assert "not verified (verify=False was given)" in text and not (tmp_path / "out" / BASE_CARD).exists()


def test_pruned_twice_keeps_the_card_of_the_first(source, tmp_path) -> None:
    prune(source, drop(source, (1, 4)), out=tmp_path / "one")
    prune(tmp_path / "one", drop(tmp_path / "one", (0, 2)), out=tmp_path / "two")
    text = (tmp_path / "two" / CARD).read_text()
    assert (tmp_path / "two" / BASE_CARD).read_text() == BASE
    assert front(text)["license"] == "llama3.1" and "2, 5-7" in text and "6 layers" in text


def test_a_repair_is_told(saved, tmp_path) -> None:
    how = RepairOptions("magnitude", {}, Calibration(samples=4, length=16, at_most=True))
    made = compensate(saved("llama"), drop(saved("llama"), (3,)), compensating=how, out=tmp_path / "out")
    text = (tmp_path / "out" / CARD).read_text()
    assert f"repair: `magnitude`, {len(made.compensation.changed)} weight" in text
    assert "held-out calibration tokens" in text and (tmp_path / "out" / "compensation.png").read_bytes().startswith(
        b"\x89PNG"
    )


def test_what_is_measured_later_gets_in(source, tmp_path, capsys) -> None:
    out = tmp_path / "out"
    prune(source, drop(source, (1, 4)), out=out)
    for name, model in (("dense", source), ("small", out)):
        assert (
            status("evaluate", model, "--length", "16", "--max-tokens", "64", "--out", tmp_path / f"{name}.json") == 0
        )
    assert status("card", out, tmp_path / "dense.json", tmp_path / "small.json") == 0
    text = (out / CARD).read_text()
    base, small = (
        load(tmp_path / f"{name}.json", "evaluation").perplexity["shipped"].value for name in ("dense", "small")
    )
    assert f"×{small / base:.3f}" in text and "not measured" not in text and front(text)["license"] == "llama3.1"


def test_what_is_not_ours_is_left_alone(source, saved, tmp_path, capsys) -> None:
    out = tmp_path / "out"
    prune(source, drop(source, (1, 4)), out=out)
    save(hand.everything()["quality/small.json"], tmp_path / "other.json")
    with pytest.raises(UserError, match=r"other\.json is of another model"):
        card(out, [tmp_path / "other.json"])
    (out / CARD).write_text("mine")
    assert status("card", out) == 2 and "somebody else" in capsys.readouterr().err
    assert (out / CARD).read_text() == "mine"
    assert status("card", saved("llama")) == 2


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("no front matter", {}),
        ("---\nlicense: mit\n---", {"license": "mit"}),
        ("---\r\nlicense: mit\r\n---\r\n# x", {"license": "mit"}),
        ("---\n- a\n- b\n---\n", {}),
        ("---\n{unclosed\n---\n", {}),
        ("---\n" + "[" * 5000 + "\n---\n", {}),
        ("---\n!!python/object/apply:os.system ['true']\n---\n", {}),
    ],
)
def test_metadata_of_other_cards(text, found) -> None:
    assert metadata(text) == found


def test_odd_metadata_is_left_out() -> None:
    base = Base(
        "org/tiny", {"license": {"a": 1}, "language": [1, 2], "license_name": "x" * 999, "license_link": "https://a/b"}
    )
    text = card_text(hand.pruned(hand.plan(), "small0"), "x", base)
    assert {"license", "language", "license_name"} & set(front(text)) == set()
    assert (front(text)["base_model"], front(text)["license_link"]) == ("org/tiny", "https://a/b")


def test_figures_tasks_and_commands_of_a_card() -> None:
    made = hand.everything()
    evaluations = [record for record in made.values() if isinstance(record, Evaluation)]
    pruned = made["model/shallower.json"]
    command = "shallower prune /home/me/tiny --out=/home/me/model --dataset https://me:secret@host/x"
    pruned = replace(pruned, provenance=replace(hand.MADE, command=command))
    text = card_text(pruned, "a|b <i>", Base("org/tiny"), evaluations=evaluations)
    assert "| perplexity, prose, length 128 | 10.00 | 12.00 (×1.200) |" in text
    assert "| arc\\_easy, acc | 0.500 ± 0.020 | 0.400 ± 0.020 |" in text
    assert "shallower prune tiny --out=model" in text and "secret" not in text and "/home" not in text
    assert "# a\\|b &lt;i&gt;" in text and MARK in text and json.dumps("a|b <i>") in text
    (index,) = front(text)["model-index"]
    told = [(one["dataset"]["name"], one["metrics"][0]["type"], one["metrics"][0]["value"]) for one in index["results"]]
    assert (index["name"], told) == ("a|b <i>", [("prose", "perplexity", 12.0), ("arc_easy", "acc", 0.4)])
