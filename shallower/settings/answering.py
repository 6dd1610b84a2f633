"""Answering settings: how the unpruned model answers the prompts that a pruned one is then trained on."""

import math
from dataclasses import dataclass
from os import PathLike

from ..errors import UserError
from .fields import option, set_field

GROUP = "Own words"


@dataclass(frozen=True)
class Answering:
    """How the unpruned model answers prompts (``data="self:FILE"``).

    Attributes:
        teacher: the unpruned model, where the folder does not know which it was; also the one that ``distill`` learns
            from and that a control trains.
        answer_tokens: longest answer, in tokens.
        answer_temperature: 0 takes the likeliest token each time; above, answers are sampled by the training's seed.
        max_prompts: how many of the prompts are asked at most, drawn by the training's seed; None: as many as the
            budget needs to be trained on once.
    """

    teacher: str | PathLike | None = option(
        "the unpruned model, where the folder does not know which it was; with --control and distill too",
        None,
        kind=str,
        metavar="MODEL",
    )
    answer_tokens: int = option("longest answer, in tokens", 256, metavar="N")
    answer_temperature: float = option(
        "0: the likeliest token each time; above: answers sampled by --seed, such as 0.7", 0.0, metavar="T"
    )
    max_prompts: int | None = option(
        "ask at most so many, drawn by --seed; by default as many as the budget can train on once", None, metavar="N"
    )

    def __post_init__(self) -> None:
        if self.teacher is not None:
            set_field(self, "teacher", str(self.teacher))
        if self.answer_tokens < 1:
            raise UserError("1 or more", answer_tokens=self.answer_tokens)
        if not 0 <= self.answer_temperature < math.inf:
            raise UserError("0 (the likeliest token each time) or above", answer_temperature=self.answer_temperature)
        if self.max_prompts is not None and self.max_prompts < 1:
            raise UserError("1 or more", max_prompts=self.max_prompts)
