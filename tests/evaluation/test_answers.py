"""Answers held against another model's, against plain transformers, and models as drafts of others."""

import json
import re

import pytest
import torch
import zoo
from commands import status
from kills import Killed, keep_every_step
from shrinking import shrink
from torch.nn.functional import log_softmax

from shallower import Answers, UserError, evaluate, open_model
from shallower.anatomy.assisted import AssistedGeneration
from shallower.artifacts import load
from shallower.evaluation import agreement
from shallower.evaluation.agreement import repeats
from shallower.results.comparison import compare_entries
from shallower.results.entries import CompareArgument, entries_of

ROWS = [
    {"instruction": "Name a fruit.", "input": ""},
    {"prompt": "How do boats float?"},
    {"text": "Once upon a time there was"},
    {"instruction": "Sort these.", "input": "pear, apple"},
]
LONGEST = 12


@pytest.fixture
def prompts(tmp_path):
    path = tmp_path / "prompts.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS), encoding="utf-8")
    return path


@pytest.fixture
def model(tmp_path):
    """A tiny model with room for prompts in Alpaca's form."""
    return zoo.save(zoo.build("llama", shrink("llama", max_position_embeddings=512)), tmp_path / "dense")


def told(folder, prompts, **how):
    return evaluate(folder, answers=Answers(prompts=prompts, answer_tokens=LONGEST, **how))


@pytest.mark.parametrize(
    ("ids", "found"),
    [
        ([], False),
        ([1, 2, 3, 4] * 2, False),
        ([9, 1, 2, 3, 4] + [1, 2, 3, 4] * 2, True),
        ([5] * 11, False),
        ([7, 8] + [5] * 12, True),
        ([5] * 12 + [6], False),
        ([1, 2] * 6, True),
        ([1, 2] * 5, False),
        ([3, *range(20), *range(20), *range(20)], True),
    ],
)
def test_repetition_is_a_passage_three_times_at_the_end(ids, found) -> None:
    assert repeats(ids) is found


def test_agreement_with_itself_and_with_less_of_it(model, prompts) -> None:
    """Literally: greedy answers of plain transformers, one prompt at a time, and the divergence on the dense one's."""
    found = told(model, prompts, against=model).agreement
    assert (found.count, found.divergence, found.next_token, found.first_token, found.first_32) == (4, 0.0, 1, 1, 1)
    dense = open_model(model)
    found = evaluate(
        dense, removed=[1, 2], answers=Answers(dense, prompts=prompts, answer_tokens=LONGEST, max_prompts=3)
    )
    assert found.perplexity == {} and found.removed == [1, 2]
    divergence, agreed, tokens, firsts = 0.0, 0, 0, 0
    for ids in asked(dense, prompts)[:3]:
        taught = written(dense, ids)
        with dense.without(found.removal):
            own, ours = written(dense, ids), logits(dense, ids, taught)
        theirs = logits(dense, ids, taught)
        divergence += float((theirs.exp() * (theirs - ours)).sum())
        agreed += int((theirs.argmax(-1) == ours.argmax(-1)).sum())
        tokens, firsts = tokens + len(taught), firsts + (own[:1] == taught[:1])
    seen = found.agreement
    assert seen.divergence == pytest.approx(divergence / tokens, rel=1e-4) and seen.divergence > 0
    assert (seen.next_token, seen.first_token) == (pytest.approx(agreed / tokens), pytest.approx(firsts / 3))


def asked(model, prompts) -> list[list[int]]:
    from shallower.data.prompts import read_prompts

    return [one.ids for one in read_prompts([str(prompts)], model.tokenizer, model.vocabulary, room=400).items]


@torch.no_grad()
def written(model, ids: list[int]) -> list[int]:
    tokens = torch.tensor([ids])
    output = model.module.generate(tokens, attention_mask=torch.ones_like(tokens), max_new_tokens=LONGEST)
    return output[0, len(ids) :].tolist()


@torch.no_grad()
def logits(model, ids: list[int], answer: list[int]) -> torch.Tensor:
    return log_softmax(model.module(torch.tensor([[*ids, *answer]])).logits[0, len(ids) - 1 : -1], -1)


