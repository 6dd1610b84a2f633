"""Larger than memory, killed and started again, in many processes: always the same scores."""

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import zoo
from kills import SHORT, keep_every_step, killed_after
from marks import rest_slow
from shrinking import shrink

from shallower import (
    Amount,
    Calibration,
    Compute,
    Plan,
    Refusal,
    SelectionOptions,
    UserError,
    drop,
    evaluate,
    methods,
    open_model,
    plan,
    prune,
    score,
)
from shallower.anatomy.kernels import AVAILABLE, fast_linear, fast_products, packed_weights
from shallower.artifacts import Removal
from shallower.runtime.memory import total_memory
from shallower.runtime.progress import shown
from shallower.storage.journal import Journal, journaled
from shallower.walk.removals import LossWalk
from shallower.walk.replay import replay_of

CRITERIA = [
    name for name in methods.names("criteria") if methods.find("criteria", name).EVIDENCE not in ("place", "inputs")
]


def opened(folder, **options):
    return open_model(folder, Compute(device="cpu", **options))


LAYERED = [name for name, family in zoo.FAMILIES.items() if "+" not in name and family.expect != "refused"]
FAST = {"mixtral"}


@pytest.mark.parametrize("name", rest_slow(LAYERED, FAST))
def test_layered_equals_resident(name: str, saved) -> None:
    """Every criterion, bit for bit; or a refusal that says why."""
    resident, layered = opened(saved(name), layered=False), opened(saved(name), layered=True)
    for criterion in CRITERIA:
        try:
            wanted = score(resident, criterion=criterion, calibration=SHORT)
        except Refusal as refusal:  # a layer that others need cannot be left out virtually
            with pytest.raises(Refusal, match=re.escape(str(refusal))):
                score(layered, criterion=criterion, calibration=SHORT)
            continue
        try:
            got = score(layered, criterion=criterion, calibration=SHORT)
        except UserError as refusal:
            assert "without layered=True" in str(refusal), refusal
            continue
        assert got.scores == wanted.scores, criterion
        assert got.windows == wanted.windows


@pytest.mark.parametrize(
    "name",
    rest_slow(("llama", "gpt2", "mixtral", "gemma3_text", "qwen3_next", "mamba", "bloom", "roberta"), {"gemma3_text"}),
)
def test_a_layered_proof_and_evaluation(name: str, saved, tmp_path) -> None:
    layered = opened(saved(name), layered=True)
    proof = prune(layered, drop(layered, (1, 4)), out=tmp_path / "out").verified
    assert proof.layered
    assert proof.logits == "bit for bit"
    values = [
        evaluate(opened(saved(name), layered=way), removed=(2,)).perplexity["shipped"].value for way in (True, False)
    ]
    assert values[0] == values[1]


def test_one_layer_is_in_memory_at_a_time(saved) -> None:
    model = opened(saved("llama"), layered=True)
    present = []

    def see(*_):
        present.append(sum(not next(layer.parameters()).is_meta for layer in model.stack.layers))

    for layer in model.stack.layers:
        layer.register_forward_hook(see)
    with torch.no_grad():
        model.module(input_ids=zoo.tokens())
    assert present == [1] * zoo.LAYERS


def test_what_cannot_be_layered_says_so(saved) -> None:
    with pytest.raises(UserError, match="run without layered=True"):
        score(opened(saved("zamba2"), layered=True), criterion="block_influence", calibration=SHORT)


def test_layered_is_chosen_where_the_weights_do_not_fit(saved, monkeypatch) -> None:
    assert not opened(saved("llama")).layered
    monkeypatch.setattr("shallower.anatomy.model.total_memory", lambda device: 1 << 20)
    assert opened(saved("llama")).layered
    assert not opened(saved("llama"), layered=False).layered


def test_total_memory_is_a_limit_not_a_reading() -> None:
    assert total_memory() == total_memory() > 1 << 28


