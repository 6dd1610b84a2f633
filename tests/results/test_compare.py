"""Comparisons of hand-made artifacts: statistics, what may be held against what, merging, names, the files,
bad input.
"""

import dataclasses
import json
import math
import shutil

import artifacts_by_hand as hand
import numpy as np
import pytest
from commands import status
from matplotlib.image import imread

from shallower import UserError, artifacts, compare
from shallower.artifacts import (
    ComparedFigure,
    Evaluation,
    FailedRow,
    ModelRecord,
    Plan,
    Pruned,
    RepairReport,
    Speed,
    save,
)
from shallower.reporting import pareto
from shallower.reporting.comparison_table import markdown
from shallower.results import bootstrap, comparison
from shallower.results.entries import entries_of
from shallower.results.sources import CompareArgument
from shallower.runtime.provenance import Provenance

VERSIONS = {"python": "3"}


def model(name: str = "dense", layers: int = 8, fingerprint: str | None = None) -> ModelRecord:
    return ModelRecord(
        f"models/{name}",
        "some",
        layers,
        1000 + 100 * layers,
        [100] * layers,
        fingerprint or f"print-{name}",
        [*range(layers)],
    )


def made(second: int = 0) -> Provenance:
    return Provenance("by hand", f"2026-01-01T00:00:{second:02}+00:00", VERSIONS)


def text(nlls, tokens: int = 127, **other) -> dict:
    """An entry of Evaluation.perplexity from the mean NLL per segment."""
    mean = float(np.mean(nlls))
    given = {
        "value": math.exp(min(mean, 700)),
        "nll": mean,
        "bits_per_byte": mean / math.log(2) / 4,
        "tokens": tokens * len(nlls),
    }
    given |= {"segments": len(nlls), "length": 128, "stride": 128, "bos": "first", "hash": "tokens-a"}
    return given | {"parts": [[float(value) * tokens, tokens] for value in nlls]} | other


def task(items, **other) -> dict:
    given = {"value": float(np.mean(items)), "stderr": 0.01, "metric": "acc", "count": len(items), "version": 1.0}
    return given | {"items": [float(item) for item in items]} | other


def evaluation(of: ModelRecord, second: int = 0, **other) -> Evaluation:
    return Evaluation(model=of, **{"perplexity": {}, "dtype": "float32", "provenance": made(second)} | other)


def speed(
    of: ModelRecord,
    against: ModelRecord | None = None,
    *,
    ms: tuple[float, float] = (8.0, 10.0),
    batches=(1, 4),
    **other,
) -> Speed:
    def row(which: str, batch: int, value: float) -> dict:
        times = {
            key: {"median": part * value / 1000, "p10": value / 2000, "p90": value / 500}
            for key, part in (("prefill", 3), ("decode", 1))
        }
        sizes = {"tokens_per_second": 1000 * batch / value, "peak_memory_bytes": 10**6, "runs": 5, "bound": 0.5}
        return {"of": which, "batch": batch, "prompt": 16, "new": 8, **times, "latency": times["decode"], **sizes}

    sides = ("model", "against") if against else ("model",)
    rows = [row(which, batch, value) for which, value in zip(sides, ms, strict=False) for batch in batches]
    given = {
        "analytic": {which: hand.counted(of.parameters) for which in sides},
        "speedups": [],
        "bandwidth": None,
    }
    given |= {
        "protocol": "forced",
        "settings": {},
        "device": "cpu",
        "threads": 2,
        "seconds": 1.0,
        "dtype": "float32",
        "provenance": made(),
    }
    return Speed(model=of, against=against, rows=rows, **given | other)


def table(*found: Evaluation, speeds=()) -> artifacts.Comparison:
    """Every evaluation an argument of its own, named a, b, c …"""
    givens = [CompareArgument(f"{letter}.json", letter, [one]) for letter, one in zip("abcdefgh", found, strict=False)]
    return comparison.compare_entries(
        *entries_of(
            [*givens, *(CompareArgument(f"s{place}.json", None, [], [one]) for place, one in enumerate(speeds))]
        )
    )


