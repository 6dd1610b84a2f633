"""The quality benchmark's tables, page and picture, from results made up here."""

import json
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
DENSE, GREEDY, LOWEST = (), (3, 4), (2, 5)


@pytest.fixture
def content(bench) -> dict:
    """Two plans of two layers; greedy's is also repaired, and one method refuses."""
    removal = bench("criteria").removal
    pieces = {
        "plan greedy": {"label": "greedy", "removed": {"2": [3, 4]}, "walks": True, "seconds": 2.0, "planned": 2},
        "plan lowest taylor": {"label": "lowest taylor", "removed": {"2": [2, 5]}, "walks": False},
        f"repair 2 mean_shift {removal(GREEDY)}": {"method": "mean_shift", "removed": [3, 4], "refused": "no bias"},
    }
    pieces["plan greedy"] |= {"peak_memory_bytes": 1 << 20, "passes": [12, 0]}
    for gone, value in ((DENSE, 10.0), (GREEDY, 20.0), (LOWEST, 30.0)):
        pieces |= {f"plain {text} {removal(gone)}": {"value": value} for text in ("a", "b")}
    pieces[f"repair 2 sequential {removal(GREEDY)}"] = {
        "method": "sequential",
        "removed": [3, 4],
        "perplexity": {"a": 11.0, "b": 15.0},
        "seconds": 3.0,
        "evaluation_seconds": 1.0,
        "peak_memory_bytes": 1 << 20,
        "changed": 7,
        "loss": {"before": 3.0, "after": 2.5},
    }
    settings = {
        "sizes": [2],
        "tokens": 64,
        "length": 8,
        "long": 16,
        "budget": 9.0,
        "fitting": {"samples": 8, "length": 8},
    }
    settings |= {
        "published": {"greedy": "SLEB", "lowest taylor": "Taylor+"},
        "goals": {"2": {"ratio": 1.4, "share": 0.6}},
    }
    return {
        "date": "2000-01-01",
        "model": {"source": "tiny"},
        "layers": 8,
        "settings": settings,
        "calibration": {"samples": 2, "length": 8, "source": "text"},
        "fitting": {"sources": ["text", "books/one"]},
        "texts": {"a": {}, "b": {}},
        "long_texts": {"a at 16": {}, "b at 16": {}},
        "versions": {"torch": "0"},
        "machine": {"cpu": "none", "torch_threads": 1},
        "pieces": pieces,
    }


def test_goals_are_computed_from_the_results(bench, content) -> None:
    """1.3 after greedy's 2.0: below 1.4, and 0.65 of the best plain published one, which is more than 0.6."""
    row = bench("quality_tables").goal_table(content).splitlines()[-1]
    assert "greedy (3, 4); sequential | 1.30 | SLEB (3, 4) | 2.00 | 0.65" in row
    assert "<= 1.40: met; <= 0.60 x published: **missed**" in row


def test_what_is_missing_or_refused_stays_visible(bench, content) -> None:
    quality = bench("quality_tables")
    assert "| greedy | 3, 4 | 2.00 | refused | **1.30** |" in quality.grid_table(content, 2)
    assert "- `mean_shift`: no bias" in quality.tables(content)
    plan = {"label": "later", "removed": {"2": [6, 7]}, "walks": False}
    content["pieces"]["plan later"] = plan
    assert "| later | 6, 7 | … | … | … |" in quality.plain_table(content, 2)


def test_the_page_keeps_what_is_written_by_hand(bench, content, tmp_path, monkeypatch) -> None:
    generate = bench("generate")
    for name, file in (("QUALITY", "quality.json"), ("QUALITY_PAGE", "quality.md"), ("QUALITY_PICTURE", "quality.png")):
        monkeypatch.setattr(generate, name, tmp_path / file)
    generate.QUALITY.write_text(json.dumps(content))
    first = generate.pages()[generate.QUALITY_PAGE]
    written = first.replace("<!-- reading -->\n", "<!-- reading -->\nGreedy \\1 wins.\n")
    generate.QUALITY_PAGE.write_text(written)
    assert generate.pages()[generate.QUALITY_PAGE] == written != first


def test_the_picture_tells_what_it_shows(bench, content) -> None:
    quality = bench("quality_tables")
    drawn, digest = quality.picture(content), quality.digest(content)
    assert drawn.startswith(b"\x89PNG") and digest.encode() in drawn
    content["pieces"]["plain a without 3,4"] = {"value": 21.0}
    assert quality.digest(content) != digest


def test_layer_forwards_are_counted_as_they_are_walked(bench) -> None:
    """Every leave-one-out removal of N layers: N(N+1)/2 - 1 layer forwards, for the dense stream ends before the last
    layer.
    """
    quality = bench("quality")
    spec = quality.ways(quality.FULL)["plan lowest --iterative gradient l1"]
    assert quality.passes(spec, 30) == (60, 30)
    assert quality.passes(spec, 30, 2) == (118, 59)
    assert quality.forwards(["".join("1" if i == j else "0" for i in range(30)) for j in range(30)]) == 30 * 31 // 2 - 1
