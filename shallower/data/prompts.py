"""Prompts from files, put as the tokenizer's chat template puts them, or as Alpaca's does."""

import hashlib
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from ..errors import UserError, argument
from .packing import alpaca_prompt, check_known, ends_of
from .readers import Row, rows, text_of
from .tokens import encode

FIELDS = ("instruction", "prompt", "text")  # the first that a row has is its prompt


class Prompt(NamedTuple):
    """A prompt as it stands in its file, and the tokens that it is asked by."""

    text: str
    ids: list[int]


class Prompts(NamedTuple):
    """Prompts in the order of their files, those that leave no room for an answer left out."""

    items: list[Prompt]
    long: int
    """Prompts that are left out."""
    template: str
    """``chat`` (the tokenizer's own) or ``alpaca``."""

    @property
    def hash(self) -> str:
        """Hash of all tokens that are asked by."""
        parts = (np.array([len(one.ids), *one.ids], dtype="<i4").tobytes() for one in self.items)
        return hashlib.sha256(b"".join(parts)).hexdigest()[:16]


def read_prompts(paths: Sequence[str], tokenizer, vocabulary: int, *, room: int, what: str = "data") -> Prompts:
    """Prompts of .jsonl and .parquet files.

    ``instruction`` (with ``input``) and ``prompt`` are what a user says: they are put by the tokenizer's chat template,
    or Alpaca's where it has none. A ``text`` is asked as it is, to be gone on with. Empty ones are left out.

    Args:
        room: tokens that a prompt and its answer may have together.
        what: the argument that they were given by, for messages.
    Raises:
        UserError: a file that cannot be read, a row without any of the fields (with its line and what it has), none
            that is not empty or leaves room, or a tokenizer that gives ids which the model does not have.
    """
    chat = bool(getattr(tokenizer, "chat_template", None))
    items: list[Prompt] = []
    for path in paths:
        for where, row in rows(path, what):
            text, asked = _asked(where, row, tokenizer, chat)
            if text.strip():
                items.append(Prompt(text, asked))
    given = ", ".join(paths)
    if not items:
        raise UserError("only empty prompts, or none; give some to ask", **{what: given})
    kept = [one for one in items if len(one.ids) < room]
    if not kept:
        raise UserError(
            f"every prompt has {room} tokens or more, which leaves no room for an answer: "
            f"{'raise ' + argument('length') + ' or ' if what == 'data' else ''}shorten them",
            **{what: given},
        )
    check_known(max(max(one.ids) for one in kept), vocabulary, argument(what))
    return Prompts(kept, len(items) - len(kept), "chat" if chat else "alpaca")


def _asked(where: str, row: Row, tokenizer, chat: bool) -> tuple[str, list[int]]:
    """Text of a row's prompt, and the tokens that it is asked by."""
    field = next((name for name in FIELDS if name in row and row[name] is not None), None)
    if field is None:
        has = ", ".join(map(str, list(row)[:8])) or "none"
        raise UserError(
            f"{where} has no field 'instruction', 'prompt' or 'text' (it has {has}); each needs a prompt there"
        )
    text = text_of(where, row, field)
    front, _ = ends_of(tokenizer)
    if field == "text":
        return text, front + encode(tokenizer, text)
    extra = text_of(where, row, "input") if field == "instruction" and row.get("input") is not None else ""
    said = f"{text}\n\n{extra}" if extra.strip() else text
    if not chat:
        return said, front + encode(tokenizer, alpaca_prompt(text, extra))
    try:
        turn = [{"role": "user", "content": said}]
        put = tokenizer.apply_chat_template(turn, tokenize=False, add_generation_prompt=True)
    except Exception as error:  # templates are code, and fail in as many ways
        raise UserError(
            f"{where}: the tokenizer's chat template fails on it ({' '.join(str(error).split())[:120]})"
        ) from error
    return said, encode(tokenizer, put)


def asked_by(text: str, tokenizer, *, chat: bool) -> list[int]:
    """Tokens of one prompt, put by the tokenizer's chat template or Alpaca's, or as it is, to be gone on with.

    Raises:
        UserError: the template fails on it.
    """
    named = {"prompt" if chat else "text": text}
    return _asked("the prompt", named, tokenizer, bool(getattr(tokenizer, "chat_template", None)))[1]
