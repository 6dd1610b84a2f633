"""GGUF writer: another .gguf file by copying byte ranges of one, with some of its metadata and its tensors' names
changed.

Weights are never read into memory, decoded or rounded.
"""

import os
import struct
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO

from ..errors import UserError
from ..runtime.progress import Meter, meter
from .files import check_space, disk_errors
from .gguf import ARRAY, BLOCKS, MAGIC, SCALARS, STRING, GgufHeader, GgufTensor

BOOL, UINT32 = 7, 4
PIECE = 16 << 20
NUMBERS = {label: kind for kind, (label, _, _) in BLOCKS.items()}


@dataclass(frozen=True)
class GgufValue:
    """A value of the metadata to be written: its type, that of an array's elements, and the value."""

    kind: int
    value: Any
    inner: int | None = None

    @property
    def encoded(self) -> bytes:
        """Type and value as the file holds them."""
        if self.kind != ARRAY:
            return struct.pack("<I", self.kind) + _encoded(self.kind, self.value)
        head = struct.pack("<IIQ", ARRAY, self.inner, len(self.value))
        return head + b"".join(_encoded(self.inner, one) for one in self.value)


def bools(values: Sequence[bool]) -> GgufValue:
    """An array of truth values."""
    return GgufValue(ARRAY, list(values), BOOL)


def stored_value(header: GgufHeader, key: str, value: Any) -> GgufValue:
    """Another value for a key, of the type that the file has there."""
    start, _ = header.spans[key]
    with header.file.open("rb") as stream:
        stream.seek(start + 8 + len(key.encode()))
        kind, inner = struct.unpack("<II", stream.read(8))
    return GgufValue(kind, value, inner if kind == ARRAY else None)


@dataclass(frozen=True)
class Remade:
    """Other bytes for a tensor, made when they are written: the type that they are of, and how."""

    kind: str
    make: Callable[[], bytes]


@dataclass(frozen=True)
class Renamed:
    """A tensor to be written: its new name, and where it lies; ``silent`` writes zero bytes instead of its own."""

    name: str
    tensor: GgufTensor
    silent: bool = False
    remade: Remade | None = None

    @property
    def kind(self) -> str:
        """Type that is written."""
        return self.remade.kind if self.remade else self.tensor.kind

    @property
    def bytes(self) -> int:
        """Bytes that are written."""
        if self.remade is None:
            return self.tensor.end - self.tensor.start
        _, elements, size = BLOCKS[NUMBERS[self.remade.kind]]
        return self.tensor.count // elements * size