def noise(seed: int = 0, count: int = 200) -> np.ndarray:
    return 3 + np.random.default_rng(seed).normal(0, 0.3, count)


def figure(found: artifacts.Comparison, row: int, column: str) -> ComparedFigure:
    return found.rows[row].figures[column]


# -- statistics


def test_equal_evaluations_differ_by_nothing_for_sure() -> None:
    items = np.random.default_rng(1).integers(0, 2, 300)
    one = {"perplexity": {"wiki": text(noise())}, "tasks": {"boolq": task(items)}}
    found = table(evaluation(model(), **one), evaluation(model("same"), **one))
    for column, none in (("perplexity wiki", 1.0), ("task boolq", 0.0), ("perplexity_ratio", 1.0)):
        own = figure(found, 1, column)
        assert (own.delta, own.delta_low, own.delta_high, own.clear, own.best) == (
            none,
            none,
            none,
            False,
            False,
        )
    assert (
        figure(found, 1, "perplexity wiki").low
        < figure(found, 1, "perplexity wiki").value
        < figure(found, 1, "perplexity wiki").high
    )


def test_a_shift_of_every_segment_is_seen_exactly() -> None:
    """Paired: the noise of the segments is the same in both, so nothing of it is in the interval."""
    found = table(
        evaluation(model(), perplexity={"wiki": text(noise())}),
        evaluation(model("b"), perplexity={"wiki": text(noise() + 0.1)}),
    )
    own = figure(found, 1, "perplexity wiki")
    assert [own.delta, own.delta_low, own.delta_high] == pytest.approx([math.exp(0.1)] * 3, rel=1e-6)
    assert own.clear and figure(found, 0, "perplexity wiki").best and not own.best
    assert figure(found, 0, "perplexity wiki").delta is None


def test_segments_count_by_their_tokens() -> None:
    parts = [[10.0 * place, place] for place in range(1, 41)] + [[2.0, 1]] * 40
    sums = bootstrap.means([np.array(parts)], "key")[0]
    assert sums.mean() == pytest.approx(sum(part[0] for part in parts) / sum(part[1] for part in parts), rel=0.01)


def test_the_interval_holds_the_truth_about_as_often_as_it_says() -> None:
    hits = 0
    for seed in range(200):
        one, other = noise(seed, 80), noise(seed, 80) + np.random.default_rng(seed + 999).normal(0.05, 0.2, 80)
        pairs = bootstrap.means([np.stack([values, np.ones(80)], axis=1) for values in (one, other)], f"run {seed}")
        low, high = bootstrap.interval(pairs[1] - pairs[0])
        hits += low <= 0.05 <= high
    assert 0.90 <= hits / 200 <= 0.99


def test_an_interval_agrees_with_the_normal_one() -> None:
    values = noise(3, 2000)
    samples = bootstrap.means([np.stack([values, np.ones(2000)], axis=1)], "wide")[0]
    half = 1.96 * values.std() / math.sqrt(2000)
    assert len(samples) == bootstrap.RESAMPLES
    assert bootstrap.interval(samples) == pytest.approx((values.mean() - half, values.mean() + half), abs=half / 8)


def test_more_draws_than_a_block_holds(monkeypatch) -> None:
    monkeypatch.setattr(bootstrap, "DRAWS_AT_ONCE", 7000)
    sums = bootstrap.resampled_sums(np.ones((50, 1)), "blocks")
    assert sums.shape == (bootstrap.RESAMPLES, 1) and (sums == 50).all()