@pytest.mark.skipif(not AVAILABLE, reason="this torch has no oneDNN")
@pytest.mark.parametrize("shape", [(6, 40, 96), (300, 96)])
def test_fast_products_are_exact_to_fp32(shape) -> None:
    generator = torch.Generator().manual_seed(0)
    stream, weight, bias = (
        torch.randn(size, generator=generator, requires_grad=True) for size in (shape, (128, 96), (128,))
    )
    flowing = torch.randn((*shape[:-1], 128), generator=generator)
    fast, plain = fast_linear(stream, weight, bias), torch.nn.functional.linear(stream, weight, bias)
    torch.testing.assert_close(fast, plain, rtol=1e-5, atol=1e-4)
    for one, other in zip(
        *(torch.autograd.grad(out, (stream, weight, bias), flowing) for out in (fast, plain)), strict=True
    ):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-4)


@pytest.mark.skipif(not AVAILABLE, reason="this torch has no oneDNN")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("inner", "outer", "bias"), [(96, 200, False), (96, 200, True), (896, 4864, False)])
def test_weights_that_are_held_in_another_order_give_the_same_bits(dtype, inner: int, outer: int, bias: bool) -> None:
    model = torch.nn.Sequential(
        torch.nn.Linear(inner, outer, bias=bias), torch.nn.SiLU(), torch.nn.Linear(outer, inner, bias=bias)
    )
    model = model.to(dtype)
    streams = [torch.randn(rows, 40, inner, dtype=dtype) for rows in (3, 1, 7, 5)]
    with torch.no_grad(), fast_products(model):
        wanted = [model(stream) for stream in streams]
        before = model[0].forward
        with packed_weights(model, len(streams)):
            assert model[0].forward is not before
            assert all(torch.equal(model(stream), one) for stream, one in zip(streams, wanted, strict=True))
        assert model[0].forward is before
        with packed_weights(model, 3):  # too few to be worth it
            assert model[0].forward is before


@pytest.mark.parametrize("limit", rest_slow((1, 16, 40, 64, 4096), {1, 40, 4096}))
def test_batch_limits_change_nothing_that_matters(limit: int, saved) -> None:
    wanted = score(opened(saved("llama")), criterion="perplexity", calibration=SHORT).scores
    got = score(opened(saved("llama"), max_batch_tokens=limit), criterion="perplexity", calibration=SHORT).scores
    assert got == pytest.approx(wanted, rel=1e-5)


def test_what_loading_changes_is_not_read_layer_by_layer(tmp_path) -> None:
    """Transformers itself writes to a row for padding when it has read it; to biases of a router in another type."""
    source = zoo.save(zoo.build("youtu", shrink("youtu")), tmp_path)
    with pytest.raises(UserError, match=r"transformers changes .* when it has read the file"):
        _ = opened(source, layered=True).module
    assert opened(source, layered=False).module


def test_rounds_are_sums(saved, monkeypatch) -> None:
    """So little memory that every sample is a round of its own."""
    scores = {}
    for part in (None, 1):
        if part:
            monkeypatch.setattr("shallower.walk.batching.total_memory", lambda device: 1)
        for name in ("taylor", "gradient", "perplexity", "block_influence"):  # a kind of evidence each
            scores.setdefault(name, []).append(score(opened(saved("qwen3")), criterion=name, calibration=SHORT).scores)
    for one, other in scores.values():
        assert one == pytest.approx(other, rel=1e-5)


def test_dropped_variants_change_no_choice(saved) -> None:
    """The lowest loss is exact, what is dropped was truly worse."""
    model = opened(saved("llama"))
    tokens = zoo.tokens(8, 40)
    removals = [Removal.of_layers([index]) for index in range(zoo.LAYERS)]
    exact, bounded = LossWalk(model, tokens)(removals), LossWalk(model, tokens)(removals, bounded=True)
    assert bounded.argmin() == exact.argmin()
    assert float(bounded.min()) == float(exact.min())
    assert all(
        b == e or (b == float("inf") and e > exact.min()) for b, e in zip(bounded.tolist(), exact.tolist(), strict=True)
    )
    assert replay_of(model) is not None


