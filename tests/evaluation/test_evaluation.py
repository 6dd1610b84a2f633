"""Zero-shot tasks against lm-eval itself, perplexity by protocol, bits per byte, sweeps and budgets against single
runs.
"""

import json
import math
import re
from pathlib import Path

import pytest
import torch
import zoo
from kills import Killed, keep_every_step, killed, killed_after
from shrinking import shrink

from shallower import (
    Amount,
    Calibration,
    Compute,
    Protocol,
    SelectionOptions,
    Tasks,
    UserError,
    evaluate,
    open_model,
    plan,
    score,
    sweep,
)
from shallower.cli import main
from shallower.evaluation.perplexity import segments_of_text, settled_protocol
from shallower.evaluation.task_data import task_manager
from shallower.evaluation.tasks import batch_sizes, centred_mean, mean_of
from shallower.runtime.progress import shown
from shallower.settings.quantities import sizes_of
from shallower.storage.journal import Journal

PIQA = [
    {"goal": f"How to boil {n} eggs?", "sol1": "Use hot water.", "sol2": "Use a hammer " * n, "label": n % 2}
    for n in range(1, 9)
]
ARC = [
    {
        "question": f"What is {n}?",
        "choices": {"text": ["one", "a word", "two"], "label": ["A", "B", "C"]},
        "answerKey": "B",
    }
    for n in range(5)
]
TRIVIA = [{"question": f"Who ate {n} eggs?", "answer": {"value": "A", "aliases": ["A", "B"]}} for n in range(3)]
TEXT = "The ferry left at noon — with 20 people, two dogs and a piano. " * 30


def lines(path: Path, rows: list) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.fixture
def data(tmp_path):
    lines(tmp_path / "piqa.jsonl", PIQA)
    lines(tmp_path / "arc_easy.jsonl", ARC)
    lines(tmp_path / "triviaqa.jsonl", TRIVIA)
    return tmp_path


@pytest.fixture
def text(tmp_path):
    path = tmp_path / "prose.txt"
    path.write_text(TEXT, encoding="utf-8")
    return path


def directly(model, names: list[str], data: Path, tmp_path: Path, limit: int | None = None, batch: int = 4) -> dict:
    """lm-eval called by itself on the same checkpoint, with its own task files and our data files."""
    lm_eval = pytest.importorskip("lm_eval")
    tasks = pytest.importorskip("lm_eval.tasks")
    from lm_eval.models.huggingface import HFLM

    known = task_manager().task_index  # reading it takes seconds
    for name in names:
        local = {
            "dataset_path": "json",
            "dataset_name": None,
            "dataset_kwargs": {"data_files": {"test": str(data / f"{name}.jsonl")}},
        }
        splits = {"training_split": None, "validation_split": None, "test_split": "test"}
        (tmp_path / f"{name}_here.yaml").write_text(
            json.dumps({"include": str(known[name].yaml_path), "task": f"{name}_here"} | local | splits)
        )
    manager = tasks.TaskManager(include_path=str(tmp_path), include_defaults=False)
    lm = HFLM(pretrained=model.module, tokenizer=model.tokenizer, batch_size=batch, backend="causal")
    found = lm_eval.simple_evaluate(lm, tasks=[f"{name}_here" for name in names], task_manager=manager, limit=limit)
    rows = {name: found["results"][f"{name}_here"] for name in names}
    return {name: {key.partition(",")[0]: value for key, value in row.items()} for name, row in rows.items()}


@pytest.mark.filterwarnings("ignore")
def test_tasks_equal_lm_eval_itself(saved, data, tmp_path, capsys) -> None:
    """Also where answers are written, without trying first how large a batch can be."""
    names = ["piqa", "arc_easy", "triviaqa"]
    with pytest.raises(UserError, match="answers have up to 256 tokens, and the model reads 256 in all"):
        evaluate(saved("llama"), tasks=Tasks(names[2:], data))
    model = open_model(zoo.save(zoo.build("llama", shrink("llama", max_position_embeddings=300)), tmp_path / "model"))
    found = evaluate(model, tasks=Tasks(names, data)).tasks
    assert "Detecting" not in "".join(capsys.readouterr())
    wanted = directly(model, names, data, tmp_path)
    for name, item in found.items():
        for metric, value in item.metrics.items():
            assert value == pytest.approx(wanted[name][metric], abs=1e-12), (name, metric)
        assert item.value == sum(item.items) / item.count
        assert item.metric == ("exact_match" if name == "triviaqa" else "acc")
        assert item.chance == pytest.approx({"piqa": 1 / 2, "arc_easy": 1 / 3, "triviaqa": 0.0}[name])
    assert centred_mean(found) == pytest.approx(sum(item.centred for item in found.values()) / 3)
    assert [found[name].count for name in names] == [8, 5, 3]
    assert mean_of(found) == sum(found[name].value for name in names) / 3


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_the_seven_tasks_equal_lm_eval_itself(smollm2, shared, tmp_path) -> None:
    tasks = Tasks(("commonsense7",), shared / "tasks", 100)
    found = evaluate(smollm2, tasks=tasks).tasks
    wanted = directly(smollm2, tasks.every(), shared / "tasks", tmp_path, limit=100, batch=8)
    assert len(found) == 7
    for name, item in found.items():
        assert {key: item.metrics[key] for key in item.metrics} == {
            key: pytest.approx(wanted[name][key], abs=1e-12) for key in item.metrics
        }