def write_gguf(
    header: GgufHeader,
    target: Path,
    tensors: Sequence[Renamed],
    changes: dict[str, GgufValue],
    without: Collection[str] = (),
) -> Path:
    """Write a file with these tensors of another one, its metadata with these changes and additions.

    It appears at ``target`` when it is complete; tensors that are silent are holes.

    Args:
        without: keys of the metadata that are left out.

    Raises:
        UserError: there is no room, or the source ends early.
        DiskError: the disk refuses.
    """
    alignment = int(header.metadata.get("general.alignment", 32))
    head, places = _head(header, tensors, changes, without, alignment)
    size = places[-1][1] if places else len(head)
    check_space(target, len(head) + sum(one.bytes for one in tensors if not one.silent))
    partial = target.with_name(f".{target.name}.{os.getpid()}.partial")
    try:
        with disk_errors(target), header.file.open("rb") as source, partial.open("wb") as out:
            with meter("writing, MB", size // 10**6) as done:
                out.write(head)
                for run in _runs(tensors, places):
                    _write(source, out, run, done)
            out.truncate(size)
            out.flush()
            os.fsync(out.fileno())
        partial.replace(target)
    finally:
        with suppress(FileNotFoundError):
            partial.unlink()
    return target


@dataclass(frozen=True)
class _Run:
    """Bytes of the source, and where they go; ``source`` is None for zeros."""

    place: int
    source: int | None
    count: int
    make: Callable[[], bytes] | None = None


def _head(
    header: GgufHeader,
    tensors: Sequence[Renamed],
    changes: dict[str, GgufValue],
    without: Collection[str],
    alignment: int,
) -> tuple[bytes, list[tuple[int, int]]]:
    """(all in front of the weights, the first byte of every tensor and the one behind its last)."""
    parts: list[bytes] = []
    stay = (name for name in header.metadata if name not in without)
    names = [*stay, *(name for name in changes if name not in header.metadata)]
    with header.file.open("rb") as source:
        for name in names:
            if name in changes:
                raw = name.encode()
                parts.append(struct.pack("<Q", len(raw)) + raw + changes[name].encoded)
            else:
                start, end = header.spans[name]
                source.seek(start)
                parts.append(source.read(end - start))
    offset = 0
    offsets = []
    for one in tensors:
        raw, tensor = one.name.encode(), one.tensor
        parts.append(struct.pack("<Q", len(raw)) + raw + struct.pack("<I", len(tensor.shape)))
        parts.append(struct.pack(f"<{len(tensor.shape)}QIQ", *tensor.shape, NUMBERS[one.kind], offset))
        offsets.append(offset)
        offset = _aligned(offset + one.bytes, alignment)
    head = b"".join([MAGIC, struct.pack("<IQQ", header.version, len(tensors), len(names)), *parts])
    head += bytes(_aligned(len(head), alignment) - len(head))
    starts = [len(head) + offset for offset in offsets]
    return head, [(start, start + one.bytes) for start, one in zip(starts, tensors, strict=True)]


def _runs(tensors: Sequence[Renamed], places: list[tuple[int, int]]) -> Iterator[_Run]:
    """What is copied, neighbours that stay neighbours in one piece."""
    run: _Run | None = None
    for one, (start, end) in zip(tensors, places, strict=True):
        source = None if one.silent or one.remade else one.tensor.start
        copies = run is not None and run.source is not None and source is not None
        if copies and source - run.source == start - run.place and start >= run.place + run.count:
            run = replace(run, count=end - run.place)
            continue
        if run is not None:
            yield run
        run = _Run(start, source, end - start, one.remade.make if one.remade and not one.silent else None)
    if run is not None:
        yield run


def _write(source: BinaryIO, out: BinaryIO, run: _Run, done: Meter) -> None:
    out.flush()
    os.lseek(out.fileno(), run.place, os.SEEK_SET)  # a gap reads as zeros
    if run.source is None:
        out.seek(run.place)
        content = run.make() if run.make is not None else b""
        if run.make is not None and len(content) != run.count:
            raise UserError(f"{source.name}: a changed tensor has {len(content)} bytes instead of {run.count}")
        out.write(content)
        out.seek(run.place + run.count)
        return
    left, at = run.count, run.source
    while left:
        count = _copied(source, out, at, min(left, PIECE))
        if not count:
            raise UserError(f"{source.name} ended early while it was copied: is it being changed?")
        left, at = left - count, at + count
        done.add(min(count // 10**6, done.total - done.done))
    out.seek(0, os.SEEK_END)


def _copied(source: BinaryIO, out: BinaryIO, at: int, count: int) -> int:
    """Bytes copied from a place of the source to where the output stands, within the system where it can."""
    if hasattr(os, "copy_file_range"):
        with suppress(OSError):  # other file systems, or old systems
            return os.copy_file_range(source.fileno(), out.fileno(), count, offset_src=at)
    return os.write(out.fileno(), os.pread(source.fileno(), count, at))


def _aligned(place: int, alignment: int) -> int:
    return -(-place // alignment) * alignment


def _encoded(kind: int, value: Any) -> bytes:
    if kind == STRING:
        raw = str(value).encode()
        return struct.pack("<Q", len(raw)) + raw
    code = SCALARS[kind]
    return struct.pack(code if code[0] == "<" else f"<{code}", value)
