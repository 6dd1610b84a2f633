"""Calibration tokens.

Texts of several kinds, mixed evenly, or a token file -> a batch of samples, hashed, with a record of it.
"""

import hashlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from ..artifacts import CalibrationRecord
from ..errors import UserError, argument
from ..settings.calibration import Calibration, shares
from ..storage.paths import place
from .readers import CALIBRATION_KINDS, read_text, shipped_text

SHIPPED = "shipped prose"


@dataclass(frozen=True)
class TextSource:
    """A text to take samples from; ``read`` reads it when its turn comes."""

    name: str
    read: Callable[[], str]


@dataclass(frozen=True)
class CalibrationSamples:
    """Calibration samples, (sample, position), the source that each is of (a number), and the record of them all."""

    tokens: Int[Tensor, "sample position"]
    labels: tuple[int, ...]
    record: CalibrationRecord

    def by_source(self, which: Iterable[int]) -> dict[str, list[int]]:
        """Source -> the places within ``which`` of the samples that are of it; ``which`` are numbers of samples."""
        places: dict[str, list[int]] = {}
        for position, number in enumerate(which):
            places.setdefault(self.record.sources[self.labels[number]].name, []).append(position)
        return places


def sources_of(wanted: Calibration) -> list[TextSource]:
    """The texts that are meant: those given, else the shipped prose of every kind."""
    if not wanted.sources:
        return [TextSource(f"shipped {kind}", lambda kind=kind: shipped_text(kind)) for kind in CALIBRATION_KINDS]
    files = [TextSource(Path(path).name, lambda path=path: read_text(path)) for path in wanted.texts]
    return files + [TextSource(name, lambda name=name: read_text(name, "dataset")) for name in wanted.datasets]


def calibration_samples(wanted: Calibration, tokenizer: Callable[[], object], vocabulary: int) -> CalibrationSamples:
    """The samples and the record of them.

    Every source gives its share, drawn by the seed from its segments; samples of the sources alternate, so that any
    stretch of them holds all kinds.

    Args:
        tokenizer: a callable that makes one when text must be read; not asked for a token file.
        vocabulary: number of token ids that the model knows.
    Raises:
        UserError: a source that cannot be read, or holds less than asked for.
    """
    if wanted.tokens is not None:
        tokens = read_tokens(wanted.tokens, vocabulary)
        name = Path(wanted.tokens).name
        record = CalibrationRecord.of(
            [(name, len(tokens))], *tokens.shape, seed=None, bos="as given", hash=token_hash(tokens)
        )
        return CalibrationSamples(tokens, (0,) * len(tokens), record)
    coder = tokenizer()
    sources = sources_of(wanted)
    bos = bos_rule(wanted.bos, coder, every=True)
    body = wanted.length - (bos == "every")
    counts = shares(wanted.samples, wanted.mix or [1.0] * len(sources))
    if not wanted.sources:
        sources, counts = zip(
            *((source, count) for source, count in zip(sources, counts, strict=True) if count), strict=True
        )
    elif wanted.samples < len(sources):
        raise UserError(f"at least one for each of the {len(sources)} sources is needed", samples=wanted.samples)
    drawn = [_draw(source, count, body, coder, wanted) for source, count in zip(sources, counts, strict=True)]
    order = _alternating([len(part) for part in drawn])
    tokens = torch.stack([drawn[source][at] for source, at in order])
    tokens = with_bos(tokens, bos, coder)
    check_vocabulary(tokens, vocabulary, f"the tokenizer on {', '.join(source.name for source in sources)}")
    used = [(source.name, len(part)) for source, part in zip(sources, drawn, strict=True)]
    record = CalibrationRecord.of(used, len(tokens), wanted.length, seed=wanted.seed, bos=bos, hash=token_hash(tokens))
    return CalibrationSamples(tokens, tuple(source for source, _ in order), record)


def _draw(source: TextSource, count: int, body: int, tokenizer, wanted: Calibration) -> Int[Tensor, "sample position"]:
    """So many samples of one source, drawn by the seed from its segments."""
    ids = encode(tokenizer, source.read(), source.name)
    segments = len(ids) // body if body else 0
    if wanted.at_most and segments:
        count = min(count, segments)
    if segments < count:
        raise UserError(
            f"{source.name} has {len(ids)} tokens, enough for {segments} samples of {wanted.length}; "
            f"{count} were asked for: give a longer text or lower {argument('samples')} or "
            f"{argument('length')}"
        )
    chosen = np.random.default_rng(wanted.seed).permutation(segments)[:count]
    return torch.tensor(ids[: segments * body]).view(segments, body)[torch.from_numpy(chosen)]


def _alternating(counts: list[int]) -> list[tuple[int, int]]:
    """(source, number) of all samples, those of each source spread evenly over the whole."""
    places = [((at + 0.5) / count, source, at) for source, count in enumerate(counts) for at in range(count)]
    return [(source, at) for _, source, at in sorted(places)]