EXAMPLES = [{"instruction": f"What is {n} + 1?", "input": "", "output": f"Count.\n#### {n + 1}"} for n in range(6)]
GSM8K = [{"question": f"What is {n} + 2?", "answer": f"Count on.\n#### {n + 2}"} for n in range(4)]


@pytest.mark.filterwarnings("ignore")
def test_examples_come_from_a_file_of_their_own(data, tmp_path, monkeypatch) -> None:
    """And never from the items; without a file there are none, however many the task asks for."""
    model = open_model(zoo.save(zoo.build("llama", shrink("llama", max_position_embeddings=1200)), tmp_path / "model"))
    lines(data / "gsm8k.jsonl", GSM8K)
    (data / "examples").mkdir()
    examples = lines(data / "examples" / "gsm8k.jsonl", EXAMPLES)
    asked: list[str] = []
    monkeypatch.setattr(
        "lm_eval.models.huggingface.HFLM.generate_until",
        lambda lm, requests, *_: [asked.append(one.args[0]) or "#### 5" for one in requests],
    )
    bare = evaluate(model, tasks=Tasks("gsm8k", data)).tasks["gsm8k"]
    assert (bare.shots, bare.count, bare.chance, bare.centred) == (None, 4, 0.0, 0.25)
    assert all(text.count("Question:") == 1 for text in asked) and "exact_match (strict-match)" in bare.metrics
    for place, shots in ((examples, None), (examples.parent, 2)):
        asked.clear()
        found = evaluate(model, tasks=Tasks("gsm8k", data, examples=place, shots=shots)).tasks["gsm8k"]
        assert (found.shots, found.value, found.items) == (shots or 5, 0.25, [0.0, 0.0, 0.0, 1.0])
        assert all(text.count("Question:") == 1 + (shots or 5) and text.count("+ 2?") == 1 for text in asked)
        assert found.hash != bare.hash


def test_the_last_word_counts_by_its_share(saved, data) -> None:
    """Not by the perplexity that lm-eval names first."""
    lines(data / "lambada_openai.jsonl", [{"text": f"The {n} boats left the harbour at noon"} for n in range(3)])
    found = evaluate(saved("llama"), tasks=Tasks("lambada_openai", data)).tasks["lambada_openai"]
    assert (found.metric, found.chance, found.centred) == ("acc", 0.0, found.value) and "perplexity" in found.metrics


@pytest.mark.slow
def test_tasks_without_layers_and_limited(saved, data, tmp_path) -> None:
    model = open_model(saved("llama"))
    whole = evaluate(model, tasks=Tasks(("piqa",), data, 4))
    less = evaluate(model, tasks=Tasks(("piqa",), data, 4), removed=[1, 2])
    assert whole.tasks["piqa"].count == less.tasks["piqa"].count == 4 and less.removed == [1, 2]
    layered = evaluate(saved("llama"), tasks=Tasks(("piqa",), data, 4), compute=Compute(layered=True))
    assert layered.tasks == whole.tasks


