"""The command line on tiny models: what is printed and written, and that all roads to a plan agree."""

import json
import math
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch
from commands import status
from transformers import AutoModelForCausalLM, AutoTokenizer

from shallower.anatomy.model import Model
from shallower.cli import demo

TINY = ("--samples", "2", "--length", "16")
MAGNITUDE = ("--criterion", "magnitude")  # needs no data
RECORD = {"source", "family", "layers", "parameters", "layer_parameters", "fingerprint", "original"}
SCORES = {
    "criterion",
    "settings",
    "scores",
    "model",
    "calibration",
    "seconds",
    "peak_memory_bytes",
    "dtype",
    "provenance",
}
PLAN = {
    "removed",
    "kept",
    "order",
    "params_before",
    "params_after",
    "selection",
    "keep_first",
    "keep_last",
    "model",
    "provenance",
}


@pytest.fixture
def run(capsys):
    """``run(argument, …)``: stdout and stderr of a command that must succeed."""

    def call(*arguments) -> tuple[str, str]:
        capsys.readouterr()
        assert status(*arguments) == 0, capsys.readouterr().err
        return tuple(capsys.readouterr())

    return call


@pytest.fixture
def answer(run):
    """``answer(argument, …)``: the one JSON document on stdout."""

    def call(*arguments) -> dict:
        out, err = run(*arguments, "--json")
        content, end = json.JSONDecoder().raw_decode(out)
        assert (out[end:], "error" in err) == ("\n", False)
        assert list(content.items())[:2] == [("kind", content["kind"]), ("schema", 2)]
        return content

    return call


@pytest.fixture
def tokens(tmp_path):
    """A token file with special ids and an unusual type of integer, so that any touch shows; and its content."""
    array = np.random.default_rng(0).integers(0, 512, (3, 20)).astype("<i2")
    array[0, :4] = 0, 1, 2, 3
    np.save(tmp_path / "given.npy", array)
    return tmp_path / "given.npy", torch.tensor(array.astype(np.int64))


def reloaded(folder):
    return AutoModelForCausalLM.from_pretrained(folder, dtype="auto").eval()


@torch.no_grad()
def plain_perplexity(folder, ids, without=None) -> float:
    """By transformers alone; a layer is left out by taking it from the list."""
    model = reloaded(folder)
    if without is not None:
        del model.model.layers[without]
    return math.exp(model(input_ids=ids, labels=ids, use_cache=False).loss)


@pytest.mark.parametrize(
    ("arguments", "kind", "keys"),
    [
        (
            ("inspect",),
            "inspection",
            {"model", "architecture", "stack", "dtype", "layer_kinds", "removable", "refusals"},
        ),
        (("score", *TINY), "scores", SCORES),
        (("score", *MAGNITUDE), "scores", SCORES),
        (("score", "--criterion", "angular", *TINY), "scores", SCORES | {"windows"}),
        (("plan", "--remove", "2", *MAGNITUDE), "plan", PLAN),
        (("plan", "--remove", "2", "--selection", "greedy", *TINY), "plan", PLAN | {"trace"}),
        (
            ("plan", "--remove", "2", "--selection", "beam", "--set", "objective=kl", "--budget", "10m", *TINY),
            "plan",
            PLAN | {"budget"},
        ),
        (
            ("evaluate", "--length", "16", "--max-tokens", "64"),
            "evaluation",
            {"model", "perplexity", "tasks", "seconds", "dtype"},
        ),
    ],
)
def test_json_is_the_artifact_and_nothing_else(arguments, kind, keys, saved, answer, run, tmp_path) -> None:
    verb, *rest = arguments
    path = tmp_path / "new" / "folders" / "result.json"
    content = answer(verb, saved("llama"), *rest, "--out", path)
    assert content["kind"] == kind and not keys - set(content) and not RECORD - set(content["model"])
    assert json.loads(path.read_text()) == content
    assert [item.name for item in path.parent.iterdir()] == ["result.json"]
    out, err = run(verb, saved("llama"), *rest, "--out", path)
    assert str(path) in out.splitlines()[-1] and "{" not in out + err
    assert err.strip()


