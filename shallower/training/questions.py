"""Questions to the unpruned model, and the file beside the output that keeps its answers.

The prompts are asked in an order that the seed decides, until those answered fill the budget once. The file is written
line by line, so that a killed run, and a larger budget, go on behind the last batch.
"""

import hashlib
import json
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ..anatomy.model import Model
from ..data.prompts import Prompts
from ..errors import UserError
from ..runtime import distributed
from ..settings.answering import Answering
from ..storage.files import disk_errors, made_parents
from ..storage.locks import acquire_lock
from ..storage.paths import parse_json


class Answer(NamedTuple):
    """Answer to a prompt, which is told by its number: its tokens, with the end token unless it was cut."""

    number: int
    ids: list[int]
    text: str
    ended: bool

    @property
    def empty(self) -> bool:
        return not self.text.strip()


@dataclass(frozen=True)
class Questions:
    """What the unpruned model is asked, and how; all that decides the answers.

    Attributes:
        teacher: the unpruned model, not loaded yet.
        tokenizer: that of the model which learns.
        sources: names of the prompts' files.
        budget: tokens of prompts and answers that are needed.
    """

    teacher: Model
    tokenizer: Any
    prompts: Prompts
    sources: Sequence[str]
    answering: Answering
    seed: int
    budget: int

    @cached_property
    def order(self) -> list[int]:
        """Numbers of the prompts in the order in which they are asked."""
        drawn = np.random.default_rng(self.seed).permutation(len(self.prompts.items))
        return [int(number) for number in drawn[: self.answering.max_prompts]]

    @cached_property
    def key(self) -> dict[str, Any]:
        """Model, prompts and settings, as the file's first line says them."""
        how = self.answering
        return {
            "kind": "answers",
            "model": self.teacher.record.fingerprint,
            "dtype": str(self.teacher.dtype).removeprefix("torch."),
            "prompts": self.prompts.hash,
            "answer_tokens": how.answer_tokens,
            "answer_temperature": how.answer_temperature,
            "seed": self.seed if how.answer_temperature else None,
        }

    @cached_property
    def hash(self) -> str:
        return hashlib.sha256(json.dumps(self.key, sort_keys=True).encode()).hexdigest()[:16]

    def used(self, known: dict[int, Answer]) -> tuple[list[Answer], bool]:
        """Answers in the order in which they were asked, as many as the budget needs, and whether there are enough."""
        answers: list[Answer] = []
        total = 0
        for number in self.order:
            if total >= self.budget or number not in known:
                break
            answers.append(known[number])
            total += 0 if answers[-1].empty else len(self.prompts.items[number].ids) + len(answers[-1].ids)
        return answers, total >= self.budget or len(answers) == len(self.order)

    def share_done(self, known: dict[int, Answer]) -> Callable[[float], float]:
        """Number of answers that are made but not known yet, about -> of the work, how much is done."""
        answers, _ = self.used(known)
        total = sum(len(self.prompts.items[one.number].ids) + len(one.ids) for one in answers if not one.empty)
        each = total / len(answers) if answers else self.answering.answer_tokens
        count = len(answers)
        return lambda ahead: min(1.0, max((total + ahead * each) / self.budget, (count + ahead) / len(self.order)))


@dataclass
class AnswerFile:
    """File of answers: a first line that says what decides them, then one for each answer, whole lines only."""

    path: Path
    questions: Questions

    @contextmanager
    def claimed(self) -> Iterator[dict[int, Answer]]:
        """Hold the file while inside; gives the answers that are in it, by number."""
        first = distributed.rank() == 0
        lock_name = f".{self.path.stem}.lock"
        lock = None
        with made_parents(self.path) if first else nullcontext():
            if first:
                busy = f"another process writes {self.path}: wait for it, and start again"
                with disk_errors(self.path):
                    lock = acquire_lock(self.path.parent, busy, lock_name)
            try:
                yield distributed.all_gather(self._read() if first else None)[0]
            finally:
                if lock is not None:
                    (self.path.parent / lock_name).unlink(missing_ok=True)
                    lock.release()

    def _read(self) -> dict[int, Answer]:
        """Answers that are there; what a kill left of a line is cut off.

        Raises:
            UserError: a line is not as it was written.
        """
        if not self.path.is_file():
            return {}
        raw = self.path.read_bytes()
        whole = raw[: raw.rfind(b"\n") + 1]
        if whole != raw:
            with disk_errors(self.path):
                os.truncate(self.path, len(whole))
        known: dict[int, Answer] = {}
        for place, line in enumerate(whole.decode("utf-8", "replace").split("\n")[:-1]):
            where = f"{self.path}: line {place + 1}"
            row = parse_json(line, where)
            if not self._fits(row, place):
                raise UserError(f"{where} is not as it was written: remove the file to have the prompts answered anew")
            if place:
                known[row["number"]] = Answer(row["number"], row["ids"], row["answer"], row["ended"])
        return known

    def _fits(self, row: Any, place: int) -> bool:
        if not place:
            return row == self.questions.key
        asked = self.questions.prompts.items
        vocabulary = self.questions.teacher.vocabulary
        return (
            isinstance(row, dict)
            and type(number := row.get("number")) is int
            and 0 <= number < len(asked)
            and isinstance(row.get("answer"), str)
            and isinstance(row.get("ended"), bool)
            and isinstance(ids := row.get("ids"), list)
            and all(type(one) is int and 0 <= one < vocabulary for one in ids)
        )

    def add(self, answers: Sequence[Answer]) -> None:
        """Write some answers behind the others.

        Raises:
            DiskError: the disk refuses; the answers before stay.
        """
        if distributed.rank():
            return
        asked = self.questions.prompts.items
        rows = [{"number": one.number, "prompt": asked[one.number].text, "answer": one.text} for one in answers]
        rest = [{"ended": one.ended, "ids": one.ids} for one in answers]
        lines = [row | more for row, more in zip(rows, rest, strict=True)]
        with disk_errors(self.path), self.path.open("ab") as out:
            head = [] if out.tell() else [self.questions.key]
            out.write("".join(json.dumps(line, ensure_ascii=False) + "\n" for line in [*head, *lines]).encode())
            out.flush()
            os.fsync(out.fileno())
