"""Agreement of a model with the unpruned one in what they write, and how often either ends in repetition.

Both answer the same prompts with their likeliest tokens. The model then reads the unpruned model's answers, token by
token, and is held against it there.
"""

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import log_softmax

from ..anatomy.generation import Generation, rows_at_once
from ..anatomy.model import Model
from ..artifacts import NOTHING, Agreement, AgreementItem, Removal
from ..data.prompts import Prompts
from ..errors import UserError
from ..runtime.progress import Meter, meter
from ..storage.journal import NO_JOURNAL, Journal
from .health import first_broken

FIRST = 32  # tokens at the beginning of an answer that are held against each other
REPEATS, LEAST = 3, 12  # an answer ends in repetition if a passage comes so often at its end, and so many tokens long
AT_ONCE = {"cpu": 16, "cuda": 64}  # prompts of a batch, at most


@dataclass(frozen=True)
class Side:
    """One of the two models, and what is left out of it."""

    model: Model
    removal: Removal = NOTHING

    def alone(self) -> Any:
        """Context in which the model is without what goes."""
        return self.model.without(self.removal) if self.removal else nullcontext()


def agreement(small: Side, dense: Side, prompts: Prompts, *, longest: int, journal: Journal = NO_JOURNAL) -> Agreement:
    """How far a model agrees with another one on what that one writes.

    Args:
        small: the model that is measured.
        dense: the one that it is held against.
        prompts: what both are asked.
        longest: most tokens of an answer.
        journal: keeps answers and figures.
    Raises:
        UserError: a model cannot generate, or yields NaN.
    """
    asked = [one.ids for one in prompts.items]
    with meter("answers and agreement", 3 * len(asked)) as done:
        answers = {
            name: _answers(side, name, asked, longest, journal, done)
            for name, side in (("dense", dense), ("small", small))
        }
        items = []
        for place, ids in enumerate(asked):
            taught = answers["dense"][place]
            found = journal.memo(f"agreement {place}", partial(_compared, small, dense, ids, taught))
            mine = answers["small"][place]
            items.append(
                AgreementItem(
                    tokens=len(taught),
                    divergence=found["divergence"],
                    agreed=found["agreed"],
                    first=mine[:1] == taught[:1],
                    common=_common(mine[:FIRST], taught[:FIRST]),
                    repeats=repeats(mine),
                    dense_repeats=repeats(taught),
                )
            )
            done.add()
    record = dense.model.record
    about = {"against": record.source, "fingerprint": record.fingerprint, "longest": longest}
    return Agreement.of(items, template=prompts.template, prompts=prompts.hash, **about)


def repeats(ids: Sequence[int]) -> bool:
    """Whether tokens end in one passage that is repeated: three times in a row or more, twelve tokens or more."""
    return any(
        list(ids[-span:-period]) == list(ids[-span + period :])
        for period in range(1, len(ids) // REPEATS + 1)
        if (span := max(REPEATS * period, LEAST)) <= len(ids)
    )


def _common(one: Sequence[int], other: Sequence[int]) -> float:
    """Share of the longer one's tokens that both begin with."""
    same = next((place for place, pair in enumerate(zip(one, other, strict=False)) if pair[0] != pair[1]), None)
    return (min(len(one), len(other)) if same is None else same) / max(len(one), len(other), 1)


def _answers(
    side: Side, name: str, asked: list[list[int]], longest: int, journal: Journal, done: Meter
) -> list[list[int]]:
    """Answers of one model to every prompt, batches of prompts of like length kept as they are made."""
    model = side.model
    order = sorted(range(len(asked)), key=lambda place: len(asked[place]))
    with side.alone():
        generation = Generation(model.module, model.tokenizer, longest=longest)
        positions = max(map(len, asked)) + longest
        rows = rows_at_once(generation, model.checkpoint, positions, model.device, AT_ONCE)
        answers: dict[int, list[int]] = {}
        for start in range(0, len(order), rows):
            batch = order[start : start + rows]
            answer = partial(generation.answers, [asked[place] for place in batch])
            found = journal.memo(f"{name} {rows} {start}", answer)
            answers |= dict(zip(batch, found, strict=True))
            done.add(len(batch))
    return [answers[place] for place in range(len(asked))]


def _compared(small: Side, dense: Side, asked: list[int], taught: list[int]) -> dict[str, float]:
    """Sum over an answer's tokens of KL(dense || small) in nats, and how many of them the small model would write."""
    if not taught:
        return {"divergence": 0.0, "agreed": 0}
    theirs, ours = (_predicted(side, asked, taught) for side in (dense, small))
    divergence = (theirs.exp() * (theirs - ours)).sum(-1).clamp(min=0).sum()
    return {"divergence": float(divergence), "agreed": int((ours.argmax(-1) == theirs.argmax(-1)).sum())}


@torch.no_grad()
def _predicted(side: Side, asked: list[int], taught: list[int]) -> Tensor:
    """Log-probabilities at every token of an answer, (token, vocabulary), float32."""
    model = side.model
    tokens = torch.tensor([[*asked, *taught]])
    with side.alone():
        logits = model.module(input_ids=tokens[:, :-1].to(model.device)).logits[0, -len(taught) :].float()
    if not bool(logits.isfinite().all()):
        raise UserError(
            f"the model yields NaN or infinite values on an answer: {first_broken(model, tokens, side.removal)}"
        )
    return log_softmax(logits, -1).cpu()
