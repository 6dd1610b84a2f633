"""Streamed text of a data set, packed while it is read: as much of it as there is, with the memory of two batches."""

import hashlib
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait

import numpy as np
import torch

from ..artifacts import TrainingData
from ..errors import UserError, argument
from .packing import Rows, check_known, cut_rows, ends_of
from .readers import SHUFFLE_BUFFER, stream_rows, text_of
from .tokens import encode

START = {"turn": 0, "document": 0, "token": 0}


class Stream:
    """Sequences of joined documents as in ``Packed``, in the order in which a data set, shuffled within a buffer,
    yields them.

    The next batch is read and tokenised while the last one is trained on. Every process reads the whole stream. When
    the data set ends it begins again in another order. ``place`` is what a checkpoint needs to go on: the pass over
    the data, the document in which the next sequence begins, and how many of its tokens are used up.
    """

    def __init__(self, name: str, tokenizer, vocabulary: int, length: int, seed: int, *, isolated: bool):
        self.name = name
        self.tokenizer = tokenizer
        self.vocabulary = vocabulary
        self.length = length
        self.seed = seed
        self._front, self._back = ends_of(tokenizer)
        self._at = START
        self._ready: Future | None = None
        self._worker = ThreadPoolExecutor(1, "stream")
        self._upcoming: Iterator | None = None
        texts = (text_of(where, row) for where, row in stream_rows(name))
        first = next((text for text in texts if text.strip()), None)
        if first is None:
            raise UserError("only empty texts; give text to train on", dataset=name)
        identity = f"{name} {seed} {SHUFFLE_BUFFER} {length} {first}".encode()
        self.about = TrainingData(
            source=name,
            kind="text",
            streamed=True,
            documents=None,
            dropped=0,
            sequences=None,
            length=length,
            tokens=None,
            loss_tokens=None,
            apart=isolated,
            seed=seed,
            hash=hashlib.sha256(identity).hexdigest()[:16],
        )

    def rows(self, step: int, size: int) -> Rows:
        """The next ``size`` sequences; steps follow each other."""
        future = self._ready or self._worker.submit(self._batch, size)
        batch, self._at = future.result()
        self._ready = self._worker.submit(self._batch, size)
        return batch

    def place(self) -> dict[str, int]:
        """Where the next step goes on."""
        return self._at

    def seek(self, place: dict[str, int]) -> None:
        """Go on at a place that was kept, or begin anew."""
        if self._ready:
            wait([self._ready])
        self._at = place or START
        self._upcoming = None
        self._ready = None

    def _batch(self, size: int) -> tuple[Rows, dict[str, int]]:
        self._upcoming = self._upcoming or self._sequences(**self._at)
        parts, places = zip(*(next(self._upcoming) for _ in range(size)), strict=True)
        ids, positions, loss_mask = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
        tensors = torch.from_numpy(ids).long(), torch.from_numpy(positions).long(), torch.from_numpy(loss_mask)
        return Rows(*tensors), places[-1]

    def _sequences(
        self, turn: int, document: int, token: int
    ) -> Iterator[tuple[tuple[np.ndarray, ...], dict[str, int]]]:
        """(one sequence, where the next begins), without end."""
        while True:
            # document, the first of its tokens that is left, its tokens
            buffer: list[tuple[int, int, np.ndarray]] = []
            room = some = 0
            for number, ids in self._documents(turn, document):
                start = token if number == document else 0
                buffer.append((number, start, ids))
                room += len(ids) - start
                while room >= self.length:
                    pieces = []
                    places = []
                    missing = self.length
                    while missing:
                        index, start, ids = buffer[0]
                        count = min(missing, len(ids) - start)
                        pieces.append(ids[start : start + count])
                        places.append(np.arange(start, start + count, dtype=np.int32))
                        missing -= count
                        buffer[0] = (index, start + count, ids)
                        if start + count == len(ids):
                            buffer.pop(0)
                    room -= self.length
                    some += 1
                    next_one = (
                        {"document": buffer[0][0], "token": buffer[0][1]}
                        if buffer
                        else {"document": number + 1, "token": 0}
                    )
                    yield (
                        cut_rows(np.concatenate(pieces), np.concatenate(places), self.length),
                        {"turn": turn, **next_one},
                    )
            if not some and not document and not token:
                raise UserError(
                    f"{argument('dataset', self.name)} has less than one sequence of {self.length} tokens: give more "
                    f"text or lower {argument('length')}"
                )
            turn += 1
            document = token = 0

    def _documents(self, turn: int, document: int) -> Iterator[tuple[int, np.ndarray]]:
        for number, (where, row) in enumerate(stream_rows(self.name, self.seed + turn, document), document):
            text = text_of(where, row)
            if text.strip():
                ids = np.array(self._front + encode(self.tokenizer, text) + self._back, dtype=np.int32)
                check_known(int(ids.max()), self.vocabulary, argument("dataset"))
                yield number, ids
