"""Text that is packed while it is read: what comes, where it goes on, and that a killed training is undisturbed."""

import json
import signal
from pathlib import Path

import pytest
import torch
import zoo
from trainings import CPU, KILLED, LAUNCH, SIZE, arguments, command, curve, weights
from transformers import AutoTokenizer

from shallower import Training, UserError, heal
from shallower.data.streams import Stream

pytest.importorskip("datasets")


@pytest.fixture(scope="module")
def rows(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("set")
    texts = [f"{number}: {zoo._SENTENCES[number : number + 20 + 9 * (number % 7)]}" for number in range(60)]
    (folder / "train.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return folder


@pytest.fixture
def stream(rows, saved):
    coder = AutoTokenizer.from_pretrained(saved("llama"))
    return lambda seed=1: Stream(str(rows), coder, len(coder), 16, seed, isolated=True)


def test_sequences_follow_each_other(stream, rows, saved) -> None:
    """Nothing is lost or repeated: a pass is every document once, in another order each time."""
    coder = AutoTokenizer.from_pretrained(saved("llama"))
    documents = {json.loads(line)["text"] for line in (rows / "train.jsonl").read_text().splitlines()}
    found, ids, turns = stream(), [], []
    for step in range(200):
        ids.append(found.rows(step, 2).tokens.flatten())
        turns.append(found.place()["turn"])
        if turns[-1] == 2:
            break
    text = coder.decode(torch.cat(ids))
    passes = text.split(coder.eos_token)
    assert (
        set(passes[: len(documents) - 1]) <= documents and len(set(passes[: len(documents) - 1])) == len(documents) - 1
    )
    assert passes[: len(documents)] != passes[len(documents) : 2 * len(documents)]


def test_positions_and_what_bears_a_loss(stream) -> None:
    found = stream().rows(0, 8)
    assert found.tokens.shape == (8, 16) and found.tokens.dtype == torch.int64
    assert (found.positions[:, 0] == 0).all() and torch.equal(found.loss_mask, found.positions > 0)
    steps = found.positions[:, 1:] - found.positions[:, :-1]
    assert ((steps == 1) | (found.positions[:, 1:] == 0)).all() and (found.positions[:, 1:] == 0).any()


@pytest.mark.parametrize("before", [1, 5, 40])
def test_it_goes_on_at_a_place(before: int, stream) -> None:
    whole, again = stream(), stream()
    for step in range(before):
        whole.rows(step, 3)
    again.seek(json.loads(json.dumps(whole.place())))
    for step in range(before, before + 4):
        assert torch.equal(whole.rows(step, 3).tokens, again.rows(step, 3).tokens)
    whole.seek({})
    assert torch.equal(whole.rows(0, 3).tokens, stream().rows(0, 3).tokens)
    assert not torch.equal(stream(2).rows(0, 3).tokens, stream(1).rows(0, 3).tokens)


def test_it_goes_on_near_the_end_of_its_only_document(saved, tmp_path) -> None:
    (tmp_path / "train.jsonl").write_text(json.dumps({"text": zoo._SENTENCES[:300]}) + "\n")
    coder = AutoTokenizer.from_pretrained(saved("llama"))
    whole, again = (Stream(str(tmp_path), coder, len(coder), 16, 1, isolated=True) for _ in range(2))
    steps = 0
    while not steps or whole.place()["turn"] == 0:
        last = whole.place()
        found = whole.rows(steps, 1)
        steps += 1
    again.seek(last)
    assert steps > 1 and last["document"] == 0 < last["token"]
    assert torch.equal(again.rows(0, 1).tokens, found.tokens)


def options(rows: Path, **more) -> dict:
    return {
        "dataset": str(rows),
        "train_tokens": 768,
        "method": "continued",
        "training": Training(**(SIZE | more)),
        "compute": CPU,
    }


@pytest.mark.slow  # test_healing and the place that a checkpoint keeps stand for it
def test_killed_and_resumed_is_undisturbed(saved, rows, tmp_path) -> None:
    given = arguments(saved("llama"), rows, tmp_path / "out", "continued", source="--dataset")
    assert command("-c", KILLED, *given).returncode == -signal.SIGKILL
    again = command("-m", "shallower", *given, "--resume")
    assert again.returncode == 0 and "resuming at step 3" in again.stderr, again.stderr
    whole = heal(saved("llama"), out=tmp_path / "whole", **options(rows))
    told = [json.loads(line) for line in (tmp_path / "out" / "metrics.jsonl").read_text().splitlines()]
    assert [row["loss"] for row in told if "loss" in row] == curve(whole)
    one, other = weights(tmp_path / "out"), weights(tmp_path / "whole")
    assert all(torch.equal(one[name], other[name]) for name in other)
    assert whole.data.streamed and whole.data.hash


@pytest.mark.slow
def test_two_processes_read_the_same_stream(saved, rows, tmp_path) -> None:
    given = arguments(saved("llama"), rows, tmp_path / "two", "continued", "--json", source="--dataset")
    ran = command(*LAUNCH, *given)
    assert ran.returncode == 0, ran.stderr
    one = heal(saved("llama"), out=tmp_path / "one", **options(rows))
    assert [row["loss"] for row in json.loads(ran.stdout)["rows"] if "loss" in row] == pytest.approx(
        curve(one), rel=1e-4
    )


def test_instructions_are_read_at_once(saved, tmp_path) -> None:
    (tmp_path / "set").mkdir()
    rows = [
        {"instruction": f"Count to {number}.", "input": "", "output": " ".join(map(str, range(number)))}
        for number in range(3, 60)
    ]
    (tmp_path / "set" / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = heal(saved("llama"), out=tmp_path / "out", **options(tmp_path / "set", length=256, batch_tokens=256))
    assert found.data.kind == "instructions" and 0 < found.data.documents < 57


@pytest.mark.parametrize(("content", "match"), [
    ('{"text": "a"}\n', "less than one sequence of 32 tokens"),
    ('{"text": " "}\n', "only empty texts"),
    ('{"words": "a"}\n', "no field 'text'"),
    ("", "cannot be loaded|nothing in it|broke off"),
])  # fmt: skip
def test_a_bad_data_set_is_one_line(content, match, saved, tmp_path) -> None:
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "train.jsonl").write_text(content)
    with pytest.raises(UserError, match=match):
        heal(saved("llama"), out=tmp_path / "out", **options(tmp_path / "set"))
    assert [path.name for path in tmp_path.iterdir()] == ["set"]


def test_files_or_a_data_set(saved, rows, tmp_path) -> None:
    with pytest.raises(UserError, match="and not both"):
        heal(saved("llama"), data=[rows / "train.jsonl"], out=tmp_path / "x", **options(rows))
    with pytest.raises(UserError, match="cannot be loaded"):
        heal(saved("llama"), out=tmp_path / "x", **options(tmp_path / "nothing"))
    with pytest.raises(UserError, match="data: give"):
        heal(saved("llama"), out=tmp_path / "x", **(options(rows) | {"dataset": None}))