def test_means_over_texts_and_tasks() -> None:
    rng = np.random.default_rng(0)
    items = {name: rng.integers(0, 2, 400) for name in ("boolq", "piqa")}
    base = evaluation(
        model(),
        perplexity={"x": text(noise(1)), "y": text(noise(2))},
        tasks={name: task(own) for name, own in items.items()},
    )
    worse = {name: task(own * (rng.random(400) < 0.8)) for name, own in items.items()}
    other = evaluation(model("b"), perplexity={"x": text(noise(1) + 0.1), "y": text(noise(2) + 0.3)}, tasks=worse)
    found = table(base, other)
    ratio, mean = figure(found, 1, "perplexity_ratio"), figure(found, 1, "task_mean")
    assert ratio.value == pytest.approx((math.exp(0.1) + math.exp(0.3)) / 2) and ratio.clear
    assert figure(found, 0, "perplexity_ratio").value == 1 and figure(found, 0, "perplexity_ratio").best
    single = [figure(found, 1, f"task {name}") for name in items]
    assert mean.value == pytest.approx(np.mean([one.value for one in single]))
    assert (
        mean.delta == pytest.approx(np.mean([one.delta for one in single])) and mean.better == "higher" and mean.clear
    )
    widths = [own.delta_high - own.delta_low for own in [mean, *single]]
    assert widths[0] < min(widths[1:])  # two tasks are surer than one


def test_few_segments_give_no_interval() -> None:
    few = {"wiki": text(noise(count=bootstrap.FEWEST - 1))}
    found = table(evaluation(model(), perplexity=few), evaluation(model("b"), perplexity=few))
    assert figure(found, 1, "perplexity wiki").delta_low is None and figure(found, 1, "perplexity wiki").clear is None
    assert any("fewer than" in note for note in found.notes)


def test_items_that_are_not_recorded_leave_the_value() -> None:
    old = {key: value for key, value in text(noise() + 0.2).items() if key != "parts"}
    found = table(
        *(
            evaluation(model(name), perplexity={"wiki": one})
            for name, one in (("a", text(noise())), ("b", old), ("c", text(noise() + 1)))
        )
    )
    assert (
        figure(found, 1, "perplexity wiki").delta == pytest.approx(math.exp(0.2))
        and not figure(found, 1, "perplexity wiki").delta_low
    )
    assert figure(found, 2, "perplexity wiki").delta_low == pytest.approx(math.e, rel=1e-6)


def test_losses_beyond_what_exp_can_hold() -> None:
    found = table(
        evaluation(model(), perplexity={"x": text(noise())}),
        evaluation(model("b"), perplexity={"x": text(noise() + 900)}),
    )
    assert math.isfinite(figure(found, 1, "perplexity x").delta_high) and artifacts.dumps(found)


def test_the_best_of_ties() -> None:
    same = {"perplexity": {"wiki": text(noise())}}
    found = table(evaluation(model(), **same), evaluation(model("b", 6), **same), evaluation(model("c", 6), **same))
    assert [row.figures["layers"].best for row in found.rows] == [False, True, True]
    assert not any(row.figures["perplexity wiki"].best for row in found.rows)  # all alike


# -- what may be held against what


@pytest.mark.parametrize(
    ("change", "said"),
    [({"hash": "b"}, "tokens"), ({"length": 64}, "length"), ({"stride": 64}, "stride"), ({"bos": "none"}, "BOS rule")],
)
def test_other_tokens_or_protocols_are_not_held_against_each_other(change, said) -> None:
    one = evaluation(model(), perplexity={"wiki": text(noise()), "ptb": text(noise())})
    other = evaluation(model("b"), perplexity={"wiki": text(noise(), **change), "ptb": text(noise())})
    found = table(one, other)
    assert found.columns == ["layers", "parameters", "perplexity ptb", "perplexity_ratio"]
    assert any(
        note.startswith("perplexity wiki: b (") and note.endswith(f"held against a: other {said}")
        for note in found.notes
    )
    assert any("over ptb" in note for note in found.notes)


@pytest.mark.parametrize("change", [{"metric": "acc_norm"}, {"version": 2.0}, {"count": 51}, {"hash": "b"}])
def test_other_tasks_are_not_held_against_each_other(change) -> None:
    both = {"perplexity": {"wiki": text(noise())}}
    found = table(
        evaluation(model(), **both, tasks={"boolq": task([0, 1] * 25)}),
        evaluation(model("b"), **both, tasks={"boolq": task([0, 1] * 25, **change)}),
    )
    assert "task boolq" not in found.columns and any(
        note.startswith("boolq: b (0.5) is not held against a") for note in found.notes
    )


