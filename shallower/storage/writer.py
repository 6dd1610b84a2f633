"""Safetensors writer by copying byte ranges, so that nothing has to fit into memory, and going on after a kill."""

import hashlib
import json
import math
import os
import struct
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, Future, ThreadPoolExecutor, wait
from contextlib import ExitStack, closing
from dataclasses import dataclass
from io import FileIO
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import UserError
from ..runtime.progress import Meter, meter
from .index import INDEX, SINGLE, TensorEntry

COPY_BYTES = 16 << 20
MARK_BYTES = 4 << 30  # written between two marks of how far a file has come; each costs a wait for the disk


@dataclass(frozen=True)
class Cut:
    """The parts of a tensor that stay.

    Along ``axis`` lie ``of`` equal parts, and those in ``kept`` (ascending) are copied.
    """

    axis: int
    of: int
    kept: tuple[int, ...]

    def shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """The shape of what stays of a tensor of the given shape."""
        return (*shape[: self.axis], shape[self.axis] // self.of * len(self.kept), *shape[self.axis + 1 :])

    def runs(self) -> list[tuple[int, int]]:
        """(first part, the one after the last) of kept parts that lie side by side."""
        kept = {*self.kept}
        starts = [part for part in self.kept if part - 1 not in kept]
        ends = [part + 1 for part in self.kept if part + 1 not in kept]
        return list(zip(starts, ends, strict=True))


@dataclass(frozen=True)
class Content:
    """One tensor to write: its dtype in safetensors' spelling, its shape, its size, and its bytes piece by piece when
    asked.

    ``source`` is where it lies as it is, if it does.
    """

    dtype: str
    shape: tuple[int, ...]
    bytes: int
    pieces: Callable[[], Iterator[bytes]]
    source: TensorEntry | None = None


def stored_content(entry: TensorEntry, cut: Cut | None = None) -> Content:
    """A tensor as it lies on disk, whole or cut; never more than a buffer of it is in memory.

    Raises:
        UserError: its bytes do not divide into the parts of the cut.
    """
    if cut is None:
        return Content(entry.dtype, entry.shape, entry.bytes, lambda: _range(entry, entry.start, entry.end), entry)
    rows = math.prod(entry.shape[: cut.axis])
    if entry.shape[cut.axis] % cut.of or not rows or entry.bytes % (rows * cut.of):
        raise UserError(
            f"{entry.file}: a tensor of shape {entry.shape} does not divide into {cut.of} parts along axis {cut.axis}"
        )
    part = entry.bytes // (rows * cut.of)
    return Content(
        entry.dtype, cut.shape(entry.shape), rows * part * len(cut.kept), lambda: _cut_pieces(entry, cut, rows, part)
    )


def _range(entry: TensorEntry, start: int, end: int) -> Iterator[bytes]:
    """The bytes of a file from start to end, a buffer at a time."""
    with entry.file.open("rb") as stream:
        stream.seek(start)
        while start < end:
            piece = stream.read(min(COPY_BYTES, end - start))
            if not piece:
                raise UserError(f"{entry.file} ended early while it was copied: is it being changed?")
            start += len(piece)
            yield piece


def _cut_pieces(entry: TensorEntry, cut: Cut, rows: int, part: int) -> Iterator[bytes]:
    """What stays of each row (what lies along the cut axis and behind it); short rows are read many at a time."""
    row = part * cut.of
    if row > COPY_BYTES:
        for start in range(entry.start, entry.end, row):
            for first, end in cut.runs():
                yield from _range(entry, start + first * part, start + end * part)
        return
    together = COPY_BYTES // max(row, 1)
    kept = np.array(cut.kept)
    with entry.file.open("rb") as stream:
        stream.seek(entry.start)
        for first in range(0, rows, together):
            length = min(together, rows - first) * row
            block = memoryview(stream.read(length))
            if len(block) != length:
                raise UserError(f"{entry.file} ended early while it was copied: is it being changed?")
            parts = np.frombuffer(block, dtype=np.uint8).reshape(-1, cut.of, part)
            yield parts.take(kept, axis=1).tobytes()


def write_shards(
    folder: Path,
    contents: dict[str, Content],
    *,
    max_bytes: int,
    written: dict[str, int] | None = None,
    mark: Callable[[str, int], None] = lambda file, position: None,
    metadata: dict[str, str] | None = None,
) -> dict[str, str]:
    """Write tensors into ``folder``, split into shards of at most ``max_bytes`` where needed.

    Args:
        contents: name -> what to write; the bytes are asked for when their turn comes.
        written: file -> how many of its bytes an earlier, interrupted call has brought to the disk.
        mark: told a file and how many of its bytes are on the disk, now and then.
        metadata: what the headers say besides the tensors.
    Returns:
        The names of the files written -> the SHA-256 of each.
    """
    shards: list[dict[str, Content]] = [{}]
    filled = 0
    for name, content in contents.items():
        if shards[-1] and filled + content.bytes > max_bytes:
            shards.append({})
            filled = 0
        shards[-1][name] = content
        filled += content.bytes
    total = len(shards)
    names = [SINGLE] if total == 1 else [f"model-{i + 1:05d}-of-{total:05d}.safetensors" for i in range(total)]
    total_bytes = sum(content.bytes for content in contents.values())
    written = written or {}
    before = sum(written.values())
    progress = meter("writing MB", total_bytes // 10**6, before // 10**6)
    with progress as done, ThreadPoolExecutor(1) as reader, ThreadPoolExecutor(1) as syncer:
        workers = reader, syncer
        ends = [
            _File(folder / file, shard, mark, workers, metadata).write(written.get(file, 0), done)
            for file, shard in zip(names, shards, strict=True)
        ]
        hashes = [end.result() for end in ends]
    if total > 1:
        where = {name: file for file, shard in zip(names, shards, strict=True) for name in shard}
        index = {"metadata": {"total_size": total_bytes}, "weight_map": dict(sorted(where.items()))}
        (folder / INDEX).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")
    return dict(zip(names, hashes, strict=True))


class _File:
    """One file being written.

    What it has so far is brought to the disk beside the copying, and hashed beside the reading.
    """

    def __init__(
        self,
        path: Path,
        shard: dict[str, Content],
        mark: Callable[[str, int], None],
        workers: tuple[Executor, Executor],
        metadata: dict[str, str] | None = None,
    ):
        self.path = path
        self.shard = shard
        self.mark = mark
        self.metadata = metadata or {}
        self.reader, self.syncer = workers
        self.marked = 0
        self.syncing = None
        self.sources = ExitStack()
        self.reading = None
        self.buffers = tuple(memoryview(bytearray(COPY_BYTES)) for _ in range(2))
        self.digest = hashlib.sha256()

    def header(self) -> bytes:
        entries: dict = {"__metadata__": {"format": "pt"} | self.metadata}
        offset = 0
        for name, content in self.shard.items():
            entries[name] = {
                "dtype": content.dtype,
                "shape": list(content.shape),
                "data_offsets": [offset, offset + content.bytes],
            }
            offset += content.bytes
        raw = json.dumps(entries, separators=(",", ":")).encode()
        raw += b" " * (-(8 + len(raw)) % 64)  # the tensors then start aligned, as mapped memory likes it
        return struct.pack("<Q", len(raw)) + raw

    def write(self, start: int, done: Meter) -> Future:
        """Write the file from ``start`` on, the end of some tensor in it.

        On the disk, and closed, when the future gives its hash.
        """
        going_on = start and self.path.is_file() and self.path.stat().st_size >= start
        header = self.header()
        self.marked = start if going_on else 0
        with ExitStack() as unfinished, ExitStack() as self.sources:
            out = unfinished.enter_context(self.path.open("r+b" if going_on else "wb", buffering=0))
            if going_on:
                out.truncate(start)
                self._hash_before(start)
                out.seek(start)
            else:
                _all(out, header)
                self.digest.update(header)
            position = self.marked or len(header)
            with closing(ahead(self._pieces(len(header), self.marked), self.reader)) as pieces:
                for piece in pieces:
                    if isinstance(piece, Content):
                        position += piece.bytes
                        done.add(piece.bytes // 10**6, self.path.name)
                        self._sync(out.fileno(), position)
                    else:
                        _all(out, piece)
            self.buffers = ()
            end = self.syncer.submit(self._finish, unfinished.pop_all(), out.fileno(), position)
        return end

    def _pieces(self, position: int, start: int) -> Iterator[memoryview | bytes | Content]:
        """The bytes of all tensors that do not end at or before ``start``; behind those of each the tensor itself."""
        for name, content in self.shard.items():
            position += content.bytes
            if position <= start:
                continue
            left = content.bytes
            for piece in content.pieces() if content.source is None else self._range(content.source):
                left -= len(piece)
                self.digest.update(piece)
                yield piece
            if left:
                raise AssertionError(f"{name}: {content.bytes - left} bytes where {content.bytes} were announced")
            yield content

    def _hash_before(self, end: int) -> None:
        """Hash what an interrupted process has written."""
        with self.path.open("rb", buffering=0) as written:
            while end:
                piece = written.read(min(COPY_BYTES, end))
                self.digest.update(piece)
                end -= len(piece)

    def _finish(self, file: ExitStack, handle: int, position: int) -> str:
        with file:  # the next file is being copied meanwhile
            if self.syncing is not None:
                self.syncing.result()
            self._flush(handle, position)
        return self.digest.hexdigest()

    def _range(self, entry: TensorEntry) -> Iterator[memoryview]:
        """A tensor's bytes through two buffers, used in turn again and again.

        A copy inside the kernel was measured to be no faster.
        """
        source = self._handle(entry.file)
        start = entry.start
        while start < entry.end:
            buffer, other = self.buffers
            self.buffers = other, buffer
            count = os.preadv(source, [buffer[: entry.end - start]], start)
            if not count:
                raise UserError(f"{entry.file} ended early while it was copied: is it being changed?")
            yield buffer[:count]
            start += count

    def _handle(self, file: Path) -> int:
        """The handle of a source, kept from tensor to tensor: the system reads ahead of a handle as far as it has seen
        it read in order.
        """
        if self.reading is None or self.reading.name != str(file):
            self.sources.close()
            self.reading = self.sources.enter_context(FileIO(str(file)))
            if hasattr(os, "posix_fadvise"):
                os.posix_fadvise(self.reading.fileno(), 0, 0, os.POSIX_FADV_SEQUENTIAL)
        return self.reading.fileno()

    def _sync(self, handle: int, position: int) -> None:
        if position - self.marked < MARK_BYTES or (self.syncing is not None and not self.syncing.done()):
            return
        if self.syncing is not None:
            self.syncing.result()
        self.marked = position
        self.syncing = self.syncer.submit(self._flush, handle, position)

    def _flush(self, handle: int, position: int) -> None:
        os.fsync(handle)
        self.mark(self.path.name, position)


def ahead(items: Iterator[Any], worker: Executor) -> Iterator[Any]:
    """The same items, none of them None.

    The next one is made in the worker's thread while the caller works on this one.
    """
    coming = worker.submit(next, items, None)
    try:
        while (item := coming.result()) is not None:
            coming = worker.submit(next, items, None)
            yield item
    finally:
        wait([coming])  # where the caller stops early


def _all(out: FileIO, piece: bytes | memoryview) -> None:
    view = memoryview(piece)
    while view:
        view = view[out.write(view) :]
