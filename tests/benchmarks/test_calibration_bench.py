"""The calibration benchmark on a tiny random model, and its tables from results made up here."""

import json
import math
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "benchmarks/calibration.py"
KINDS = ["novels", "mixed", "shipped"]
TEXTS = ["novels", "code", "newspapers"]


@pytest.fixture
def content(bench) -> dict:
    """A model of 8 layers, two kinds, one size; calibrated on novels other layers go than on code; no greedy."""
    removal = bench("criteria").removal
    pieces, took = {}, {"seconds": 1.0, "peak_memory_bytes": 0}
    for kind, gone, agreement in (("novels", (2, 3), 2), ("code", (3, 4), 1), ("mixed", (3, 4), 2)):
        plans = {"lowest gate": {"removed": [*gone], "agreement": agreement}}
        pieces[f"score tiny {kind} 4 gate"] = {"plans": plans, "passes": [16, 8], **took}
    for gone, factors in (((), (1, 1, 1)), ((2, 3), (9, 2, 3)), ((3, 4), (4, 9, 3))):
        for text, factor in zip(TEXTS, factors, strict=True):
            pieces[f"plain tiny {text} {removal(gone)}"] = {"nll": 2 + math.log(factor)}
    return {
        "date": "2000-01-01",
        "settings": {"sizes": [4], "length": 8, "evaluation": {"length": 8}},
        "kinds": {"novels": {"calibration": ["a"], "evaluation": ["b"]}},
        "calibrated": ["novels", "code"],
        "texts": TEXTS,
        "versions": {"torch": "0", "transformers": "0", "python": "0"},
        "machine": {"cpu": "none", "torch_threads": 1, "instruction_sets": []},
        "walks": {"flows": ["gate"], "greedy": ["greedy"]},
        "models": {"tiny": {"layers": 8, "removed": 2, "segments": 3}},
        "pieces": pieces,
    }


def run(out: Path, *options: str) -> dict:
    """Results of the script on the tiny model."""
    command = [sys.executable, str(SCRIPT), "--tiny", "--kinds", *KINDS, "--out", str(out), *options]
    own = {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "SHALLOWER_DATA": ""}
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | own)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(out.read_text())


@pytest.mark.slow
def test_a_second_start_goes_on_and_says_what_is_not_run(tmp_path) -> None:
    out = tmp_path / "calibration.json"
    first = run(out, "--sizes", "6", "--criteria", "gate", "angular", "data-free")
    scored = {key.removeprefix("score small-llama ") for key in first["pieces"] if key.startswith("score ")}
    assert scored == {f"{kind} 6 {name}" for kind in KINDS for name in ("gate", "angular")}
    text = out.with_suffix(".md").read_text()
    assert "| lowest taylor |" not in text and re.search("Not run yet: .*lowest taylor", text)
    page = out.with_suffix(".md")
    page.write_text("Read here.\n" + page.read_text() + "And there.\n")
    second = run(out, "--sizes", "6")
    assert {key: second["pieces"][key] for key in first["pieces"]} == first["pieces"]
    greedy, losses, gate, streams = (
        second["pieces"][f"score small-llama novels 6 {name}"] for name in ("greedy", "perplexity", "gate", "angular")
    )
    assert losses["passes"] == [6 * 7 // 2 - 1, 0] and gate["passes"] == [12, 6] and streams["passes"] == [6, 0]
    assert greedy["passes"][0] > 6 and len(greedy["plans"]["greedy"]["removed"]) == 2
    plans = [plan for piece in second["pieces"].values() for plan in piece.get("plans", {}).values()]
    removals = {(), *(tuple(plan["removed"]) for plan in plans)}
    evaluated = [key for key in second["pieces"] if key.startswith("plain ")]
    assert len(evaluated) == len(second["texts"]) * len(removals), "each set once on each text"
    assert page.read_text().startswith("Read here.\n") and page.read_text().endswith("And there.\n")
    assert "| lowest taylor |" in page.read_text()


def test_the_worst_case_is_on_texts_of_other_kinds(bench, content) -> None:
    """Calibrated on novels, 9 on novels does not count; nor does the 9 on code of what was calibrated on code."""
    tables = bench("calibration_tables")
    one = tables.damage(content, "tiny", 4, "lowest gate", ["novels", "code"])
    assert one.worst == pytest.approx(4) and one.where == "code → novels" and one.complete
    assert one.mean == pytest.approx((2 * 3 * 4 * 3) ** 0.25)
    assert tables.damage(content, "tiny", 4, "lowest gate", ["mixed"]).worst == pytest.approx(9)
    assert "| lowest gate | 2.91 | **4.00** | code → novels |" in tables.damage_table(content, "tiny", 4)


def test_what_is_measured_in_part_is_not_called_best(bench, content) -> None:
    tables = bench("calibration_tables")
    del content["pieces"]["score tiny code 4 gate"]
    table = tables.damage_table(content, "tiny", 4)
    assert "| lowest gate | 2.45 | 3.00 (1 of 2 kinds) | novels → newspapers |" in table
    assert "| greedy |" not in tables.worst_table(content, ["tiny"])


def test_overlaps_and_halves(bench, content) -> None:
    """Of layers 2, 3 and 3, 4 one of three is common; the halves agree on 2, 1 and 2 of 2 layers."""
    assert "| lowest gate | 0.33 | 0.83 |" in bench("calibration_tables").overlap_table(content, "tiny")


def test_dialogue_is_what_is_spoken(bench, tmp_path) -> None:
    calibration = bench("calibration")
    turns = ['"Yes," said she. "No."', '"Go!"', '"I will', '"And so?" he asked.']
    curly = ["“One,” he said, “two.”", "“Three.”"]
    (tmp_path / "novel.txt").write_text("\n\n".join([*turns, "He went.", *curly, "She stayed."]), encoding="utf-8")
    assert calibration.dialogue(tmp_path, "novel.txt") == '"Yes, No."\n"Go!"\n"I will"\n"And so?"'
    assert calibration.speech(curly[0]) == '"One, two."'
