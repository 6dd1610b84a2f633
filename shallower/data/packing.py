"""Packed training sequences: documents or Alpaca-format examples from files, and prompts with their answers.

The order is a function of seed and step alone.

Documents are shuffled by the seed, joined with EOS behind each (and BOS in front where the tokenizer itself puts one),
and cut into full sequences without padding. Positions start again with every document. Where the model then keeps
documents apart (``objective.isolates``), none sees another; otherwise they are attended to across the border, and that
is said. The first token of a document is never predicted. Examples are masked: only the answer and its EOS bear a
loss; they are cut off at 256 tokens (the unpruned model's own answers at the length of a sequence), several to a
sequence where the model keeps them apart, else each in a row of its own, padded behind.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Int
from torch import Tensor

from ..artifacts import OwnAnswers, TrainingData
from ..errors import UserError, argument
from .readers import Row, rows, stream_rows, text_of
from .tokens import bos_rule, encode

Arrays = tuple[np.ndarray, np.ndarray, np.ndarray]  # tokens, positions, what bears a loss: (sequence, place) each
CUT_OFF = 256  # tokens of an example, as in Shortened LLaMA
WITH_INPUT = (
    "Below is an instruction that describes a task, paired with an input that provides further context. "
    "Write a response that appropriately completes the request.\n\n"
    "### Instruction:\n{instruction}\n\n### Input:\n{input}\n\n### Response:\n"
)
WITHOUT_INPUT = (
    "Below is an instruction that describes a task. Write a response that appropriately completes the request.\n\n"
    "### Instruction:\n{instruction}\n\n### Response:\n"
)


@dataclass(frozen=True)
class Documents:
    """Token ids of every document or example; of an example, how many of them are the prompt.

    ``cut_off`` is the number of tokens at which examples end, besides the length of a sequence.
    """

    ids: list[np.ndarray]  # int32
    prompts: list[int]
    instructions: bool
    source: str
    end: int | None
    cut_off: int | None = CUT_OFF


class Rows(NamedTuple):
    """Training sequences at hand.

    Tokens, the place of each within its document, and whether it bears a loss (is to be predicted).
    """

    tokens: Int[Tensor, "sequence place"]
    positions: Int[Tensor, "sequence place"]
    loss_mask: Bool[Tensor, "sequence place"]


@dataclass(frozen=True)
class Packed:
    """Training sequences: tokens, the place of each within its document, and whether it bears a loss (is to be
    predicted).

    Nine bytes a token: a billion tokens need 9 GB of memory.
    """

    tokens: Int[Tensor, "sequence place"]  # int32
    positions: Int[Tensor, "sequence place"]
    loss_mask: Bool[Tensor, "sequence place"]
    seed: int
    about: TrainingData

    def batch(self, step: int, size: int) -> list[int]:
        """The sequences of a step, counted from 0; every pass over the data is shuffled anew."""
        count = len(self.tokens)
        numbers = range(step * size, (step + 1) * size)
        orders = {
            turn: np.random.default_rng([self.seed, turn]).permutation(count)
            for turn in {number // count for number in numbers}
        }
        return [int(orders[number // count][number % count]) for number in numbers]

    def rows(self, step: int, size: int) -> Rows:
        """The sequences of a step themselves."""
        which = self.batch(step, size)
        return Rows(self.tokens[which].long(), self.positions[which].long(), self.loss_mask[which])

    def place(self) -> dict[str, int]:
        """Where the next step goes on; the step says it all."""
        return {}

    def seek(self, place: dict[str, int]) -> None:
        """Go on at a place that was kept."""


def read_documents(
    paths: Sequence[str | Path],
    tokenizer,
    vocabulary: int,
    *,
    dataset: str | None = None,
    most: int | None = None,
    seed: int = 0,
) -> Documents:
    """Documents of .txt (the whole file), .jsonl and .parquet (field ``text``), or examples (``instruction``,
    ``input``, ``output``).

    Args:
        dataset: a data set for ``datasets``, ``NAME[:CONFIG[:SPLIT]]``, instead of files. It is streamed, shuffled by
            ``seed`` within a buffer, and read only until there are ``most`` tokens.
    Raises:
        UserError: no such file, another kind, nothing in it, a field that is missing (with its line), both kinds
            mixed, or a tokenizer that gives ids which the model does not have.
    """
    if bool(paths) == bool(dataset):
        other = f"a {argument('dataset')}"
        raise UserError(
            f"{argument('data')}: give .txt, .jsonl or .parquet files to train on, or {other}, and not both"
        )
    what = "dataset" if dataset else "data"
    given = dataset or ", ".join(map(str, paths))
    read = stream_rows(dataset, seed) if dataset else (row for path in paths for row in rows(path, "data"))
    end = tokenizer.eos_token_id
    ids: list[np.ndarray] = []
    prompts: list[int] = []
    count = 0
    instructions = None
    front, back = ends_of(tokenizer)
    for where, row in read:
        instructions = "instruction" in row if instructions is None else instructions
        before, text = _example(where, row) if instructions else ("", text_of(where, row))
        prompt = front + (encode(tokenizer, before) if before else [])
        if text.strip():
            ids.append(np.array(prompt + encode(tokenizer, text) + back, dtype=np.int32))
            prompts.append(len(prompt) if instructions else 0)
            count += len(ids[-1])
        if dataset and most and count >= most:
            break
    if not ids:
        raise UserError(
            f"{'nothing in it' if instructions is None else 'only empty texts'}; give text to train on", **{what: given}
        )
    check_known(max(int(one.max()) for one in ids), vocabulary, argument(what))
    return Documents(ids, prompts, bool(instructions), dataset or ", ".join(Path(path).name for path in paths), end)


def check_known(largest: int, vocabulary: int, source: str) -> None:
    """Raise a UserError if the tokenizer gives a token that the model does not have."""
    if largest >= vocabulary:
        raise UserError(
            f"the tokenizer gives the token {largest} on {source}, the model knows 0 to {vocabulary - 1}: is "
            "it another model's tokenizer?"
        )


def ends_of(tokenizer) -> tuple[list[int], list[int]]:
    """What is put in front of a document, and behind it."""
    front = [tokenizer.bos_token_id] if bos_rule("auto", tokenizer, every=True) == "every" else []
    return front, [tokenizer.eos_token_id] if tokenizer.eos_token_id is not None else encode(tokenizer, "\n\n")


def _example(where: str, row: Row) -> tuple[str, str]:
    """(prompt, answer) of an Alpaca-format row."""
    fields = {name: text_of(where, row, name) for name in ("instruction", "output")}
    extra = text_of(where, row, "input") if row.get("input") is not None else ""
    return alpaca_prompt(fields["instruction"], extra), fields["output"]


def alpaca_prompt(instruction: str, extra: str) -> str:
    """Alpaca's prompt for an instruction and its input, which may be empty."""
    if extra.strip():
        return WITH_INPUT.format(instruction=instruction, input=extra)
    return WITHOUT_INPUT.format(instruction=instruction)