def test_other_tokenizers_are_compared_in_bits_per_byte() -> None:
    """The same bytes in other tokens.

    But not a text that is merely named alike, nor one cut after a number of tokens.
    """
    one = evaluation(model(), perplexity={"wiki": text(noise(1, 100), tokens=100)})

    def other(count: int, bits: float) -> Evaluation:
        return evaluation(
            model("b"), perplexity={"wiki": text(noise(2, count), tokens=100, hash="other", bits_per_byte=bits)}
        )

    size = one.perplexity["wiki"].nll * 100 * 100 / math.log(2) / one.perplexity["wiki"].bits_per_byte
    bits = float(np.mean(noise(2, 80))) * 80 * 100 / math.log(2) / size
    found = table(one, other(80, bits))
    own = figure(found, 1, "bits_per_byte wiki")
    assert (
        own.value == bits
        and own.delta == pytest.approx(bits / one.perplexity["wiki"].bits_per_byte)
        and own.delta_low is None
    )
    assert "perplexity wiki" not in found.columns
    for wrong in (other(80, 2 * bits), other(100, one.perplexity["wiki"].bits_per_byte)):
        with pytest.raises(UserError, match="no figure is shared: a has perplexity wiki at length 128; b has"):
            table(one, wrong)


def test_a_column_that_only_one_has_is_a_note() -> None:
    both = {"wiki": text(noise())}
    found = table(
        evaluation(model(), perplexity=both), evaluation(model("b"), perplexity=both | {"ptb": text(noise())})
    )
    assert "perplexity ptb" not in found.columns and "perplexity ptb: only b has it" in found.notes


def test_the_base_may_lack_a_column_that_others_share() -> None:
    base, b, c = (evaluation(model(name), perplexity={"wiki": text(noise())}) for name in "abc")
    more = [dataclasses.replace(one, tasks={"boolq": task([0, 1] * 20)}) for one in (b, c)]
    own = figure(table(base, *more), 2, "task boolq")
    assert own.value == 0.5 and own.delta is None and own.low < 0.5 < own.high


def test_dtypes_that_differ_are_noted() -> None:
    both = {"wiki": text(noise())}
    found = table(evaluation(model(), perplexity=both), evaluation(model("b"), perplexity=both, dtype="bfloat16"))
    assert "evaluated in different dtypes: a in float32, b in bfloat16" in found.notes


# -- speed


def test_speed_goes_to_its_models_at_the_smallest_shared_setting() -> None:
    both = {"perplexity": {"wiki": text(noise())}}
    dense, pruned = model(), model("pruned", 6)
    found = table(
        evaluation(dense, **both), evaluation(pruned, **both), speeds=[speed(pruned, dense, batches=(4, 2, 8))]
    )
    assert [figure(found, row, "decode_ms").value for row in (0, 1)] == pytest.approx([10, 8])
    assert figure(found, 1, "decode_ms").delta == pytest.approx(0.8) and figure(found, 1, "decode_ms").best
    assert (
        figure(found, 1, "tokens_per_second").value == pytest.approx(250) and figure(found, 1, "tokens_per_second").best
    )
    assert (
        figure(found, 1, "prefill_ms").value == pytest.approx(24)
        and figure(found, 1, "weight_bytes").value == 4 * pruned.parameters
    )
    how = "speed: cpu, 2 threads, protocol forced, cache dynamic, typical median"
    assert f"{how}; batch 2, prompt 16, 8 new tokens" in found.notes


def test_speeds_on_other_devices_are_not_mixed() -> None:
    both = {"perplexity": {"wiki": text(noise())}}
    records = [model(), model("b", 6), model("c", 4)]
    speeds = [speed(records[0]), speed(records[1]), speed(records[2], device="cuda")]
    found = table(*(evaluation(one, **both) for one in records), speeds=speeds)
    assert ["decode_ms" in row.figures for row in found.rows] == [True, True, False]
    assert "speed: c was not measured under the same conditions and setting" in found.notes


