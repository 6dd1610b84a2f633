"""Protocol: how texts are cut to measure perplexity; Tasks: which tasks, from where; Answers: what is written."""

from collections.abc import Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any

from ..errors import UserError, argument
from ..storage.paths import place
from .calibration import BOS_RULES, check_numbers
from .fields import option, set_field

GROUP = "Measuring"
PROTOCOLS = {"shortened-llama": 128, "standard": 2048}  # tokens per segment; none overlap
SETS = {"commonsense7": ("boolq", "piqa", "hellaswag", "winogrande", "arc_easy", "arc_challenge", "openbookqa")}


@dataclass(frozen=True)
class Protocol:
    """How a text is cut.

    Attributes:
        length: tokens per segment; None: what ``name`` says.
        stride: step between segments; None means ``length``.
        max_tokens: use only the start of each text; None means the whole.
        name: shortened-llama (128 tokens) or standard (2048, or as many as the model has positions for).
    """

    length: int | None = option("tokens per segment; by default the protocol's", None, metavar="N")
    stride: int | None = option("step between segments; by default --length", None, metavar="N")
    bos: str = option(" | ".join(BOS_RULES), "auto", metavar="RULE")
    max_tokens: int | None = option("use only the start of each text", None, metavar="N")
    name: str = option(
        f"how texts are cut: {' | '.join(PROTOCOLS)}", "shortened-llama", flag="--protocol", metavar="NAME"
    )

    def __post_init__(self) -> None:
        if self.name not in PROTOCOLS:
            raise UserError(f"allowed are {', '.join(PROTOCOLS)}", name=self.name)
        if self.length is None:
            check_numbers(samples=1, length=2, bos=self.bos)
            return  # the rest is checked once the model has said how long it may be
        check_numbers(samples=1, length=self.length, bos=self.bos)
        if self.stride is not None and not 1 <= self.stride <= self.length:
            raise UserError(f"between 1 and {argument('length')} ({self.length})", stride=self.stride)
        if self.max_tokens is not None and self.max_tokens < self.length:
            raise UserError(f"at least {argument('length')} ({self.length}) is needed", max_tokens=self.max_tokens)


@dataclass(frozen=True)
class Tasks:
    """Which tasks, and from where.

    Example: ``Tasks("commonsense7", data="tasks/", limit=200)``.

    Attributes:
        names: tasks and groups of lm-eval, or commonsense7; text with commas between them, or a sequence.
        data: folder of NAME.jsonl files; None takes the Hub's.
        limit: only the first so many items of each; None takes all.
        examples: what is shown in front of a question, from a file (of one task) or a folder of NAME.jsonl, with the
            fields of the items; for gsm8k also ``instruction`` and ``output``. Without it local items have no examples.
        shots: how many of them; None: as many as the task says (5 for gsm8k), where there are some.
    """

    names: str | Sequence[str] = option(
        "tasks of lm-eval, such as gsm8k, or commonsense7", (), flag="--tasks", kind=list, metavar="NAMES"
    )
    data: str | PathLike | None = option(
        "folder of NAME.jsonl; by default the Hub's data", None, flag="--task-data", kind=str, metavar="DIR"
    )
    limit: int | None = option("only the first so many items of each task", None, metavar="N")
    examples: str | PathLike | None = option(
        "examples for the prompts, other than the items: a .jsonl file, or a folder of NAME.jsonl",
        None,
        flag="--task-examples",
        kind=str,
        metavar="PATH",
    )
    shots: int | None = option(
        "examples in a prompt; by default as many as the task says where it has some", None, metavar="N"
    )

    def __post_init__(self) -> None:
        entries = [self.names] if isinstance(self.names, str) else list(self.names)
        set_field(self, "names", tuple(name.strip() for part in entries for name in part.split(",") if name.strip()))
        if self.data is not None:
            set_field(self, "data", place(self.data))
        if self.limit is not None and self.limit < 1:
            raise UserError("a number of items, 1 or more", limit=self.limit)
        if self.examples is not None:
            set_field(self, "examples", place(self.examples))
            if self.data is None:
                raise UserError(f"they stand beside local items: give {argument('data')} too", examples=self.examples)
            if not Path(self.examples).exists():
                raise UserError("no such file or folder", examples=self.examples)
        if self.shots is not None and self.shots < 0:
            raise UserError("a number of examples, 0 or more", shots=self.shots)
        others = {name: getattr(self, name) for name in ("data", "limit", "shots")}
        if not entries and (given := [argument(name) for name, value in others.items() if value is not None]):
            raise UserError(
                f"{' and '.join(given)} speak{'s' if len(given) == 1 else ''} of {argument('tasks')}: name some such "
                f"as {SETS['commonsense7'][0]}, or leave {'it' if len(given) == 1 else 'them'} out"
            )
        if not self.names:
            some = f"{SETS['commonsense7'][0]}, or commonsense7"
            raise UserError(f"{argument('tasks')} names no task; give some such as {some}")

    def every(self) -> list[str]:
        """The names with sets written out, each once."""
        return list(dict.fromkeys(name for entry in self.names for name in SETS.get(entry, (entry,))))


@dataclass(frozen=True)
class Answers:
    """What a model writes, held against another one, or used as its draft.

    Attributes:
        against: the model to agree with, by folder, Hub id or file, or an opened one; usually the unpruned one.
        as_draft_of: the model to be the draft of in speculative decoding.
        prompts: a .jsonl or .parquet file with ``instruction`` (and ``input``), ``prompt`` or ``text``; None: 40
            prompts of our own.
        max_prompts: only the first so many.
        answer_tokens: at which answers are cut.
        draft_tokens: how many the draft writes at a time.
    """

    against: Any = option(
        "also say how far it agrees with this model, usually the unpruned one, in what both write",
        None,
        kind=str,
        metavar="MODEL",
    )
    as_draft_of: Any = option(
        "also say how much faster it makes this model as its draft in speculative decoding",
        None,
        kind=str,
        metavar="MODEL",
    )
    prompts: str | PathLike | None = option(
        "file of prompts for both; by default 40 shipped ones", None, kind=str, metavar="FILE"
    )
    max_prompts: int | None = option("only the first so many prompts", None, metavar="N")
    answer_tokens: int = option("longest answer", 128, metavar="N")
    draft_tokens: int = option("tokens that a draft writes at a time", 5, metavar="N")

    def __post_init__(self) -> None:
        for name in ("max_prompts", "answer_tokens", "draft_tokens"):
            if getattr(self, name) is not None and getattr(self, name) < 1:
                raise UserError("1 or more", **{name: getattr(self, name)})
        asked = self.against is not None or self.as_draft_of is not None
        given = [name for name in ("prompts", "max_prompts") if getattr(self, name) is not None]
        if given and not asked:
            raise UserError(
                f"it speaks of {argument('against')} and {argument('as_draft_of')}: give one of them a model, or leave "
                "it out",
                **{given[0]: getattr(self, given[0])},
            )
        if self.prompts is not None:
            set_field(self, "prompts", place(self.prompts))


def data_folder(tasks: "Tasks | None") -> Path | None:
    """The folder that tasks are read from, if it is one."""
    return Path(tasks.data) if tasks is not None and tasks.data is not None else None