def with_bos(tokens: Int[Tensor, "sample position"], bos: str, tokenizer) -> Int[Tensor, "sample length"]:
    """BOS in front of every sample (one position longer), or instead of the very first token, or nowhere."""
    if bos == "every":
        return torch.cat([torch.full((len(tokens), 1), tokenizer.bos_token_id), tokens], dim=1)
    if bos == "first":
        tokens = tokens.clone()
        tokens[0] = torch.cat([torch.tensor([tokenizer.bos_token_id]), tokens[0, :-1]])
    return tokens


def bos_rule(rule: str, tokenizer, *, every: bool) -> str:
    """``auto`` made definite: where the tokenizer itself puts a BOS, ``every`` or ``first``; else ``none``.

    Raises:
        UserError: a BOS is asked for and the tokenizer has none.
    """
    bos = tokenizer.bos_token_id
    if rule == "auto":
        adds = bos is not None and tokenizer("a").input_ids[:1] == [bos]
        return ("every" if every else "first") if adds else "none"
    if rule != "none" and bos is None:
        raise UserError(f"the tokenizer has no BOS token; use {argument('bos', 'none')}", bos=rule)
    return rule


def encode(tokenizer, text: str, name: str = "the text") -> list[int]:
    """Token ids of a text without special tokens.

    Raises:
        UserError: the tokenizer fails on it.
    """
    try:
        return tokenizer(text, add_special_tokens=False, verbose=False).input_ids
    except Exception as error:  # a tokenizer that loads may still be broken inside
        raise UserError(
            f"the tokenizer fails on {name} ({' '.join(str(error).split())[:120]}): are its files whole?"
        ) from error


def token_hash(tokens: Int[Tensor, "sample position"]) -> str:
    """A hash of every id and of the shape."""
    array = np.ascontiguousarray(tokens.cpu().numpy(), dtype="<i8")
    return hashlib.sha256(str(array.shape).encode() + array.tobytes()).hexdigest()[:16]


def read_tokens(path: str | Path, vocabulary: int) -> Int[Tensor, "sample position"]:
    """A token file exactly as it is.

    Raises:
        UserError: not a .npy file, not integers, not 2-D, empty, cut off, or ids outside the vocabulary.
    """
    path = place(path)
    if not path.is_file():
        raise UserError("no such file; give a .npy file of integers, (sample, position)", tokens=path)
    shape, dtype = _npy_header(path)
    if not np.issubdtype(dtype, np.integer):
        raise UserError(f"{argument('tokens', path)} holds {dtype}; integers are needed")
    if len(shape) != 2:
        raise UserError(
            f"{argument('tokens', path)} has {len(shape)} dimension{'s' * (len(shape) != 1)}; 2 are needed, "
            "(sample, position)"
        )
    if shape[0] < 1 or shape[1] < 2:
        what = f"{argument('tokens', path)} has the shape {shape}"
        raise UserError(f"{what}; at least 1 sample of 2 positions is needed")
    try:
        array = np.load(path, allow_pickle=False)
    except (ValueError, OSError, EOFError) as error:
        what = f"{argument('tokens', path)} is not a .npy file of numbers"
        raise UserError(f"{what}; write it with numpy.save") from error
    if array.dtype == np.uint64 and array.max() > np.iinfo(np.int64).max:
        what = f"{argument('tokens', path)} has the token {array.max()}"
        raise UserError(f"{what}; the model knows 0 to {vocabulary - 1}")
    tokens = torch.from_numpy(array.astype(np.int64))
    check_vocabulary(tokens, vocabulary, argument("tokens", path))
    return tokens


def _npy_header(path: Path) -> tuple[tuple[int, ...], np.dtype]:
    """Shape and dtype of a .npy file, held against its size before anything of that size is made."""
    try:
        with path.open("rb") as file:
            version = np.lib.format.read_magic(file)
            read = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}[version]
            shape, _, dtype = read(file, max_header_size=10_000)
            data = file.tell()
        if dtype.hasobject:
            raise ValueError("it holds objects")
        needed = data + dtype.itemsize
        for size in shape:
            needed = data + (needed - data) * int(size)
        if needed != path.stat().st_size:
            raise ValueError(f"{path.stat().st_size} bytes where {needed} are described")
    except Exception as error:  # the header is Python's own syntax, and fails in as many ways
        said = " ".join(str(error).split())[:80]
        what = f"{argument('tokens', path)} is not a .npy file of numbers ({said})"
        raise UserError(f"{what}; write it with numpy.save") from error
    return shape, dtype


def check_vocabulary(tokens: Tensor, vocabulary: int, who: str) -> None:
    """Raise a UserError unless every id is one that the model knows."""
    low, high = int(tokens.min()), int(tokens.max())
    if low < 0 or high >= vocabulary:
        worst = low if low < 0 else high
        raise UserError(
            f"{who} has the token {worst}; the model knows 0 to {vocabulary - 1}: was it made with another tokenizer?"
        )