def test_the_artifacts_speak_of_the_model(saved, answer) -> None:
    scores, plan = answer("score", saved("llama"), *TINY), answer("plan", saved("llama"), "--remove", "2", *TINY)
    model = scores["model"]
    assert (scores["criterion"], len(scores["scores"]), model["layers"], model["family"]) == (
        "block_influence",
        8,
        8,
        "llama",
    )
    assert all(map(math.isfinite, scores["scores"]))
    assert min(scores["seconds"], scores["peak_memory_bytes"]) > 0
    shipped = {
        "source": "shipped stories + shipped encyclopaedia",
        "samples": 2,
        "length": 16,
        "seed": 1234,
        "bos": "none",
    }
    assert {**scores["calibration"], **shipped} == scores["calibration"]
    sources = [{"name": "shipped stories", "samples": 1}, {"name": "shipped encyclopaedia", "samples": 1}]
    assert scores["calibration"]["sources"] == sources
    assert sum(p.numel() for p in reloaded(saved("llama")).parameters()) == model["parameters"] == plan["params_before"]
    assert plan["params_after"] == plan["params_before"] - sum(
        model["layer_parameters"][index] for index in plan["removed"]
    )
    assert (sorted(plan["removed"] + plan["kept"]), sorted(plan["order"])) == (list(range(8)), plan["removed"])
    starts = range(plan["keep_first"], 8 - plan["keep_last"] - 1)
    lowest = min(starts, key=lambda start: sum(scores["scores"][start : start + 2]))
    assert (plan["selection"], plan["order"], plan["scores"]) == ("window", [lowest, lowest + 1], scores["scores"])


def test_inspect_loads_no_weights(saved, answer, monkeypatch) -> None:
    monkeypatch.setattr(
        "shallower.anatomy.loading.Checkpoint.load_reporting", lambda *_, **__: pytest.fail("weights loaded")
    )
    assert answer("inspect", saved("llama"))["removable"] == list(range(8))