def test_the_protocols_mean_and_a_setting_without_memory() -> None:
    both = {"perplexity": {"wiki": text(noise())}}
    dense, pruned = model(), model("pruned", 6)
    found = speed(pruned, dense, settings={"typical": "mean", "cache": "static", "compiled": True})
    rows = [
        dataclasses.replace(row, decode=dataclasses.replace(row.decode, mean=2 * row.decode.median))
        for row in found.rows
    ]
    rows[-2:-1] = [FailedRow("against", 1, 16, 8, "out of memory")]
    found = dataclasses.replace(found, rows=rows)
    shown = table(evaluation(dense, **both), evaluation(pruned, **both), speeds=[found])
    assert [figure(shown, row, "decode_ms").value for row in (0, 1)] == pytest.approx([20, 16])
    said = (
        "speed: cpu, 2 threads, protocol forced, cache static, compiled, typical mean; batch 4, prompt 16, 8 new tokens"
    )
    assert said in shown.notes


def test_models_known_by_their_speed_alone() -> None:
    found = comparison.compare_entries(
        *entries_of([CompareArgument("run", None, [], [speed(model("small", 6), model())])])
    )
    assert [row.name for row in found.rows] == ["dense", "small"] and "decode_ms" in found.columns


# -- folders, merging, names


@pytest.fixture
def run(tmp_path):
    """``run(name, file=record, …)``: a folder with artifacts."""

    def write(name: str, **records):
        for file, record in records.items():
            save(record, tmp_path / name / f"{file}.json")
        return str(tmp_path / name)

    return write


def test_a_run_may_hold_the_dense_and_the_pruned_model(run) -> None:
    """Also pruned virtually, with speed; the dense one is the base though it is named last, and is shown once."""
    both = {"perplexity": {"wiki": text(noise())}}
    dense, small = model(), model("small", 6)
    one = run(
        "one",
        a=evaluation(small, **both),
        b=evaluation(dense, **both),
        v=evaluation(dense, removed=[3, 4], **both),
        s=speed(small, dense),
    )
    two = run("two", a=evaluation(model("other", 6), **both), d=evaluation(dense, **both))
    found = compare([one, two])
    assert [row.name for row in found.rows] == ["dense", "dense without 3,4", "small", "two"]
    assert [(row.layers, row.parameters) for row in found.rows] == [(8, 1800), (6, 1600), (6, 1600), (6, 1600)]
    assert ["decode_ms" in row.figures for row in found.rows] == [True, False, True, False]


def test_evaluations_of_one_model_are_merged(run) -> None:
    dense, other = model(), model("other", 6)
    texts = {"wiki": text(noise()), "ptb": text(noise(1))}
    first = evaluation(dense, perplexity={"wiki": text(noise()), "ptb": text(noise(2), hash="old")})
    second = evaluation(dense, 5, perplexity={"ptb": texts["ptb"]}, tasks={"boolq": task([0, 1] * 20)})
    again = evaluation(dense, 3, perplexity={"wiki": text(noise())})
    folder = run("run", a=second, b=first, c=again)
    found = compare([folder, run("x", e=evaluation(other, perplexity=texts, tasks={"boolq": task([0, 0, 1, 1] * 10)}))])
    assert {"perplexity wiki", "perplexity ptb", "task boolq"} <= {*found.columns}
    assert [note for note in found.notes if "more than once" in note] == [
        "perplexity ptb of run was measured more than once, with other tokens: the newest counts"
    ]


def test_names(run, tmp_path, monkeypatch) -> None:
    both = {"perplexity": {"wiki": text(noise())}}
    for name in ("p", "q"):
        run(name, quality=evaluation(model(name), **both))
    run("odd=name", quality=evaluation(model("r"), **both))
    monkeypatch.chdir(tmp_path)
    found = compare(["p/quality.json", "q/quality.json", "my own=q/quality.json", "odd=name", "p"])
    assert [row.name for row in found.rows] == ["p/quality", "q/quality", "my own", "odd=name", "p"]
    assert found.base == "p/quality"
    assert [row.name for row in compare(["p", "p"]).rows] == [f"{tmp_path.name}/p (1)", f"{tmp_path.name}/p (2)"]