# ---------------------------------------------------------------- killed and started again


KILLED_FAST = {("taylor", True), ("perplexity", False), ("block_influence", True)}
KILLED = [(name, layered) for name in CRITERIA if name != "magnitude" for layered in (False, True)]


@pytest.mark.parametrize(("criterion", "layered"), rest_slow(KILLED, KILLED_FAST))
def test_a_killed_score_goes_on(criterion: str, layered: bool, saved, tmp_path, monkeypatch, capsys) -> None:
    keep_every_step(monkeypatch)
    options = {"criterion": criterion, "calibration": SHORT, "out": tmp_path / "scores.json"}
    wanted = score(opened(saved("qwen3"), layered=layered), **options | {"out": None})
    for count in (1, 3, 2):
        killed_after(monkeypatch, count, lambda: score(opened(saved("qwen3"), layered=layered), **options))
    with shown():
        got = score(opened(saved("qwen3"), layered=layered), **options)
    assert " 6 of " in capsys.readouterr().err.split("resuming at")[-1]
    assert (got.scores, got.windows) == (wanted.scores, wanted.windows)
    assert [path.name for path in tmp_path.iterdir()] == ["scores.json"]


def test_a_killed_greedy_search_goes_on(saved, tmp_path, monkeypatch) -> None:
    keep_every_step(monkeypatch)
    options = {
        "amount": Amount(remove=3),
        "choosing": SelectionOptions("greedy", keep_first=0, keep_last=0),
        "calibration": SHORT,
    }
    wanted = plan(opened(saved("qwen3")), **options)
    for count in (2, 12, 5):
        killed_after(monkeypatch, count, lambda: plan(opened(saved("qwen3")), **options, out=tmp_path / "plan.json"))
    got = plan(opened(saved("qwen3")), **options, out=tmp_path / "plan.json")
    assert (got.order, got.trace) == (wanted.order, wanted.trace)
    assert isinstance(got, Plan)