def test_square_brackets_in_a_path(saved, run, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copytree(saved("llama"), "a [red] b")
    assert "a [red] b" in run("inspect", "a [red] b")[0]


def test_help_and_version(run) -> None:
    assert "signed products" in run("score", "--help", "taylor")[0]
    assert "max-gap" in run("plan", "--help", "positional")[0]
    assert all(verb in run("--help")[0] for verb in ("inspect", "score", "plan", "prune", "evaluate"))
    assert "--target-params" in run("plan", "--help")[0]
    out, _ = run("--version")
    done = subprocess.run([sys.executable, "-m", "shallower", "--version"], capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr, out.split()[0]) == (out, "", "shallower")


def test_given_tokens_are_used_exactly(saved, answer, tokens) -> None:
    path, ids = tokens
    found = answer("evaluate", saved("llama"), "--tokens", path)["perplexity"]["given"]
    assert found["value"] == pytest.approx(plain_perplexity(saved("llama"), ids), rel=1e-5)
    assert [found[key] for key in ("tokens", "length", "stride", "bos")] == [3 * 19, 20, 20, "as given"]
    scores = answer("score", saved("llama"), "--criterion", "perplexity", "--tokens", path, *TINY, "--bos", "every")
    assert scores["scores"] == pytest.approx(
        [plain_perplexity(saved("llama"), ids, index) for index in range(8)], rel=1e-5
    )
    used = {"source": "given.npy", "samples": 3, "length": 20, "seed": None, "bos": "as given", "hash": found["hash"]}
    assert scores["calibration"] == used | {"sources": [{"name": "given.npy", "samples": 3}]}


def test_texts_by_their_stems(saved, answer, tmp_path) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    from pyarrow import table

    parts = ["The dog saw the fox. " * 10, "The fox — who else? — ran away. " * 10]
    (tmp_path / "a.txt").write_text("\n\n".join(parts), encoding="utf-8")
    (tmp_path / "b.jsonl").write_text("\n".join(json.dumps({"text": part}) for part in parts) + "\n\n")
    parquet.write_table(table({"text": parts}), tmp_path / "c.parquet")
    texts = [item for name in ("a.txt", "b.jsonl", "c.parquet") for item in ("--text", tmp_path / name)]
    found = answer("evaluate", saved("llama"), *texts, "--length", "16")["perplexity"]
    assert found == dict.fromkeys("abc", found["a"])
    coder = AutoTokenizer.from_pretrained(saved("llama"))
    ids = coder((tmp_path / "a.txt").read_text(encoding="utf-8")).input_ids
    segments = torch.tensor(ids[: len(ids) // 16 * 16]).view(-1, 16)
    assert found["a"]["value"] == pytest.approx(plain_perplexity(saved("llama"), segments), rel=1e-5)


def test_a_plan_from_scores_is_the_plan_from_the_model(saved, answer, run, tmp_path) -> None:
    run("score", saved("llama"), *TINY, "--out", tmp_path / "scores.json")
    for options in (
        ("--remove", "3"),
        ("--remove", "2", "--selection", "window"),
        ("--ratio", "0.4", "--keep-first", "0"),
    ):
        one, two = (
            answer("plan", source, *options, *extra)
            for source, extra in ((tmp_path / "scores.json", ()), (saved("llama"), TINY))
        )
        for plan in (one, two):
            del plan["provenance"], plan["seconds"]
        assert one == two


@pytest.mark.parametrize(
    ("options", "removed"),
    [
        (("--remove", "2"), 2),
        (("--ratio", "0.2"), 2),  # one layer holds 9.9 %
        (("--target-params", "0.25M"), 3),
        (("--target-params", "250688"), 2),  # exactly what two removals leave
        (("--remove", "7", "--keep-first", "0"), 7),
        (("--remove", "2", "--iterative"), 2),
    ],
)
def test_amounts(options, removed, saved, answer) -> None:
    plan = answer("plan", saved("llama"), *options, *TINY)
    assert (len(plan["removed"]), plan["iterative"]) == (removed, "--iterative" in options)


@pytest.mark.parametrize(
    ("strategy", "last", "removed"),
    [("both", "auto", [1, 2, 6]), ("input", "1", [1, 2, 3]), ("output", "2", [3, 4, 5])],
)
def test_settings_of_a_selection(strategy, last, removed, saved, answer) -> None:
    options = ("--selection", "positional", "--set", f"strategy={strategy}", "--keep-last", last)
    plan = answer("plan", saved("llama"), "--remove", "3", *options)
    assert [plan[key] for key in ("removed", "settings", "criterion", "calibration")] == [
        removed,
        {"strategy": strategy},
        None,
        None,
    ]


def test_settings_of_a_criterion(saved, answer) -> None:
    scores = [
        answer("score", saved("llama"), "--criterion", "random", *extra)
        for extra in (("--set", "seed=7"), ("--seed", "7"), ())
    ]
    assert scores[0]["scores"] == scores[1]["scores"] != scores[2]["scores"]
    assert scores[0]["settings"] == {"seed": 7}


def test_the_launcher_of_deepspeed_starts_one_process_too(saved, monkeypatch) -> None:
    assert status("--local_rank=0", "inspect", saved("llama")) == 2
    monkeypatch.setenv("LOCAL_RANK", "0")
    assert status("--local_rank=0", "inspect", saved("llama")) == 0


def test_what_libraries_print_does_not_come_between(saved, answer, run, monkeypatch) -> None:
    parts = Model.record.func
    monkeypatch.setattr(Model, "record", property(lambda model: (print("a greeting"), parts(model))[1]))
    assert answer("inspect", saved("llama"))["model"]["layers"] == 8
    out, err = run("inspect", saved("llama"))
    assert "a greeting" not in out and "a greeting" in err and "8 layers" in out


@pytest.mark.parametrize(
    ("options", "removed"),
    [
        (("--drop", "1,3-5"), [1, 3, 4, 5]),
        (("--drop", "7, 0"), [0, 7]),
        (("--remove", "2", "--selection", "positional", "--set", "strategy=middle"), [3, 4]),
        (("--ratio", "0.1", *MAGNITUDE), None),
        (("--remove", "1", "--selection", "evolution", "--budget", "1h", *TINY), "any"),
        (("--plan", "plan.json"), None),
    ],
)
def test_prune(options, removed, saved, answer, run, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    plan = answer("plan", saved("llama"), "--remove", "1", *MAGNITUDE, "--out", "plan.json")
    content = answer("prune", saved("llama"), *options, "--out", "made/for/me")
    if removed != "any":
        assert content["plan"]["removed"] == (removed or plan["removed"])
    assert content["original"] == content["plan"]["kept"]
    assert (content["verified"]["logits"], content["verified"]["missing_keys"]) == ("bit for bit", 0)
    assert json.loads((tmp_path / "made/for/me/shallower.json").read_text()) == content
    assert reloaded(tmp_path / "made/for/me").config.num_hidden_layers == 8 - len(content["plan"]["removed"])
    assert [item.name for item in (tmp_path / "made" / "for").iterdir()] == ["me"]
    assert "verified after reloading" in run("prune", saved("llama"), *options, "--out", "second")[0]


def test_pruning_twice_speaks_of_the_first_ancestor(saved, answer, tmp_path) -> None:
    answer("prune", saved("llama"), "--drop", "1,4", "--out", tmp_path / "one")
    second = answer("prune", tmp_path / "one", "--drop", "0,2", "--out", tmp_path / "two")
    assert (second["plan"]["removed"], second["plan"]["model"]["original"]) == ([0, 2], [0, 2, 3, 5, 6, 7])
    assert second["original"] == answer("inspect", tmp_path / "two")["model"]["original"] == [2, 5, 6, 7]


def test_overwrite_replaces_the_folder(saved, answer, tmp_path) -> None:
    answer("prune", saved("llama"), "--drop", "1", "--out", tmp_path / "out")
    (tmp_path / "out" / "left-over").write_text("")
    content = answer("prune", saved("llama"), "--drop", "2,3", "--out", tmp_path / "out", "--overwrite", "--no-verify")
    assert "skipped" in content["verified"]
    assert (tmp_path / "out" / "left-over").exists()  # not ours to remove
    assert [item.name for item in tmp_path.iterdir()] == ["out"]
    assert reloaded(tmp_path / "out").config.num_hidden_layers == 6


def test_save_dtype_and_shards(saved, answer, tmp_path) -> None:
    options = ("--drop", "3", "--save-dtype", "bf16", "--max-shard-size", "200KB")
    answer("prune", saved("llama"), *options, "--out", tmp_path / "out")
    index = json.loads((tmp_path / "out" / "model.safetensors.index.json").read_text())
    shards = {path.name: path.stat().st_size for path in (tmp_path / "out").glob("*.safetensors")}
    assert set(index["weight_map"].values()) == set(shards) and max(shards.values()) < 220e3 < sum(shards.values())
    model = reloaded(tmp_path / "out")
    assert model.dtype == torch.bfloat16 and model(input_ids=torch.arange(9)[None]).logits.isfinite().all()


def test_the_proof_states_the_dtype_that_it_compared_in(saved, answer, tmp_path) -> None:
    options = ("--drop", "3", "--save-dtype", "bf16", "--out", tmp_path / "out")
    assert answer("prune", saved("llama"), *options)["verified"]["dtype"] == "bfloat16"


def test_interrupted(saved, capsys, monkeypatch, tmp_path) -> None:
    def interrupt(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("shallower.surgery.rewrite.write_shards", interrupt)
    code = status("prune", saved("llama"), "--drop", "3", "--out", tmp_path / "out")
    assert list(tmp_path.iterdir()) == []
    assert code == 130 and capsys.readouterr().err.startswith("interrupted")


def test_the_gain_is_real(saved, answer, tokens, tmp_path) -> None:
    """What ``score --criterion perplexity`` foretold for one layer is what ``evaluate`` finds after removing it."""
    path, ids = tokens
    foretold = answer("score", saved("llama"), "--criterion", "perplexity", "--tokens", path)["scores"]
    answer("prune", saved("llama"), "--drop", "5", "--out", tmp_path / "out")
    found = answer("evaluate", tmp_path / "out", "--tokens", path)["perplexity"]["given"]["value"]
    assert (
        found
        == pytest.approx(foretold[5], rel=1e-5)
        == pytest.approx(plain_perplexity(tmp_path / "out", ids), rel=1e-5)
    )


def test_the_demo_on_a_tiny_model(saved, run, tmp_path, monkeypatch) -> None:
    """Every step of it but the real model's answers."""
    monkeypatch.setattr(demo, "demo_model", lambda: saved("llama"))
    monkeypatch.setattr(demo, "answer", lambda model: "because")
    monkeypatch.setattr(demo, "REMOVE", 2)
    monkeypatch.setattr(demo, "BUDGET", "8s")
    monkeypatch.setattr(demo, "SAMPLES", 8)
    told, _ = run("demo", "--out", tmp_path / "demo")
    assert "report.html" in told and (tmp_path / "demo" / "report.html").is_file()
    assert (tmp_path / "demo" / "model" / "model.safetensors").is_file()