def test_how_a_model_was_made_stands_below_the_table(run) -> None:
    both = {"perplexity": {"wiki": text(noise())}}
    dense, small = model(), model("small", 6)
    sizes = {"params_before": dense.parameters, "params_after": dense.parameters - 200}
    how = {
        "selection": "window",
        "criterion": "angular",
        "settings": {},
        "keep_first": 1,
        "keep_last": 1,
        "iterative": False,
    }
    plan = Plan([3, 4], [0, 1, 2, 5, 6, 7], [3, 4], **sizes, **how, model=dense, calibration=None)
    told = RepairReport("sequential", {}, hand.TOKENS, {"dense": 2.0, "before": 3.0, "after": 2.5})
    pruned = Pruned(plan, hand.PROOF, plan.kept, small.fingerprint, [], told)
    found = compare(
        [run("dense", e=evaluation(dense, **both)), run("small", e=evaluation(small, **both), shallower=pruned)]
    )
    assert found.rows[1].how == "2 of 8 layers removed (window by angular), repaired by sequential"
    assert "- small: 2 of 8 layers removed" in markdown(found)


def test_hidden_files_and_other_json_are_passed_over(run, tmp_path) -> None:
    both = {"perplexity": {"wiki": text(noise())}}
    folder = run("run", a=evaluation(model(), **both))
    run("run/.journal", b=evaluation(model("hidden"), **both))
    (tmp_path / "run" / "tokenizer.json").write_text("{broken")
    (tmp_path / "run" / "list.json").write_text("[]")
    assert [row.name for row in compare([folder, run("b", e=evaluation(model("b"), **both))]).rows] == ["run", "b"]


# -- files


@pytest.fixture
def six(run) -> list[str]:
    """Six models: quality, tasks and speed."""
    rng, names = (
        np.random.default_rng(4),
        ("dense", "window-6", "window-9", "greedy-6", "sequential-6", "sequential-9|x"),
    )
    paths = []
    for place, (name, layers) in enumerate(zip(names, (30, 24, 21, 24, 24, 21), strict=True)):
        loss = (0, 0.65, 2.3, 0.7, 0.23, 0.5)[place]
        own = ModelRecord(
            name, "some", layers, 28_000_000 + layers * 3_500_000, [3_500_000] * layers, name, [*range(layers)]
        )
        texts = {key: text(noise(seed, 60) + loss + rng.normal(0, 0.1, 60)) for seed, key in enumerate(("wiki", "ptb"))}
        tasks = {key: task(rng.random(500) < 0.55 - loss / 10) for key in ("boolq", "piqa")}
        found = {"e": evaluation(own, perplexity=texts, tasks=tasks)}
        if place != 3:
            found["s"] = speed(own, ms=(0.9 * layers + rng.normal(0, 0.3), 0))
        paths.append(f"{name}={run(f'run{place}', **found)}")
    return paths


def test_the_files(six, tmp_path) -> None:
    found = compare(six, out=tmp_path / "deep" / "out")
    folder = tmp_path / "deep" / "out"
    assert {path.name for path in folder.iterdir()} == {"comparison.json", "comparison.md", "pareto.png", "pareto.svg"}
    assert artifacts.load(folder / "comparison.json", "comparison") == found
    picture = imread(folder / "pareto.png")
    assert min(picture.shape[:2]) > 500 and picture[..., :3].std() > 0.05
    assert (folder / "pareto.svg").read_text().count("<svg") == 1