def test_a_killed_agreement_goes_on(model, prompts, tmp_path, monkeypatch, capsys) -> None:
    keep_every_step(monkeypatch)
    whole = told(model, prompts, against=model).agreement
    out = tmp_path / "out.json"
    options = [str(model), "--against", str(model), "--prompts", str(prompts), "--answer-tokens", str(LONGEST)]
    calls: list[int] = []
    compared = agreement._compared

    def dying(*given):
        calls.append(1)
        if len(calls) == 4:
            raise Killed
        return compared(*given)

    monkeypatch.setattr(agreement, "_compared", dying)
    with pytest.raises(Killed):
        status("evaluate", *options, "--out", out)
    assert status("evaluate", *options, "--out", out) == 0
    assert load(out, "evaluation").agreement == whole and len(calls) == 5


def test_a_draft_changes_nothing_but_the_time(model, prompts, tmp_path, capsys) -> None:
    """The target itself is a draft of which every token is taken."""
    out = tmp_path / "draft.json"
    options = ["--as-draft-of", str(model), "--prompts", str(prompts), "--answer-tokens", str(LONGEST)]
    assert status("evaluate", str(model), *options, "--draft-tokens", "3", "--out", out) == 0
    assert re.search(r"4.00 tokens per pass|\d of 4 answers", capsys.readouterr().out)
    same = load(out, "evaluation").draft
    assert same.identical + same.tied == same.prompts == 4 and same.acceptance_length > 3
    other = told(model, prompts, as_draft_of=model)
    assert (
        evaluate(model, removed=[1, 2], answers=Answers(None, model, prompts, answer_tokens=LONGEST)).draft.passes
        >= other.draft.passes
    )


def test_another_answer_is_no_draft(model, prompts, monkeypatch) -> None:
    answer = AssistedGeneration._answer

    def wrong(runs, asked, assisted):
        found = answer(runs, asked, assisted)
        return found._replace(ids=[found.ids[0] ^ 1, *found.ids[1:]]) if assisted else found

    monkeypatch.setattr(AssistedGeneration, "_answer", wrong)
    with pytest.raises(UserError, match="writes another answer than alone"):
        told(model, prompts, as_draft_of=model)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--max-prompts", "3"), "it speaks of --against and --as-draft-of"),
        (("--against", "MODEL", "--answer-tokens", "0"), "--answer-tokens 0: 1 or more"),
        (("--against", "MODEL", "--prompts", "nowhere.jsonl"), "--prompts nowhere.jsonl: no such file"),
        (("--against", "MODEL", "--prompts", "ROWS"), "line 1 has no field 'instruction', 'prompt' or 'text'"),
        (("--as-draft-of", "OTHER"), "has another vocabulary"),
        (("--as-draft-of", "MODEL", "--layered"), "both models have to be in memory"),
        (("--against", "nowhere"), "nowhere"),
    ],
)
def test_what_cannot_be_asked(options, said, model, saved, tmp_path, capsys) -> None:
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"question": "What?"}\n')
    other = zoo.save(zoo.build("llama", shrink("llama", vocab_size=300)), tmp_path / "other")
    places = {"MODEL": str(model), "OTHER": str(other), "ROWS": str(rows)}
    assert status("evaluate", str(model), *(places.get(option, option) for option in options)) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert said in lines[-1] and lines[-1].startswith("error: ")


def test_compare_holds_agreements_against_each_other(model, prompts) -> None:
    dense = open_model(model)
    how = {"answers": Answers(dense, prompts=prompts, answer_tokens=LONGEST)}
    found = [evaluate(dense, **how), evaluate(dense, removed=[1], **how)]
    given = [CompareArgument(f"{name}.json", name, [one]) for name, one in zip("ab", found, strict=True)]
    table = compare_entries(*entries_of(given))
    names = [f"agreement {name}" for name in ("divergence", "first token", "first 32", "repetition")]
    assert set(names) <= set(table.columns)
    assert table.rows[0].figures[names[0]].value == 0 and table.rows[0].figures[names[0]].better == "lower"
