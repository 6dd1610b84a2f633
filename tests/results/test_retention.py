"""Retention: recognition and generation are told apart only where their intervals part."""

import numpy as np
import pytest

from shallower.artifacts import Evaluation, ModelRecord, TaskResult
from shallower.results.comparison import compare_entries
from shallower.results.entries import CompareArgument, entries_of


def result(right: int, of: int, *, chance: float | None, metric: str = "acc") -> TaskResult:
    items = [float(place * right % of < right) for place in range(of)]
    assert sum(items) == right
    return TaskResult(right / of, metric=metric, count=of, chance=chance, items=items)


def evaluation(name: str, chosen: int, written: int, chance: float | None = 0.5) -> Evaluation:
    tasks = {
        "piqa": result(chosen, 400, chance=chance),
        "triviaqa": result(written, 400, chance=0.0, metric="exact_match"),
    }
    record = ModelRecord(f"models/{name}", "some", 4, 1000, [100] * 4, f"print-{name}", [0, 1, 2, 3])
    return Evaluation(model=record, perplexity={}, tasks=tasks)


def notes(*found: Evaluation) -> list[str]:
    given = [CompareArgument(f"{name}.json", name, [one]) for name, one in zip("abc", found, strict=False)]
    return compare_entries(*entries_of(given)).notes


def test_models_that_lose_more_of_one_sort_are_named() -> None:
    said = "\n".join(notes(evaluation("dense", 320, 200), evaluation("small", 316, 40), evaluation("even", 280, 140)))
    assert "b keeps 97% [" in said and "of what a recognises among choices and 20% [" in said
    assert "of what it writes: choices hide what was lost" in said and "c keeps" not in said
    said = "\n".join(notes(evaluation("dense", 320, 200), evaluation("small", 240, 200)))
    assert "b keeps 100% [" in said and "of what a writes and 33% [" in said


@pytest.mark.parametrize(
    ("base", "said"),
    [
        (evaluation("dense", 201, 200), "what is recognised: a itself is not surely better than guessing"),
        (evaluation("dense", 320, 200, chance=None), ""),
    ],
)
def test_a_base_that_guesses_has_no_shares(base, said) -> None:
    found = "\n".join(notes(base, evaluation("small", 200, 20)))
    assert "keeps" not in found and said in found


def test_centred_values() -> None:
    assert result(300, 400, chance=0.5).centred == 0.5
    assert result(100, 400, chance=0.25).centred == 0.0 and result(1, 4, chance=None).centred is None
    assert np.isclose(result(200, 400, chance=0.0).centred, 0.5)