def test_the_markdown(six) -> None:
    lines = [line for line in markdown(compare(six)).splitlines() if line.startswith("| ")]
    cells = [[cell.strip() for cell in line.replace("\\|", "¦").strip("|").split("|")] for line in lines]
    assert {len(line) for line in cells} == {len(cells[0])} and cells[0][:4] == [
        "model",
        "layers",
        "parameters",
        "perplexity wiki",
    ]
    assert [line[0] for line in cells[2:]] == [
        "dense",
        "window-6",
        "window-9",
        "greedy-6",
        "sequential-6",
        "sequential-9¦x",
    ]
    for column, name in enumerate(cells[0][1:], 1):
        best = [line[0] for line in cells[2:] if line[column].startswith("**")]
        assert len(best) == (2 if name in ("layers", "parameters", "weights") else 0 if name == "peak memory" else 1), (
            name
        )
    assert "†" in cells[3][3] and "[" in cells[3][3] and cells[5][cells[0].index("decode, ms/token")] == "-"


def test_the_same_input_gives_the_same_bytes(six, tmp_path) -> None:
    for name in ("one", "two"):
        compare(six, out=tmp_path / name)
    for path in (tmp_path / "one").iterdir():
        one, two = path.read_bytes(), (tmp_path / "two" / path.name).read_bytes()
        if path.suffix == ".json":
            one, two = ({**json.loads(content), "provenance": None} for content in (one, two))
        assert one == two, path.name


def test_what_else_is_compared_does_not_move_an_interval(six) -> None:
    whole, part = compare(six), compare([six[0], six[4]])
    assert figure(whole, 4, "perplexity wiki").delta_low == pytest.approx(
        figure(part, 1, "perplexity wiki").delta_low, rel=1e-6
    )


def test_the_front() -> None:
    points = [
        pareto.Point(name, x, y, None, None)
        for name, x, y in (("a", 1, 5), ("b", 2, 3), ("c", 2, 4), ("d", 3, 3), ("e", 4, 1))
    ]
    assert [point.name for point in pareto.front(points, "lower")] == ["a", "b", "e"]
    assert [point.name for point in pareto.front(points, "higher")] == ["a"]


def test_labels_do_not_cover_each_other(six) -> None:
    """Measured on the drawing: no two names share a place, and none leaves its panel."""
    boxes = pareto.label_boxes(compare(six))
    assert [len(panel) for panel in boxes] == [6, 5, 6, 5]
    for panel in boxes:
        for place, one in enumerate(panel):
            assert not any(one.overlaps(other) for other in panel[:place])


def test_one_model_that_is_best_at_everything_is_drawn() -> None:
    """The front is a point then, and so few segments give no interval: there are no lines for labels to stay off."""
    dense = evaluation(model(), perplexity={"prose": text([3.0] * 3)})
    small = evaluation(model("small", 6), perplexity={"prose": text([2.0] * 3)})
    assert [len(boxes) for boxes in pareto.label_boxes(table(dense, small))] == [2]


def test_many_models_get_numbers_and_a_key() -> None:
    rows = [(f"{place} $x$ with a name that is long", 30 - place) for place in range(12)]
    found = comparison.compare_entries(
        *entries_of(
            [
                CompareArgument(
                    "x", name, [evaluation(model(name, layers), perplexity={"wiki": text(noise() + 0.1 * place % 0.4)})]
                )
                for place, (name, layers) in enumerate(rows)
            ]
        )
    )
    (boxes,) = pareto.label_boxes(found)
    assert len(boxes) == 12 and max(box.width for box in boxes) < 30
    assert not any(one.overlaps(other) for place, one in enumerate(boxes) for other in boxes[:place])


def test_without_quality_there_is_no_picture(run, tmp_path) -> None:
    compare([run("run", s=speed(model("small", 6), model()))], out=tmp_path / "out")
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"comparison.json", "comparison.md"}


# -- the command line