def packed_sequences(
    documents: Documents | Sequence[Documents],
    length: int,
    seed: int,
    *,
    isolated: bool,
    answers: OwnAnswers | None = None,
) -> Packed:
    """The sequences to train on, of one kind of data or of several beside each other.

    Args:
        isolated: the model keeps documents of one row apart where positions start again.
        answers: what is to be told of answers of the unpruned model among them.
    Raises:
        UserError: less than one sequence, or no answer within the cut-off.
    """
    kinds = [documents] if isinstance(documents, Documents) else list(documents)
    packed = [_pack(one, length, seed, isolated) for one in kinds]
    arrays = _beside([part for part, _ in packed], kinds[0].end or 0)
    dropped = sum(count for _, count in packed)
    tokens, positions, loss_mask = (torch.from_numpy(part) for part in arrays)
    digest = hashlib.sha256(b"".join(np.ascontiguousarray(part).tobytes() for part in arrays)).hexdigest()[:16]
    names = {"instructions" if one.instructions else "text" for one in kinds}
    about = TrainingData(
        source=", ".join(one.source for one in kinds),
        kind=names.pop() if len(names) == 1 else "mixed",
        documents=sum(len(one.ids) for one in kinds) - dropped,
        dropped=dropped,
        sequences=len(tokens),
        length=tokens.shape[1],
        tokens=int((positions >= 0).sum()),
        loss_tokens=int(loss_mask.sum()),
        apart=isolated,
        seed=seed,
        hash=digest,
        answers=answers,
    )
    return Packed(tokens, positions.clamp(min=0), loss_mask, seed, about)


