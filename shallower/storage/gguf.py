"""GGUF header: metadata and the place of every tensor, read from the start of a .gguf file and held against its length.

Only the header is read, in one go through mapped memory; long arrays such as vocabularies are stepped over. Nothing in
a file is believed before it is bounded by the file's size.
"""

import hashlib
import math
import mmap
import re
import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from ..errors import UserError
from .hashes import file_hashes, known_hash
from .paths import place

SUFFIX = ".gguf"
MAGIC = b"GGUF"
IMPORTER = 3  # changes with what is made of a file where it is unpacked
PATTERNS = (
    "attention.sliding_window_pattern",
    "attention.recurrent_layers",
)  # a truth value per layer, where written out
STRING, ARRAY = 8, 9
SCALARS = {0: "B", 1: "b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 7: "?", 10: "<Q", 11: "<q", 12: "<d"}
SIZES = {kind: struct.calcsize(code) for kind, code in SCALARS.items()}
LAYER_NUMBER = re.compile(r"blk\.(\d{1,7})\.")
SIDES = (  # metadata of which none is larger than the largest side of a tensor
    *("embedding_length", "feed_forward_length", "expert_feed_forward_length", "expert_count", "vocab_size"),
    *("attention.head_count", "attention.head_count_kv", "attention.key_length", "attention.value_length"),
    *("rope.dimension_count", "ssm.inner_size", "ssm.state_size", "ssm.conv_kernel"),
)
ORIGINAL = "shallower.original_layers"
LONG_ARRAY = 4096  # elements of an array from which on it is stepped over
MOST_DIMENSIONS = 8
# type number of ggml -> (name, elements of a block, bytes of a block)
BLOCKS = {
    0: ("F32", 1, 4), 1: ("F16", 1, 2), 2: ("Q4_0", 32, 18), 3: ("Q4_1", 32, 20), 6: ("Q5_0", 32, 22),
    7: ("Q5_1", 32, 24), 8: ("Q8_0", 32, 34), 9: ("Q8_1", 32, 36), 10: ("Q2_K", 256, 84), 11: ("Q3_K", 256, 110),
    12: ("Q4_K", 256, 144), 13: ("Q5_K", 256, 176), 14: ("Q6_K", 256, 210), 15: ("Q8_K", 256, 292),
    16: ("IQ2_XXS", 256, 66), 17: ("IQ2_XS", 256, 74), 18: ("IQ3_XXS", 256, 98), 19: ("IQ1_S", 256, 50),
    20: ("IQ4_NL", 32, 18), 21: ("IQ3_S", 256, 110), 22: ("IQ2_S", 256, 82), 23: ("IQ4_XS", 256, 136),
    24: ("I8", 1, 1), 25: ("I16", 1, 2), 26: ("I32", 1, 4), 27: ("I64", 1, 8), 28: ("F64", 1, 8),
    29: ("IQ1_M", 256, 56), 30: ("BF16", 1, 2), 34: ("TQ1_0", 256, 54), 35: ("TQ2_0", 256, 66),
    39: ("MXFP4", 32, 17),
}  # fmt: skip


@dataclass(frozen=True)
class LongArray:
    """An array of the metadata that was stepped over: the type of its elements and their number."""

    kind: int
    count: int


@dataclass(frozen=True)
class GgufTensor:
    """Where a tensor lies.

    Its type, its shape (the fastest axis first, as the file has it), and its bytes from start to end.
    """

    name: str
    kind: str
    shape: tuple[int, ...]
    start: int
    end: int

    @property
    def count(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)


@dataclass(frozen=True)
class GgufHeader:
    """What stands in front of the weights.

    Attributes:
        metadata: key -> value; of long arrays a ``LongArray``.
        tensors: in the order of the file.
        spans: key -> (first byte, the one after the last) of its entry.
    """

    file: Path
    metadata: dict[str, Any]
    tensors: tuple[GgufTensor, ...]
    spans: dict[str, tuple[int, int]] = field(repr=False)
    version: int = 3

    @property
    def architecture(self) -> str:
        return str(self.metadata.get("general.architecture", ""))

    def own(self, key: str, default: Any = None) -> Any:
        """The value of ``ARCHITECTURE.key``."""
        return self.metadata.get(f"{self.architecture}.{key}", default)

    def pattern(self, key: str) -> list[bool] | None:
        """A pattern that is written out; None where layers are counted."""
        value = self.own(key)
        return value if isinstance(value, list) and all(isinstance(one, bool) for one in value) else None

    @property
    def original_layers(self) -> list[int] | None:
        """Numbers that the layers had in the first model, where an earlier pruning has noted them."""
        kept = self.metadata.get(ORIGINAL)
        numbers = isinstance(kept, list) and all(isinstance(one, int) for one in kept)
        return list(kept) if numbers and len(kept) == self.own("block_count") and kept == sorted({*kept}) else None

    @property
    def importer(self) -> str:
        """What is made of the file where it is unpacked: changes with that."""
        return f"{IMPORTER}{'p' * any(self.pattern(key) is not None for key in PATTERNS)}"

    @cached_property
    def names(self) -> frozenset[str]:
        return frozenset(tensor.name for tensor in self.tensors)

    @property
    def bytes(self) -> int:
        """Bytes of all weights."""
        return sum(tensor.end - tensor.start for tensor in self.tensors)

    @property
    def parameters(self) -> int:
        return sum(tensor.count for tensor in self.tensors)

    @property
    def storage(self) -> str:
        """The types that hold most of the weights, such as ``Q4_K and Q6_K``."""
        sizes: dict[str, int] = {}
        for tensor in self.tensors:
            sizes[tensor.kind] = sizes.get(tensor.kind, 0) + tensor.count
        large = [kind for kind in sorted(sizes, key=lambda kind: -sizes[kind]) if sizes[kind] >= 0.05 * self.parameters]
        return " and ".join(filter(None, (", ".join(large[:-1]), *large[-1:])))


class _Reader:
    """Values at a place of the file, one after the other, never beyond its end."""

    def __init__(self, file: Path, data: mmap.mmap):
        self.file = file
        self.data = data
        self.place = 0
        self.size = len(data)

    def fail(self, why: str) -> UserError:
        return UserError(f"{self.file} is no whole GGUF file ({why}): download it again")

    def take(self, count: int) -> int:
        """The place of so many bytes, which are passed."""
        start = self.place
        if count < 0 or count > self.size - start:
            raise self.fail("its header goes on beyond its end")
        self.place = start + count
        return start

    def scalar(self, kind: int) -> Any:
        return struct.unpack_from(SCALARS[kind], self.data, self.take(SIZES[kind]))[0]

    def text(self) -> str:
        count = self.scalar(10)
        start = self.take(count)
        return self.data[start : start + count].decode("utf-8", "replace")

    def value(self, kind: int) -> Any:
        if kind in SCALARS:
            return self.scalar(kind)
        if kind == STRING:
            return self.text()
        if kind != ARRAY:
            raise self.fail(f"a value of the unknown type {kind}")
        inner = self.scalar(4)
        count = self.scalar(10)
        if inner in SCALARS:
            return [self.scalar(inner) for _ in range(count)] if count <= LONG_ARRAY else self._skip_array(inner, count)
        if inner != STRING:
            raise self.fail(f"an array of the unknown type {inner}")
        if count > (self.size - self.place) // 8:
            raise self.fail("its header goes on beyond its end")
        if count <= LONG_ARRAY:
            return [self.text() for _ in range(count)]
        for _ in range(count):
            self.take(self.scalar(10))
        return LongArray(inner, count)

    def _skip_array(self, inner: int, count: int) -> LongArray:
        self.take(SIZES[inner] * count)
        return LongArray(inner, count)

    def tensor(self) -> tuple[str, int, tuple[int, ...], int]:
        name = self.text()
        dimensions = self.scalar(4)
        if dimensions > MOST_DIMENSIONS:
            raise self.fail(f"a tensor of {dimensions} dimensions")
        shape = tuple(self.scalar(10) for _ in range(dimensions))
        return name, self.scalar(4), shape, self.scalar(10)


def is_gguf(source: str | Path) -> bool:
    """Whether a model that is named is a .gguf file, there or not."""
    path = place(source)
    return path.suffix == SUFFIX and not path.is_dir()


def read_gguf(file: Path) -> GgufHeader:
    """The header of a .gguf file, every tensor checked to lie within it.

    Raises:
        UserError: no GGUF file, one of another version or byte order, cut off, or a part of a split one.
    """
    try:
        with file.open("rb") as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as data:
            return _header(_Reader(file, data))
    except ValueError as error:  # an empty file cannot be mapped
        raise UserError(f"{file} is no GGUF file ({' '.join(str(error).split())[:80]}): download it again") from error
    except OSError as error:
        raise UserError(
            f"{file} cannot be read ({(error.strerror or 'failed').lower()}): give a .gguf file that can be"
        ) from error


def check_sizes(header: GgufHeader) -> None:
    """Raise a UserError if the metadata speak of more layers, or of larger ones, than there are tensors for; nothing
    has been built at that size yet.
    """
    numbers = [int(match[1]) for tensor in header.tensors if (match := LAYER_NUMBER.match(tensor.name))]
    deepest = max(numbers, default=-1) + 1
    largest = max((side for tensor in header.tensors for side in tensor.shape), default=0)
    for key, most in (("block_count", deepest), *((key, largest) for key in SIDES)):
        value = header.own(key)
        if isinstance(value, int) and value > most:
            layers_text = f"its tensors are of {deepest} layers"
            what = layers_text if key == "block_count" else f"no side of a tensor is above {most}"
            raise UserError(f"{header.file}: {header.architecture}.{key} is {value}, and {what}: download it again")


def origin_of(header: GgufHeader) -> str:
    """What decides the model that a file is unpacked to: its bytes, and what is made of them."""
    return f"{file_hashes([header.file])[header.file]} {header.importer}"


def known_origin(header: GgufHeader) -> str | None:
    """The same where the file was hashed before; None else, so that nothing but the header is read."""
    digest = known_hash(header.file)
    return None if digest is None else f"{digest} {header.importer}"


def fingerprint_of(origin: str) -> str:
    """Fingerprint of the model that a file of this origin is unpacked to."""
    return hashlib.sha256(f"gguf {origin}".encode()).hexdigest()[:16]


def _header(reader: _Reader) -> GgufHeader:
    file = reader.file
    if reader.size < 24 or reader.data[:4] != MAGIC:
        raise UserError(f"{file} is no GGUF file (it does not begin with {MAGIC.decode()}): download it again")
    reader.place = 4
    version = reader.scalar(4)
    if version not in (2, 3):
        what = "of the other byte order" if version >> 24 else f"of version {version}"
        raise UserError(f"{file} is a GGUF file {what}; version 2 and 3, little-endian, are read: convert it anew")
    tensors, keys = reader.scalar(10), reader.scalar(10)
    if tensors > reader.size // 24 or keys > reader.size // 13:
        raise reader.fail(f"it announces {tensors} tensors and {keys} keys")
    metadata = {}
    spans = {}
    for _ in range(keys):
        start = reader.place
        name = reader.text()
        if name in metadata:
            raise reader.fail(f"the key {name[:80]} twice")
        metadata[name] = reader.value(reader.scalar(4))
        spans[name] = start, reader.place
    parts = metadata.get("split.count", 1)
    if isinstance(parts, int) and parts > 1:
        number = metadata.get("split.no", 0)
        which = number + 1 if isinstance(number, int) else "one"
        raise UserError(f"{file} is part {which} of {parts}: merge them first (llama-gguf-split does)")
    entries = [reader.tensor() for _ in range(tensors)]
    alignment = metadata.get("general.alignment", 32)
    if not isinstance(alignment, int) or isinstance(alignment, bool) or not 0 < alignment <= 1 << 20:
        raise reader.fail("its alignment makes no sense")
    base = -(-reader.place // alignment) * alignment
    return GgufHeader(file, metadata, tuple(_tensors(reader, entries, base)), spans, version)


def _tensors(reader: _Reader, entries: list[tuple[str, int, tuple[int, ...], int]], base: int) -> Iterator[GgufTensor]:
    names: set[str] = set()
    for name, kind, shape, offset in entries:
        if name in names:
            raise reader.fail(f"the tensor {name[:80]} twice")
        names.add(name)
        if kind not in BLOCKS:
            raise UserError(
                f"{reader.file}: {name[:80]} has the type {kind}, which is not read: convert the model to another one"
            )
        label, elements, size = BLOCKS[kind]
        if shape and shape[0] % elements:
            raise reader.fail(f"{name[:80]} does not divide into blocks of {label}")
        start = base + offset
        end = start + math.prod(shape) // elements * size
        if end > reader.size:
            raise reader.fail(f"{name[:80]} ends {end - reader.size} bytes behind its end")
        yield GgufTensor(name, label, shape, start, end)