def test_json_and_the_table(six, capsys, tmp_path) -> None:
    assert status("compare", *six, "--json", "--out", tmp_path / "out") == 0
    shown = json.loads(capsys.readouterr().out)
    assert (shown["kind"], shown["base"], len(shown["rows"])) == ("comparison", "dense", 6)
    assert shown == json.loads((tmp_path / "out" / "comparison.json").read_text())
    assert status("compare", *six) == 0
    out = capsys.readouterr().out
    assert (
        all(word in out for word in ("sequential-6", "perplexity wiki", "tokens/s", "†"))
        and max(map(len, out.splitlines()[:20])) <= 80
    )
    assert status("compare", *six, "--out", tmp_path / "out") == 2
    assert "--overwrite" in capsys.readouterr().err
    assert status("compare", *six, "--out", tmp_path / "out", "--overwrite") == 0


def test_models_without_an_evaluation_are_evaluated(saved, tmp_path, capsys, run) -> None:
    """By the defaults; one that has one is not."""
    shutil.copytree(saved("llama"), tmp_path / "dense")
    assert status("prune", tmp_path / "dense", "--drop", "3", "--out", tmp_path / "small", "--no-verify") == 0
    capsys.readouterr()
    assert status("compare", tmp_path / "dense", tmp_path / "small", "--json") == 0
    shown = json.loads(capsys.readouterr().out)
    assert [row["name"] for row in shown["rows"]] == ["dense", "small"] and "perplexity shipped" in shown["columns"]
    assert [row["layers"] for row in shown["rows"]] == [8, 7] and shown["rows"][1]["how"].endswith(
        "(drop), not verified"
    )


@pytest.fixture
def bad(run, tmp_path, monkeypatch):
    """The working folder with good and bad input."""
    both = {"perplexity": {"wiki": text(noise())}}
    run("a", e=evaluation(model(), **both))
    run("b", e=evaluation(model("b"), **both))
    run("apart", e=evaluation(model("c"), perplexity={"ptb": text(noise())}))
    (tmp_path / "empty").mkdir()
    (tmp_path / "note.txt").write_text("x")
    (tmp_path / "no.json").write_text("{")
    content = json.loads((tmp_path / "a" / "e.json").read_text())
    wrong = {"value": -1, "hash": None, "parts": [[1, 0]], "nll": "x"}
    for key, value in wrong.items():
        changed = content["perplexity"]["wiki"] | {key: value}
        (tmp_path / f"bad-{key}.json").write_text(json.dumps(content | {"perplexity": {"wiki": changed}}))
    (tmp_path / "bad-removed.json").write_text(json.dumps(content | {"removed": [8]}))
    save(artifacts.Inspection(model(), "x", "y", "z", True, ["a"] * 8, [], {}), tmp_path / "inspection.json")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("a",), "nothing to compare: give at least two"),
        (("a/e.json",), "nothing to compare"),
        (("a", "empty"), "empty holds no evaluation and no model"),
        (
            ("a", "inspection.json"),
            "inspection.json is of the kind inspection; a file of the kind evaluation is expected",
        ),
        (("a", "no.json"), "no.json is not JSON"),
        (("a", "missing.json"), "no evaluation file at missing.json"),
        (("a", "note.txt"), "neither a folder nor a .json or .gguf file"),
        (("x=a", "x=b"), "two models are named x"),
        (("=a", "b"), "write NAME=PATH"),
        (("x=", "b"), "write NAME=PATH"),
        (
            ("a", "apart"),
            "no figure is shared: a has perplexity wiki at length 128; apart has perplexity ptb at length 128",
        ),
        (("a", "missing/model"), "missing/model"),
        (("a", "bad-value.json"), "perplexity.wiki.value: input should be greater than 0"),
        (("a", "bad-hash.json"), "perplexity.wiki.hash:"),
        (("a", "bad-parts.json"), "perplexity.wiki.parts.0.1:"),
        (("a", "bad-removed.json"), "bad-removed.json is not a valid evaluation file: removed leaves out"),
        (("a", "bad-nll.json"), "perplexity.wiki.nll:"),
    ],
)
def test_bad_input_is_one_line_and_leaves_nothing(bad, capsys, arguments, said) -> None:
    before = sorted(bad.rglob("*"))
    assert status("compare", *arguments, "--out", "new/out") == 2
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("error: ") and err.count("\n") == 1 and said in err
    assert sorted(bad.rglob("*")) == before