def test_batches_by_length() -> None:
    assert batch_sizes([10, 9, 4, 4, 4, 2, 2], 12) == [1, 1, 3, 3, 3, 2, 2]
    assert batch_sizes([99], 12) == [1]


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"goal": "a", "sol1": "b", "label": 0}, "line 2 has no field 'sol2'"),
        ({"goal": "a", "sol1": "b", "sol2": 3, "label": 0}, "line 2: field 'sol2' is a int; piqa needs a str"),
        ({"goal": "a", "sol1": "b", "sol2": "c", "label": 2}, "line 2: label must be 0 or 1"),
        ([1], "line 2 is a list"),
    ],
)
def test_items_that_do_not_fit(row, said, saved, tmp_path, capsys) -> None:
    lines(tmp_path / "piqa.jsonl", [PIQA[0], row])
    with pytest.raises(SystemExit) as left:
        main(["evaluate", str(saved("llama")), "--tasks", "piqa", "--task-data", str(tmp_path)])
    assert left.value.code == 2 and said in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--tasks", "piqqa"), "unknown task 'piqqa'; nearest are piqa"),
        (("--tasks", "winogrande", "--task-data", "DATA"), "no winogrande.jsonl there; it has arc_easy, piqa"),
        (("--tasks", "piqa", "--limit", "0"), "--limit 0: a number of items"),
        (("--tasks", ","), "--tasks names no task"),
        (("--limit", "3"), "--limit speaks of --tasks"),
        (("--tasks", "piqa", "--shots", "-1"), "--shots -1: a number of examples"),
        (("--tasks", "piqa", "--task-examples", "DATA"), "give --task-data too"),
        (("--tasks", "piqa", "--task-data", "DATA", "--task-examples", "nowhere"), "no such file or folder"),
        (("--tasks", "piqa", "--task-data", "DATA", "--shots", "2"), "--shots 2: piqa has no examples: give"),
        (("--protocol", "long"), "--protocol long: allowed are shortened-llama, standard"),
    ],
)
def test_options_that_do_not_fit(options, said, saved, data, capsys) -> None:
    options = [str(data) if option == "DATA" else option for option in options]
    with pytest.raises(SystemExit) as left:
        main(["evaluate", str(saved("llama")), *options])
    error = capsys.readouterr().err
    assert left.value.code == 2 and said in error, error


def test_protocols(saved, text) -> None:
    model = open_model(saved("llama"))
    known = model.checkpoint.config.max_position_embeddings
    assert settled_protocol(Protocol(), model).length == min(128, known)
    assert settled_protocol(Protocol(name="standard"), model).length == min(2048, known)
    found = evaluate(model, texts=[text], protocol=Protocol(length=16)).perplexity["prose"]
    assert found.length == 16 and found.value == pytest.approx(math.exp(found.nll))
    assert found.nll == pytest.approx(sum(total for total, _ in found.parts) / found.tokens, rel=1e-6)


@pytest.mark.parametrize(
    "protocol",
    [
        Protocol(length=16, stride=stride, bos=bos)
        for stride, bos in ((None, "auto"), (8, "auto"), (None, "every"), (None, "none"))
    ],
)
def test_bytes_are_those_of_the_counted_tokens(protocol, saved) -> None:
    tokenizer = open_model(saved("llama")).tokenizer
    segments = segments_of_text(TEXT, tokenizer, protocol, "text")
    predicted = segments.tokens[:, 1:][segments.counted].tolist()
    pieces = [tokenizer.backend_tokenizer.id_to_token(one) for one in predicted]
    # byte-level: a character of a piece is a byte; a character that is cut at the end of a segment counts on one side
    # of it
    assert segments.bytes == pytest.approx(sum(map(len, pieces)), rel=0.01)


def test_nan_names_the_first_broken_layer(tmp_path) -> None:
    """A model that is sound when it is opened, and is not on the text."""
    model = open_model(zoo.save("llama", tmp_path / "model"))
    layer = model.stack.layers[2]

    def overflow(_module, given, output):
        stream = output if isinstance(output, torch.Tensor) else output[0]
        return torch.full_like(stream, torch.nan) if stream.shape[1] == 16 else output

    handle = layer.register_forward_hook(overflow)
    with pytest.raises(UserError, match="layer 2 is the first whose output is not finite"):
        evaluate(model, protocol=Protocol(length=16, max_tokens=64))
    handle.remove()


@pytest.mark.parametrize("selection", ["lowest", "window", "greedy", "positional"])
def test_a_sweep_is_its_single_runs(selection, saved, text, tmp_path) -> None:
    model, calibration = open_model(saved("llama")), Calibration(samples=2, length=16)
    how = {
        "choosing": SelectionOptions(selection, keep_first=0, keep_last=0),
        "criterion": "angular",
        "calibration": calibration,
    }
    protocol = Protocol(length=16, max_tokens=96)
    found = sweep(model, sizes=[1, 2], texts=[text], protocol=protocol, out=tmp_path / "sweep.json", **how)
    assert [row.removed for row in found.rows] == [0, 1, 2]
    for row in found.rows:
        if row.removed:
            single = plan(model, amount=Amount(remove=row.removed), **how)
            assert row.layers == single.removed and row.parameters == single.params_after
        value = evaluate(model, texts=[text], protocol=protocol, removed=row.layers).perplexity["prose"]
        assert row.perplexity["prose"].value == pytest.approx(value.value, rel=1e-5)
        assert row.perplexity["prose"].bits_per_byte == pytest.approx(value.bits_per_byte, rel=1e-5)


