"""Tensor index of a safetensors checkpoint; no other format is read."""

import os
import struct
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from ..errors import UserError
from .paths import parse_json

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")
ITEM_BYTES = {
    **dict.fromkeys(("BOOL", "U8", "I8", "F8_E5M2", "F8_E4M3", "F8_E8M0"), 1),
    **dict.fromkeys(("I16", "U16", "F16", "BF16"), 2),
    **dict.fromkeys(("I32", "U32", "F32"), 4),
    **dict.fromkeys(("I64", "U64", "F64", "C64"), 8),
}
COMPARED_PIECE = 8 << 20
MAX_HEADER = 100 << 20  # the limit of the safetensors format


@dataclass(frozen=True)
class TensorEntry:
    """Where one tensor lies.

    A file, its dtype name in safetensors' spelling, its shape and its bytes from start to end.
    """

    file: Path
    dtype: str
    shape: tuple[int, ...]
    start: int
    end: int

    @property
    def bytes(self) -> int:
        return self.end - self.start

    @property
    def count(self) -> int:
        """Number of elements."""
        total = 1
        for size in self.shape:
            total *= size
        return total


def read_header(file: Path) -> dict[str, TensorEntry]:
    """Tensor name -> Entry for one safetensors file, its structure checked against the file's length.

    Raises:
        UserError: the file is truncated, corrupt or no safetensors file.
    """
    try:
        size = file.stat().st_size
        with file.open("rb") as stream:
            prefix = stream.read(8)
            length = struct.unpack("<Q", prefix)[0] if len(prefix) == 8 else MAX_HEADER + 1
            if length > min(MAX_HEADER, size):
                raise UserError(
                    f"{file} is no safetensors file or is truncated ({size} bytes): download or save it again"
                )
            raw = stream.read(length)
    except OSError as error:
        raise UserError(
            f"{file} cannot be read ({(error.strerror or 'failed').lower()}): download or save it again"
        ) from error
    try:
        header = parse_json(raw, str(file))
        entries = {name: _entry(file, item, 8 + length) for name, item in header.items() if name != "__metadata__"}
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError, UserError) as error:
        reason = " ".join(str(error).split())[:80]
        raise UserError(f"{file} has a corrupt safetensors header ({reason}): download or save it again") from error
    last = 8 + length
    for entry in sorted(entries.values(), key=lambda item: (item.start, item.end)):
        if entry.start != last:
            raise UserError(
                f"{file} has a corrupt safetensors header (tensors overlap or leave holes): download or save it again"
            )
        last = entry.end
    if last != size:
        what = "truncated" if last > size else "longer than its header says"
        raise UserError(f"{file} is {what} ({size} bytes where {last} are described): download or save it again")
    return entries


def read_metadata(files: Iterable[Path]) -> dict[str, str]:
    """What the headers of safetensors files say besides their tensors, those of all files together."""
    found: dict[str, str] = {}
    for file in sorted(files):
        with file.open("rb") as stream:
            length = struct.unpack("<Q", stream.read(8))[0]
            header = parse_json(stream.read(min(length, MAX_HEADER)), str(file))
        about = header.get("__metadata__") or {}
        found |= {key: value for key, value in about.items() if isinstance(value, str)}
    return found


def _entry(file: Path, item: dict, base: int) -> TensorEntry:
    start, end = item["data_offsets"]
    entry = TensorEntry(file, item["dtype"], tuple(item["shape"]), base + start, base + end)
    if not isinstance(entry.dtype, str) or not all(
        isinstance(size, int) and size >= 0 for size in (*entry.shape, start, end)
    ):
        raise ValueError("a dtype, shape or offset is not what it should be")
    expected = ITEM_BYTES.get(entry.dtype)
    if start > end or (expected is not None and entry.bytes != entry.count * expected):
        raise ValueError("a tensor's bytes do not fit its shape")
    return entry


def read_index(folder: Path) -> dict[str, TensorEntry]:
    """Every tensor of a checkpoint folder, whether one file or sharded, in the order of the files.

    Raises:
        UserError: no safetensors weights, a path that leaves the folder, a missing shard, or a tensor that is not
            where the index says.
    """
    index = folder / INDEX
    shards = _read_map(folder, index) if index.is_file() else {}
    if (folder / SINGLE).is_file():  # as transformers does, also where an index lies beside it
        return read_header(folder / SINGLE)
    if not index.is_file():
        pickled = sorted(path.name for pattern in PICKLES for path in folder.glob(pattern))
        if pickled:
            raise UserError(
                f"{folder} holds only pickled weights ({pickled[0]}), which can run code when read: "
                "convert it to safetensors first (load it where you trust it, then save_pretrained)"
            )
        raise UserError(f"{folder} holds no weights: expected {SINGLE} or {INDEX}")
    return _read_sharded(folder, shards)


def _read_map(folder: Path, index: Path) -> dict[str, str]:
    """Tensor name -> shard from an index file, checked to stay within the folder."""
    try:
        where = parse_json(index.read_bytes(), str(index))["weight_map"]
        shards = sorted(set(where.values()))
    except (ValueError, KeyError, TypeError, AttributeError, OSError, UserError) as error:
        raise UserError(
            f"{index} is not a readable index file ({str(error)[:80]}): download or save it again"
        ) from error
    if not shards:
        raise UserError(f"{index} names no weights: download or save it again")
    for shard in shards:
        if not isinstance(shard, str) or Path(shard).name != shard or shard in ("", ".", ".."):
            raise UserError(
                f"{index} points outside its folder ({str(shard)[:80]!r}): only plain file names are accepted"
            )
    return where


def _read_sharded(folder: Path, where: dict[str, str]) -> dict[str, TensorEntry]:
    shards = sorted(set(where.values()))
    for shard in shards:
        if not os.path.isfile(folder / shard):  # which no odd name makes fail
            raise UserError(f"{folder} lacks the shard {shard[:80]} that {INDEX} names: download it again")
    headers = {shard: read_header(folder / shard) for shard in shards}
    for name, shard in where.items():
        if name not in headers[shard]:
            raise UserError(f"{INDEX} says that {name} is in {shard}, which does not hold it: download it again")
    for shard, header in headers.items():
        for name in header:
            if where.get(name) != shard:
                what = f"says that {name} is in {where[name]}" if name in where else f"does not name {name}"
                raise UserError(
                    f"{INDEX} in {folder} {what}, which lies in {shard}: the two do not belong together, "
                    "download them again"
                )
    return {name: entry for shard in shards for name, entry in headers[shard].items()}


def same_bytes(one: TensorEntry, other: TensorEntry) -> bool:
    """Whether two stored tensors are equal, compared a piece at a time."""
    if (one.dtype, one.shape) != (other.dtype, other.shape):
        return False
    with one.file.open("rb") as first, other.file.open("rb") as second:
        first.seek(one.start)
        second.seek(other.start)
        for left in range(one.bytes, 0, -COMPARED_PIECE):
            size = min(COMPARED_PIECE, left)
            if first.read(size) != second.read(size):
                return False
    return True