def _pack(documents: Documents, length: int, seed: int, isolated: bool) -> tuple[Arrays, int]:
    """Rows of one kind of data, and how many of its examples are left out."""
    order = [int(index) for index in np.random.default_rng(seed).permutation(len(documents.ids))]
    if documents.instructions:
        return _pack_examples(documents, order, length, isolated)
    return _cut_texts(documents, order, length), 0


def _beside(parts: list[Arrays], end: int) -> Arrays:
    """All rows, padded behind to the longest."""
    width = max(ids.shape[1] for ids, _, _ in parts)

    def wide(which: int, filling: int | bool) -> np.ndarray:
        gaps = [((0, 0), (0, width - arrays[which].shape[1])) for arrays in parts]
        return np.concatenate(
            [np.pad(one[which], gap, constant_values=filling) for one, gap in zip(parts, gaps, strict=True)]
        )

    return parts[0] if len(parts) == 1 else (wide(0, end), wide(1, -1), wide(2, False))


def _cut_texts(documents: Documents, order: list[int], length: int) -> Arrays:
    ids = np.concatenate([documents.ids[index] for index in order])
    places = np.concatenate([np.arange(len(documents.ids[index]), dtype=np.int32) for index in order])
    count = len(ids) // length
    if not count:
        raise UserError(
            f"{argument('data', documents.source)} has {len(ids)} tokens, less than one sequence of {length}: "
            f"give more text or lower {argument('length')}"
        )
    return cut_rows(ids[: count * length], places[: count * length], length)


def cut_rows(ids: np.ndarray, places: np.ndarray, length: int) -> Arrays:
    """Full sequences of joined documents: tokens, positions and what bears a loss.

    ``places`` are those within a document, (token,).
    """
    ids, places = (array.reshape(-1, length) for array in (ids, places))
    within = np.arange(length, dtype=np.int32)[None]
    begins = np.where(places == 0, within, 0)  # where the document at hand starts within its row
    positions = within - np.maximum.accumulate(begins, axis=1)
    loss_mask = positions > 0
    return ids, positions, loss_mask


def _pack_examples(documents: Documents, order: list[int], length: int, isolated: bool) -> tuple[Arrays, int]:
    """Rows of whole examples.

    Positions below zero mark padding. And how many examples had no answer within the cut-off.
    """
    limit = min(documents.cut_off or length, length)
    fits = [index for index in order if documents.prompts[index] < limit and len(documents.ids[index]) > 1]
    if not fits:
        raise UserError(
            f"no example has its answer within {limit} tokens; raise {argument('length')} or shorten the prompts",
            data=documents.source,
        )
    width = length if isolated else limit
    rows: list[list[int]] = []
    room = 0
    for index in fits:
        size = min(len(documents.ids[index]), limit)
        if not rows or not isolated or size > room:
            rows.append([])
            room = width
        rows[-1].append(index)
        room -= size
    ids = np.full((len(rows), width), documents.end or 0, dtype=np.int32)
    positions = np.full((len(rows), width), -1, dtype=np.int32)
    loss_mask = np.zeros((len(rows), width), dtype=bool)
    for row, members in enumerate(rows):
        start = 0
        for index in members:
            part = documents.ids[index][:limit]
            stop = start + len(part)
            ids[row, start:stop] = part
            positions[row, start:stop] = np.arange(len(part))
            loss_mask[row, start + max(1, documents.prompts[index]) : stop] = True
            start = stop
    return (ids, positions, loss_mask), len(order) - len(fits)