@pytest.mark.filterwarnings("ignore")
def test_a_killed_evaluation_goes_on(saved, data, text, tmp_path, monkeypatch, capsys) -> None:
    """In the middle of a text, and in the middle of the tasks; the same to the last bit."""
    keep_every_step(monkeypatch)
    monkeypatch.setattr("shallower.walk.removals.BATCHES_TOGETHER", 1)
    monkeypatch.setattr("shallower.evaluation.tasks.FEWEST_REQUESTS", 7)
    how = {"texts": [text], "tasks": Tasks(("piqa", "arc_easy"), data), "protocol": Protocol(length=16)}
    how |= {"compute": Compute(device="cpu", max_batch_tokens=128)}
    whole, out = evaluate(saved("llama"), **how), tmp_path / "out.json"
    killed_after(monkeypatch, 2, lambda: evaluate(saved("llama"), out=out, **how))
    noted = Journal.memo
    with monkeypatch.context() as patch:
        patch.setattr(
            Journal, "memo", lambda journal, name, compute: noted(journal, name, compute if name != "14" else killed)
        )
        with pytest.raises(Killed):
            evaluate(saved("llama"), out=out, **how)
    assert not out.exists()
    with shown():
        found = evaluate(saved("llama"), out=out, **how)
    said = capsys.readouterr().err
    assert (
        re.search(r"resuming at perplexity prose (\d+) of \1\n", said) and "resuming at task requests 14 of 31" in said
    )
    assert (found.perplexity, found.tasks) == (whole.perplexity, whole.tasks)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "arc_easy.jsonl",
        "out.json",
        "piqa.jsonl",
        "prose.txt",
        "triviaqa.jsonl",
    ]


def test_sizes() -> None:
    assert sizes_of("1..3, 6", "sizes") == sizes_of("1-3,6", "sizes") == (1, 2, 3, 6)
    for wrong in ("", "0..2", "3..1", "3,9..6", "3-1", "a", "-1"):
        with pytest.raises(UserError, match="sizes="):
            sizes_of(wrong, "sizes")


def test_targets_of_memory_and_speed(saved) -> None:
    model = open_model(saved("llama"))
    record, how = model.record, {"criterion": "magnitude", "choosing": SelectionOptions(keep_first=0, keep_last=0)}
    each = record.layer_parameters[0]
    bytes_each = model.checkpoint.config.dtype.itemsize
    found = plan(model, amount=Amount(target_memory=(record.parameters - each) * bytes_each), **how)
    assert len(found.removed) == 1 and "bytes each" in found.assumed
    read = record.parameters - record.lookup_parameters
    found = plan(model, amount=Amount(target_speedup=read / (read - 2 * each) * 0.999), **how)
    assert len(found.removed) == 2 and "memory-bound" in found.assumed
    with pytest.raises(UserError, match="target_speedup=900 cannot be met"):
        plan(model, amount=Amount(target_speedup=900.0), **how)
    with pytest.raises(UserError, match="target_memory=9GB: the model has"):
        plan(model, amount=Amount(target_memory=9 * 10**9), **how)


def test_the_untied_embedding_is_not_read(saved) -> None:
    tied, untied = (open_model(saved(name)).record for name in ("gpt2", "llama"))
    config = open_model(saved("llama")).checkpoint.config
    assert tied.lookup_parameters == 0
    assert untied.lookup_parameters == (0 if config.tie_word_embeddings else config.vocab_size * config.hidden_size)


def test_as_many_layers_as_the_perplexity_allows(saved, text) -> None:
    model, protocol = open_model(saved("llama")), Protocol(length=16, max_tokens=96)
    how = {
        "criterion": "block_influence",
        "choosing": SelectionOptions(keep_first=0, keep_last=0),
        "calibration": Calibration(samples=2, length=16),
    }
    rows = sweep(model, sizes=range(1, model.record.layers - 1), texts=[text], protocol=protocol, **how).rows
    grown = [row.perplexity["prose"].value / rows[0].perplexity["prose"].value - 1 for row in rows[1:]]
    for share in (max(grown) + 0.01, grown[0] + 1e-6):
        if share <= 0:
            continue
        found = plan(model, amount=Amount(max_ppl_increase=share), texts=[text], protocol=protocol, **how)
        stays = next((n for n, value in enumerate(grown) if value > share), len(grown))
        assert len(found.removed) >= stays and "perplexity changes by" in found.assumed
    with pytest.raises(UserError, match="runs the model"):
        plan(score(model, criterion="magnitude"), amount=Amount(max_ppl_increase=0.1))