def test_a_journal_of_other_work_is_not_taken_over(saved, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr("shallower.storage.journal.JOURNAL_SECONDS", 0.0)
    options = {"criterion": "perplexity", "out": tmp_path / "scores.json"}
    killed_after(monkeypatch, 2, lambda: score(opened(saved("qwen3")), calibration=SHORT, **options))
    other = Calibration(samples=6, length=16, seed=7)
    got = score(opened(saved("qwen3")), criterion="perplexity", calibration=other, out=tmp_path / "scores.json")
    assert got.scores == score(opened(saved("qwen3")), criterion="perplexity", calibration=other).scores


def test_a_broken_journal_is_not_believed(saved, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr("shallower.storage.journal.JOURNAL_SECONDS", 0.0)
    out = tmp_path / "scores.json"
    killed_after(monkeypatch, 2, lambda: score(opened(saved("qwen3")), criterion="taylor", calibration=SHORT, out=out))
    for path in (tmp_path / ".scores.json.journal").rglob("*.safetensors"):
        path.write_bytes(path.read_bytes()[:100])
    assert score(opened(saved("qwen3")), criterion="taylor", calibration=SHORT, out=out).scores


def test_two_commands_do_not_share_an_out(tmp_path) -> None:
    code = (
        "import sys\nfrom shallower.storage.journal import Journal, journaled\nwith journaled(sys.argv[1]): Journal({})"
    )
    with journaled(tmp_path / "a.json"):
        Journal({})
        ran = subprocess.run([sys.executable, "-c", code, tmp_path / "a.json"], capture_output=True, text=True)
    assert "another process is writing" in ran.stderr
    assert not list(tmp_path.iterdir())


def test_memo_without_a_journal_remembers_nothing() -> None:
    journal = Journal()
    assert [journal.memo("x", lambda value=value: value) for value in (1, 2)] == [1, 2]


def command(*arguments: object, env: dict | None = None, **options):
    names = [sys.executable, "-m", "shallower", *map(str, arguments)]
    return subprocess.Popen(
        names, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=os.environ | (env or {}), **options
    )


SIGNALLED = """
import os, signal, sys
from shallower import cli
from shallower.storage import journal
# whoever runs the tests in the background may have switched it off
signal.signal(signal.SIGINT, signal.default_int_handler)
keep = journal.JournalPart.keep
def signalled(self, step, tensors, notes):
    keep(self, step, tensors, notes)
    if step == 3:
        os.kill(os.getpid(), int(sys.argv[1]))
journal.JournalPart.keep = signalled
cli.main(sys.argv[2:])
"""
SIZE = ("--criterion", "perplexity", "--samples", "4", "--length", "16", "--device", "cpu")


def signalled(number: int, *arguments: object) -> subprocess.CompletedProcess:
    """A command that gets a signal when its journal holds three steps."""
    names = [sys.executable, "-c", SIGNALLED, str(int(number)), *map(str, arguments)]
    return subprocess.run(
        names, capture_output=True, text=True, env=os.environ | {"SHALLOWER_JOURNAL_SECONDS": "0"}, timeout=240
    )


def test_kill_minus_nine(saved, tmp_path) -> None:
    arguments = ("score", saved("llama"), *SIZE)
    assert signalled(signal.SIGKILL, *arguments, "--out", tmp_path / "scores.json").returncode == -signal.SIGKILL
    assert list((tmp_path / ".scores.json.journal").rglob("*.safetensors"))
    again = command(*arguments, "--out", tmp_path / "scores.json")
    assert re.search(
        "resuming at loss of every removal [123] of 9", again.communicate()[1]
    )  # a slow disk keeps fewer steps
    whole = score(opened(saved("llama")), criterion="perplexity", samples=4, length=16)
    assert whole.scores == json.loads((tmp_path / "scores.json").read_text())["scores"]
    assert [path.name for path in tmp_path.iterdir()] == ["scores.json"]


def test_ctrl_c_says_how_to_go_on(saved, tmp_path) -> None:
    ran = signalled(signal.SIGINT, "score", saved("llama"), *SIZE, "--out", tmp_path / "scores.json")
    assert ran.returncode == 130
    assert re.search(
        "stopped in loss of every removal, [123] of 9 steps are kept: the same command goes on from there", ran.stderr
    )


DYING = """
import os, sys
from shallower import cli
from shallower.storage import writer
writer.MARK_BYTES, calls, copy = 0, [], writer._all
def dying(out, piece):
    calls.append(1)
    if len(calls) == int(sys.argv[1]):
        os.write(out.fileno(), b"half")
        os._exit(9)
    return copy(out, piece)
writer._all = dying
cli.main(sys.argv[2:])
"""


@pytest.mark.parametrize("shard", ["200KB", pytest.param("5GB", marks=pytest.mark.slow)])
def test_killed_while_writing(shard: str, saved, tmp_path, capsys) -> None:
    arguments = ["prune", str(saved("llama")), "--drop", "2", "--device", "cpu", "--max-shard-size", shard, "--out"]
    for count in (9,) if shard == "200KB" else (9, 25):
        dead = subprocess.run(
            [sys.executable, "-c", DYING, str(count), *arguments, tmp_path / "out"], capture_output=True
        )
        assert dead.returncode == 9
        assert not (tmp_path / "out").exists()
    with shown():
        for name in ("out", "whole"):
            prune(opened(saved("llama")), drop(saved("llama"), (2,)), out=tmp_path / name, max_shard_size=shard)
            assert ("resuming at" in capsys.readouterr().err) == (name == "out")
    assert {path.name for path in tmp_path.iterdir()} == {"out", "whole"}
    for path in (tmp_path / "whole").glob("*.safetensors*"):
        assert path.read_bytes() == (tmp_path / "out" / path.name).read_bytes()


# ---------------------------------------------------------------- many processes


def torchrun(count: int, *arguments: object) -> subprocess.CompletedProcess:
    names = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc_per_node",
        str(count),
        "-m",
        "shallower",
    ]
    env = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.run([*names, *map(str, arguments)], capture_output=True, text=True, env=env, timeout=240)


SLOW = [pytest.param(name, marks=pytest.mark.slow) for name in ("gradient", "gate", "block_influence", "perplexity")]


@pytest.mark.parametrize("criterion", ["taylor", *SLOW])
def test_two_processes_give_the_same_scores(criterion: str, saved, tmp_path) -> None:
    options = ("--criterion", criterion, "--samples", 7, "--length", 16, "--device", "cpu")
    ran = torchrun(2, "score", saved("qwen3"), *options, "--out", tmp_path / "two.json", "--json")
    assert ran.returncode == 0, ran.stderr
    two = json.loads(ran.stdout)["scores"]  # printed once
    one = score(opened(saved("qwen3")), criterion=criterion, calibration=Calibration(samples=7, length=16)).scores
    assert two == pytest.approx(one, rel=1e-6)
    assert [path.name for path in Path(tmp_path).iterdir()] == ["two.json"]


@pytest.mark.slow
@pytest.mark.parametrize("objective", ["loss", "kl"])
def test_two_processes_search_alike(objective: str, saved, tmp_path) -> None:
    """Divergences are added over processes, and both stop at the same time."""
    options = (
        "--remove",
        3,
        "--selection",
        "beam",
        "--set",
        f"objective={objective}",
        "--keep-first",
        0,
        "--device",
        "cpu",
    )
    size = ("--samples", 7, "--length", 16)
    ran = torchrun(2, "plan", saved("qwen3"), *options, *size, "--budget", "1h", "--out", tmp_path / "two.json")
    assert ran.returncode == 0, ran.stderr
    two = json.loads((tmp_path / "two.json").read_text())
    choosing = SelectionOptions("beam", {"objective": objective}, keep_first=0)
    one = plan(
        opened(saved("qwen3")),
        amount=Amount(remove=3),
        choosing=choosing,
        calibration=Calibration(samples=7, length=16),
    )
    assert two["order"] == one.order
    assert two["trace"] == pytest.approx(one.trace, rel=1e-5)
    cut = torchrun(2, "plan", saved("qwen3"), *options, *size, "--budget", "0.01s", "--out", tmp_path / "cut.json")
    assert cut.returncode == 0 and cut.stderr.count("greedy's choice stays") == 1, cut.stderr


@pytest.mark.slow
def test_what_runs_in_one_process_says_so(saved, tmp_path) -> None:
    ran = torchrun(2, "prune", saved("qwen3"), "--drop", "2", "--out", tmp_path / "out")
    assert "runs in one process" in ran.stderr
    assert not (tmp_path / "out").exists()
    few = torchrun(2, "score", saved("qwen3"), "--samples", 1, "--length", 16, "--device", "cpu")
    assert "1 samples cannot be split among 2 processes" in few.stderr


@pytest.mark.parametrize(("criterion", "layered"), [("flap", True), ("taylor", False)])
def test_a_killed_score_of_groups_goes_on(criterion: str, layered: bool, saved, tmp_path, monkeypatch) -> None:
    keep_every_step(monkeypatch)
    options = {"criterion": criterion, "units": "width", "calibration": SHORT, "out": tmp_path / "scores.json"}
    wanted = score(opened(saved("qwen3"), layered=layered), **options | {"out": None})
    for count in (1, 3):
        killed_after(monkeypatch, count, lambda: score(opened(saved("qwen3"), layered=layered), **options))
    got = score(opened(saved("qwen3"), layered=layered), **options)
    assert (got.scores, got.halves) == (wanted.scores, wanted.halves)
