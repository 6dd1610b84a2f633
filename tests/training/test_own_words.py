"""The unpruned model's own answers: asked once, kept, never lost, and learned with the loss on the answers only."""

import json
import shutil
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
import zoo
from commands import status
from kills import Killed
from trainings import CPU, GIVEN, LAUNCH, command
from transformers import AutoModelForCausalLM

from shallower import Answering, Compute, Training, UserError, drop, heal, methods, open_model, prune
from shallower.anatomy.generation import Generation, end_tokens
from shallower.data.packing import WITH_INPUT, Documents, packed_sequences
from shallower.data.prompts import read_prompts
from shallower.errors import Stopped
from shallower.runtime.progress import shown
from shallower.stages import training_data
from shallower.stages.common import resolve_settings
from shallower.stages.heal import HealingJob, Request
from shallower.training import own_words
from shallower.training.questions import AnswerFile

SENTENCES = zoo._SENTENCES.splitlines()
SIZE = {"length": 256, "batch_tokens": 512, "answer_tokens": 12, "device": "cpu"}
CHAT = "{% for m in messages %}<bos>{{ m['content'] }}\n{% endfor %}{% if add_generation_prompt %}Answer:{% endif %}"


@pytest.fixture(scope="module", autouse=True)
def _cache(tmp_path_factory):
    """Where models lie is remembered here alone; the same random one lies in many places."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SHALLOWER_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="module")
def pruned(saved, tmp_path_factory) -> Path:
    """A pruned model whose tokenizer has a chat template, its dense one still there."""
    folder = tmp_path_factory.mktemp("pruned")
    shutil.copytree(saved("llama"), folder / "dense")
    coder = zoo.tokenizer()
    coder.chat_template = CHAT
    coder.save_pretrained(folder / "dense")
    model = open_model(folder / "dense", CPU)
    prune(model, drop(model, (2, 5)), out=folder / "pruned")
    return folder / "pruned"


@pytest.fixture(scope="module")
def prompts(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("prompts") / "prompts.jsonl"
    path.write_text("".join(json.dumps({"prompt": line}) + "\n" for line in SENTENCES), encoding="utf-8")
    return path


def healed(folder: Path, out: Path, *data: Path | str, tokens: int = 1024, method: str = "continued", **more):
    return heal(folder, data=[*map(str, data)], train_tokens=tokens, out=out, method=method, **SIZE | more)


def settled(folder: Path, out: Path, *data: Path | str, tokens: int = 1024, method: str = "continued", **more):
    """The data of a healing as they are when training would begin."""
    wanted = {"training": (Training, None), "answering": (Answering, None), "compute": (Compute, None)}
    request = Request(folder, tuple(map(str, data)), None, tokens, out, method)
    job = HealingJob(request, *resolve_settings(SIZE | more, "heal", **wanted))
    job.check()
    return job.data


def answers_in(folder: Path) -> list[list[dict]]:
    """Lines of every file of answers, without the first of each."""
    files = sorted(folder.glob("answers-*.jsonl"))
    return [[json.loads(line) for line in path.read_text().splitlines()[1:]] for path in files]


# ---------------------------------------------------------------- asked, learned, told


@pytest.mark.parametrize("method", methods.names("healing"))
def test_every_method_learns_the_answers(method: str, pruned, prompts, tmp_path) -> None:
    found = healed(pruned, tmp_path / "out", f"self:{prompts}", method=method)
    (rows,) = answers_in(tmp_path)
    told = found.data.answers
    assert (told.template, told.temperature, told.longest) == ("chat", 0.0, 12)
    assert told.fingerprint == open_model(pruned.parent / "dense").record.fingerprint
    assert told.prompts == told.answers == len(rows) == found.data.documents and told.empty == told.long == 0
    assert told.tokens == sum(len(row["ids"]) for row in rows) == found.data.loss_tokens
    assert found.data.source == "self:prompts.jsonl" and (tmp_path / f"answers-{told.hash}.jsonl").is_file()
    dense = AutoModelForCausalLM.from_pretrained(pruned.parent / "dense").eval()
    asked = zoo.tokenizer()(f"<bos>{rows[0]['prompt']}\nAnswer:", return_tensors="pt").input_ids
    said = dense.generate(asked, max_new_tokens=12, do_sample=False, pad_token_id=0)[0, asked.shape[1] :].tolist()
    assert rows[0]["ids"] == said and rows[0]["prompt"] in SENTENCES
    side = json.loads((tmp_path / "out" / "shallower.json").read_text())
    assert side["healing"][0]["own_answers"] == told.answers
    card = (tmp_path / "out" / "README.md").read_text()
    assert f"tokens with {told.answers} answers of the base model itself" in card
    assert "answers of the base model to prompts" in card and str(pruned.parent) not in card


def test_a_loss_on_answers_only(pruned, prompts, tmp_path) -> None:
    """A mixture with other files too; an answer that was cut has no end."""
    alpaca, book = tmp_path / "alpaca.jsonl", tmp_path / "book.txt"
    alpaca.write_text(json.dumps({"instruction": "Say b.", "output": "b!"}) + "\n")
    book.write_text("\n".join(SENTENCES * 4))
    coder = zoo.tokenizer()
    for more, kind in (((), "instructions"), ((alpaca,), "instructions"), ((book,), "mixed")):
        packed = settled(pruned, tmp_path / "out", f"self:{prompts}", *more)
        (rows,) = answers_in(tmp_path)
        assert packed.about.kind == kind and packed.about.source.endswith("self:prompts.jsonl")
        learned = [one[mask].tolist() for one, mask in zip(packed.tokens, packed.loss_mask, strict=True)]
        wanted = sorted(token for row in rows for token in row["ids"])
        if kind == "instructions":
            wanted += [*coder("b!").input_ids, coder.eos_token_id] if more else []
            assert sorted(token for one in learned for token in one) == sorted(wanted)
        whole = "".join(coder.decode(one) for one in packed.tokens)
        assert all(f"<bos>{row['prompt']}\nAnswer:{coder.decode(row['ids'])}" in whole for row in rows)
        assert all(row["ended"] == (row["ids"][-1] == coder.eos_token_id) for row in rows)
        assert not all(row["ended"] for row in rows)
    assert packed.about.documents == len(rows) + 1


def test_parts_beside_each_other_are_padded() -> None:
    text = Documents([np.arange(4, 20)], [0], False, "text", 2)
    own = Documents([np.arange(30, 36)], [2], True, "self:x", 2, cut_off=4)
    both = packed_sequences([text, own], 8, 0, isolated=False)
    assert both.tokens[2].tolist() == [30, 31, 32, 33, 2, 2, 2, 2] and both.about.kind == "mixed"
    assert both.loss_mask[2].tolist() == [False, False, True, True, *[False] * 4]
    assert torch.equal(both.tokens[:2], packed_sequences(text, 8, 0, isolated=False).tokens)


def test_prompts_are_put_in_their_template(tmp_path) -> None:
    path = tmp_path / "mixed.jsonl"
    rows = [{"instruction": "Sum.", "input": "1 2"}, {"prompt": "Why?"}, {"text": "Once"}, {"text": " "}]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    coder = zoo.tokenizer()
    for template, wanted in (
        (None, [WITH_INPUT.format(instruction="Sum.", input="1 2"), "Why?\n\n### Response:\n", "Once"]),
        (CHAT, ["<bos>Sum.\n\n1 2\nAnswer:", "<bos>Why?\nAnswer:", "Once"]),
    ):
        coder.chat_template = template
        found = read_prompts([str(path)], coder, zoo.VOCAB, room=512)
        put = [coder.decode(one.ids) for one in found.items]
        assert put[0] == wanted[0] and put[1].endswith(wanted[1]) and put[2] == wanted[2]
        assert [one.text for one in found.items] == ["Sum.\n\n1 2", "Why?", "Once"]
    assert read_prompts([str(path)], coder, zoo.VOCAB, room=len(found.items[0].ids)).long == 1


def test_the_model_that_nothing_was_removed_from_answers(pruned, prompts, tmp_path) -> None:
    """Not the one in between; ``teacher`` names it where the folder does not know."""
    between = open_model(pruned, CPU)
    prune(between, drop(between, (1,)), out=tmp_path / "further")
    found = healed(tmp_path / "further", tmp_path / "out", f"self:{prompts}")
    assert found.data.answers.fingerprint == open_model(pruned.parent / "dense").record.fingerprint
    plain = shutil.copytree(pruned, tmp_path / "plain")
    (plain / "shallower.json").unlink()
    with pytest.raises(UserError, match="teacher=MODEL says so"):
        healed(plain, tmp_path / "other", f"self:{prompts}")
    named = healed(plain, tmp_path / "other", f"self:{prompts}", teacher=pruned.parent / "dense", method="distill")
    assert named.data.answers.hash == found.data.answers.hash and named.teacher == "dense"


def test_teacher_and_student_are_not_in_memory_together(pruned, prompts, tmp_path, monkeypatch) -> None:
    seen = []
    real = training_data.own_words
    loading = own_words.load_weights

    def load(model) -> None:
        loading(model)
        seen.append(model)

    monkeypatch.setattr(own_words, "load_weights", load)
    monkeypatch.setattr(training_data, "own_words", lambda *given: (real(*given), seen.append(seen[0].loaded))[0])
    healed(pruned, tmp_path / "out", f"self:{prompts}")
    assert len(seen[0].record.original) == 8 and seen[1:] == [False]


# ---------------------------------------------------------------- kept, and made anew


def test_a_kill_loses_one_batch(pruned, prompts, tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.setattr(own_words, "AT_ONCE", {"cpu": 2})
    whole = healed(pruned, tmp_path / "whole" / "out", f"self:{prompts}", answer_temperature=0.7)
    added, add = [], AnswerFile.add

    def killed(self, answers) -> None:
        add(self, answers)
        added.append(len(answers))
        if len(added) == 2:
            raise Killed

    monkeypatch.setattr(AnswerFile, "add", killed)
    with pytest.raises(Killed):
        healed(pruned, tmp_path / "out", f"self:{prompts}", answer_temperature=0.7)
    monkeypatch.setattr(AnswerFile, "add", add)
    assert not (tmp_path / "out").exists()
    (path,) = tmp_path.glob("answers-*")
    with path.open("a") as file:
        file.write('{"number": 3, "pro')
    asked, real = [], Generation.answers
    monkeypatch.setattr(Generation, "answers", lambda self, given, watch: asked.append(len(given)) or real(self, given))
    with shown():
        again = healed(pruned, tmp_path / "out", f"self:{prompts}", answer_temperature=0.7)
    assert "resuming at answer 4 of" in capsys.readouterr().err
    assert sum(asked) == whole.data.answers.prompts - 4
    assert path.read_bytes() == (tmp_path / "whole" / path.name).read_bytes()
    assert again.data == whole.data
    assert sorted(item.name for item in tmp_path.iterdir()) == [path.name, "out", "whole"]


def test_a_signal_ends_behind_a_batch_and_says_what_is_kept(pruned, prompts, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(own_words, "AT_ONCE", {"cpu": 2})
    monkeypatch.setattr(own_words, "stop_asked", lambda: signal.SIGTERM)
    with pytest.raises(Stopped, match=r"^2 answers are kept in .*answers-.*: the same command goes on") as stopped:
        settled(pruned, tmp_path / "out", f"self:{prompts}")
    assert stopped.value.status == 143 and len(answers_in(tmp_path)[0]) == 2


def test_what_lies_there_is_taken_and_else_made_anew(pruned, saved, prompts, tmp_path, monkeypatch) -> None:
    given = f"self:{prompts}"
    first = settled(pruned, tmp_path / "a", given, tokens=256, batch_tokens=256).about
    with monkeypatch.context() as patch:
        patch.setattr(Generation, "answers", lambda *given: pytest.fail("asked again"))
        same = settled(pruned, tmp_path / "b", given, tokens=256, batch_tokens=256, method="lora").about
    assert same == first and first.answers.prompts < len(SENTENCES)
    more = settled(pruned, tmp_path / "c", given, tokens=4096).about  # a larger budget goes on in the same file
    assert more.answers.prompts == len(SENTENCES) and more.answers.hash == first.answers.hash
    few = settled(pruned, tmp_path / "d", given, tokens=4096, max_prompts=3).about
    assert few.answers.prompts == 3 and len(answers_in(tmp_path)) == 1
    other = tmp_path / "other.jsonl"
    other.write_text(prompts.read_text() + '{"text": "And then"}\n')
    changed = ({"answer_tokens": 11}, {"answer_temperature": 0.7}, {"answer_temperature": 0.7, "seed": 5})
    changed += ({"teacher": saved("llama+tied")}, {"dtype": "bf16"})
    for change in changed:
        settled(pruned, tmp_path / "e", given, **change)
    settled(pruned, tmp_path / "e", f"self:{other}")
    assert len(answers_in(tmp_path)) == 1 + len(changed) + 1


def test_a_file_that_somebody_changed_is_refused(pruned, prompts, tmp_path) -> None:
    settled(pruned, tmp_path / "a", f"self:{prompts}")
    (path,) = tmp_path.glob("answers-*")
    lines = path.read_text().splitlines()
    for broken in (["{}", *lines[1:]], [lines[0], '{"number": 99}', *lines[2:]], [lines[0], "half", *lines[2:]]):
        path.write_text("\n".join(broken) + "\n")
        with pytest.raises(UserError, match=r"line [12] is (not as it was written: remove|not JSON)"):
            settled(pruned, tmp_path / "b", f"self:{prompts}")
    assert not (tmp_path / "b").exists()


# ---------------------------------------------------------------- answers


def test_empty_answers_are_left_out(pruned, prompts, tmp_path, monkeypatch) -> None:
    real = Generation.answers
    monkeypatch.setattr(Generation, "answers", lambda self, given, watch: [[2], *real(self, given)[1:]])
    found = settled(pruned, tmp_path / "out", f"self:{prompts}", tokens=4096).about.answers
    assert (found.prompts, found.empty, found.answers) == (10, 1, 9)
    monkeypatch.setattr(Generation, "answers", lambda self, given, watch: [[2] for _ in given])
    with pytest.raises(UserError, match=r"all 10 answers of .* are empty \(.*answers-.*jsonl holds them\)"):
        settled(pruned, tmp_path / "none", f"self:{prompts}", answer_tokens=9)
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize(("name", "takes"), [("llama", True), ("gpt2", True), ("recurrent_gemma", False)])
def test_padding_changes_nothing_or_is_not_used(name: str, takes: bool, saved) -> None:
    module = open_model(saved(name), CPU).module
    module.generation_config.repetition_penalty = 5.0  # of the files' own sampling nothing counts
    generation = Generation(module, zoo.tokenizer(), longest=6)
    assert generation.takes_padding() == takes
    pair = [[5, 6, 7], [8, 9, 10, 11, 12, 13]]
    if takes:
        assert generation.answers(pair) == [generation.answers([one])[0] for one in pair]
    alone = module.generate(torch.tensor(pair[:1]), max_new_tokens=6, do_sample=False, repetition_penalty=1.0)
    assert generation.answers(pair[:1])[0] == alone[0, 3:].tolist()
    assert module.generation_config.repetition_penalty == 5.0


def test_any_of_the_end_tokens_ends(saved) -> None:
    module = open_model(saved("llama"), CPU).module
    first = Generation(module, zoo.tokenizer(), longest=6).answers([[5, 6, 7]])[0]
    module.generation_config.eos_token_id = [3, first[0]]
    assert end_tokens(module, zoo.tokenizer()) == [3, first[0], 2] and len(first) > 1
    assert Generation(module, zoo.tokenizer(), longest=6).answers([[5, 6, 7]])[0] == first[:1]


def test_short_memory_halves_the_batch(pruned, prompts, tmp_path, monkeypatch, capsys) -> None:
    plain = settled(pruned, tmp_path / "plain" / "out", f"self:{prompts}", tokens=4096)
    real = Generation.answers

    def answers(self, given, watch):
        if len(given) > 3:
            raise torch.OutOfMemoryError("none left")
        return real(self, given)

    monkeypatch.setattr(Generation, "answers", answers)
    with shown():
        spared = settled(pruned, tmp_path / "out", f"self:{prompts}", tokens=4096)
    assert "out of memory: from now on 2 prompts at once" in capsys.readouterr().err
    assert spared.about == plain.about


def test_in_half_precision(prompts, tmp_path) -> None:
    dense = zoo.save("llama", tmp_path / "dense", dtype=torch.bfloat16)
    model = open_model(dense, CPU)
    prune(model, drop(model, (3,)), out=tmp_path / "pruned")
    found = healed(tmp_path / "pruned", tmp_path / "out", f"self:{prompts}", dtype="bf16")
    assert found.dtype == "bfloat16" and found.data.answers.answers
    (path,) = tmp_path.glob("answers-*")
    assert json.loads(path.read_text().splitlines()[0])["dtype"] == "bfloat16"


@pytest.mark.slow
def test_two_processes_share_the_prompts(pruned, prompts, tmp_path) -> None:
    given = ["heal", str(pruned), "--method", "continued", "--data", f"self:{prompts}", "--answer-tokens", "12"]
    given += [*GIVEN, "--length", "256", "--batch-tokens", "512"]
    for flag in ("--length", "--batch-tokens"):  # the first of each is GIVEN's
        del given[given.index(flag) : given.index(flag) + 2]
    ran = command(*LAUNCH, *given, "--out", str(tmp_path / "two" / "out"), "--json")
    assert ran.returncode == 0, ran.stderr
    one = command("-m", "shallower", *given, "--out", str(tmp_path / "one" / "out"), "--json")
    told = [json.loads(one.stdout)["data"] for one in (ran, one)]
    assert told[0] == told[1]
    assert sorted(answers_in(tmp_path / "two")[0], key=str) == sorted(answers_in(tmp_path / "one")[0], key=str)


# ---------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    ("name", "content", "more", "match"),
    [
        (
            "field.jsonl",
            '{"text": "a"}\n{"body": "b", "id": 1}\n',
            (),
            "line 2 has no field 'instruction', 'prompt' or",
        ),
        ("type.jsonl", '{"prompt": ["a"]}\n', (), "line 1 has a field 'prompt' that is a list"),
        ("input.jsonl", '{"instruction": "a", "input": 3}\n', (), "line 1 has a field 'input' that is a int"),
        ("empty.jsonl", '{"prompt": " "}\n', (), "only empty prompts, or none"),
        ("long.jsonl", json.dumps({"text": "a b c " * 99}) + "\n", (), "every prompt has 32 tokens or more"),
        ("one.txt", "a", (), "a .txt is one text; give prompts in rows"),
        ("one.csv", "a", (), ".csv is not read"),
        (None, "", (), "no such file"),
        ("good.jsonl", '{"text": "a"}\n', ("--answer-tokens", "0"), "--answer-tokens 0: 1 or more"),
        ("good.jsonl", '{"text": "a"}\n', ("--answer-temperature", "-1"), "--answer-temperature -1.0: 0 ("),
        ("good.jsonl", '{"text": "a"}\n', ("--max-prompts", "0"), "--max-prompts 0: 1 or more"),
        ("good.jsonl", '{"text": "a"}\n', ("--teacher", "/nowhere"), "the dense model /nowhere cannot be opened"),
        ("good.jsonl", '{"text": "a"}\n', ("--batch-tokens", "8"), "--batch-tokens 8: at least one sequence"),
    ],
)
def test_bad_prompts_are_one_line(name, content, more, match, pruned, tmp_path, capsys) -> None:
    path = tmp_path / (name or "absent.jsonl")
    if name:
        path.write_text(content)
    given = ["--data", f"self:{path}", "--train-tokens", "1K", "--length", "32", "--device", "cpu", *more]
    assert status("heal", pruned, "--method", "continued", *given, "--out", tmp_path / "out") == 2
    error = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error:")]
    assert len(error) == 1 and match in error[0]
    assert sorted(item.name for item in tmp_path.iterdir()) == ([name] if name else [])


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"answer_tokens": 5}, r"answer_tokens=5: .* no prompts here: give data=self:FILE"),
        ({"max_prompts": 5}, r"max_prompts=5: .* no prompts here"),
        ({"teacher": "dense"}, r"teacher=dense: .* no prompts here"),
        ({"method": "distill", "teacher": "a", "settings": {"teacher": "b"}}, "teacher=a: .* give one of them"),
    ],
)
def test_options_without_use_are_refused(options, match, pruned, text, tmp_path) -> None:
    with pytest.raises(UserError, match=match):
        heal(pruned, data=text, train_tokens=256, length=32, out=tmp_path / "out", compute=CPU, **options)
    assert not list(tmp_path.iterdir())


def test_checkpoints_of_another_run_are_seen_before_anything_is_asked(pruned, prompts, tmp_path, monkeypatch) -> None:
    kept = tmp_path / ".out.healing"
    kept.mkdir()
    (kept / "step-3.safetensors").touch()
    monkeypatch.setattr(Generation, "answers", lambda *given: pytest.fail("asked"))
    with pytest.raises(UserError, match="pass resume=True to go on"):
        healed(pruned, tmp_path / "out", f"self:{prompts}")
