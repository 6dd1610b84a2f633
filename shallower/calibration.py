"""Text, a data set or a token file -> fixed token batches; seeded, hashed, with a stated BOS rule."""

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass, replace
from importlib import resources
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from .artifacts import CalibrationRecord
from .errors import UserError
from .files import parse_json

BOS_RULES = ("auto", "first", "every", "none")
SHIPPED = "shipped"


@dataclass(frozen=True)
class Calibration:
    """Where the calibration tokens come from.

    Attributes:
        text: a .txt, .jsonl or .parquet file (field ``text``); None with no other source means the shipped text.
        dataset: a Hub data set, ``name``, ``name:config`` or ``name:config:split``.
        tokens: a .npy file of integers, (sample, position), used exactly as it is.
        samples, length: how many samples of how many tokens (BOS counted).
        seed: which parts of the text are taken.
        at_most: take fewer samples where the text has no more.
        bos: where the BOS token goes: ``first`` sample only, ``every``, ``none``; ``auto`` is ``every`` for models whose
            tokenizer adds one, else ``none``.
    """

    text: str | None = None
    dataset: str | None = None
    tokens: str | None = None
    samples: int = 10
    length: int = 128
    seed: int = 1234
    bos: str = "auto"
    at_most: bool = False

    def __post_init__(self) -> None:
        if sum(source is not None for source in (self.text, self.dataset, self.tokens)) > 1:
            raise UserError("give one of --text, --dataset and --tokens, not several")
        check_numbers(samples=self.samples, length=self.length, bos=self.bos)
        if self.seed < 0:
            raise UserError(f"--seed {self.seed}: 0 or more")


def check_numbers(*, samples: int, length: int, bos: str) -> None:
    """Raise a UserError unless samples, length and the BOS rule make sense."""
    if samples < 1:
        raise UserError(f"--samples {samples}: at least 1 is needed")
    if length < 2:
        raise UserError(f"--length {length}: at least 2 tokens are needed, one to see and one to predict")
    if bos not in BOS_RULES:
        raise UserError(f"--bos {bos}: allowed are {', '.join(BOS_RULES)}")


def calibration_tokens(wanted: Calibration, tokenizer, vocabulary: int) -> tuple[Int[Tensor, "sample position"], CalibrationRecord]:
    """The tokens and the record of them.

    Args:
        tokenizer: a callable that makes one when text must be read; not asked for a token file.
        vocabulary: number of token ids that the model knows.
    Raises:
        UserError: a source that cannot be read, or holds less than asked for.
    """
    if wanted.tokens is not None:
        tokens = read_tokens(wanted.tokens, vocabulary)
        record = CalibrationRecord(Path(wanted.tokens).name, *tokens.shape, seed=None, bos="as given", hash=token_hash(tokens))
        return tokens, record
    source, text = read_source(wanted.text, wanted.dataset, SHIPPED)
    coder = tokenizer()
    bos = bos_rule(wanted.bos, coder, every=True)
    body = wanted.length - (bos == "every")
    ids = encode(coder, text)
    segments = len(ids) // body if body else 0
    if wanted.at_most and segments:
        wanted = replace(wanted, samples=min(wanted.samples, segments))
    if segments < wanted.samples:
        raise UserError(
            f"{source} has {len(ids)} tokens, enough for {segments} samples of {wanted.length}; "
            f"{wanted.samples} were asked for: give a longer text or lower --samples or --length"
        )
    chosen = np.random.default_rng(wanted.seed).permutation(segments)[: wanted.samples]
    tokens = torch.tensor(ids[: segments * body]).view(segments, body)[torch.from_numpy(chosen)]
    tokens = with_bos(tokens, bos, coder)
    check_vocabulary(tokens, vocabulary, f"the tokenizer on {source}")
    return tokens, CalibrationRecord(source, wanted.samples, wanted.length, seed=wanted.seed, bos=bos, hash=token_hash(tokens))


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
        raise UserError(f"--bos {rule}: the tokenizer has no BOS token; use --bos none")
    return rule


def encode(tokenizer, text: str) -> list[int]:
    """Token ids of a text without special tokens."""
    return tokenizer(text, add_special_tokens=False, verbose=False).input_ids


def token_hash(tokens: Int[Tensor, "sample position"]) -> str:
    """A hash of every id and of the shape."""
    array = np.ascontiguousarray(tokens.cpu().numpy(), dtype="<i8")
    return hashlib.sha256(str(array.shape).encode() + array.tobytes()).hexdigest()[:16]


def read_tokens(path: str | Path, vocabulary: int) -> Int[Tensor, "sample position"]:
    """A token file exactly as it is.

    Raises:
        UserError: not a .npy file, not integers, not 2-D, empty, or ids outside the vocabulary.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"--tokens {path}: no such file; give a .npy file of integers, (sample, position)")
    try:
        array = np.load(path, allow_pickle=False)
    except (ValueError, OSError, EOFError) as error:
        raise UserError(f"--tokens {path} is not a .npy file of numbers; write it with numpy.save") from error
    if not isinstance(array, np.ndarray) or not np.issubdtype(array.dtype, np.integer):
        raise UserError(f"--tokens {path} holds {getattr(array, 'dtype', 'several arrays')}; integers are needed")
    if array.ndim != 2:
        raise UserError(f"--tokens {path} has {array.ndim} dimension{'s' * (array.ndim != 1)}; 2 are needed, (sample, position)")
    if array.shape[0] < 1 or array.shape[1] < 2:
        raise UserError(f"--tokens {path} has the shape {array.shape}; at least 1 sample of 2 positions is needed")
    if array.dtype == np.uint64 and array.max() > np.iinfo(np.int64).max:
        raise UserError(f"--tokens {path} has the token {array.max()}; the model knows 0 to {vocabulary - 1}")
    tokens = torch.from_numpy(array.astype(np.int64))
    check_vocabulary(tokens, vocabulary, f"--tokens {path}")
    return tokens


def check_vocabulary(tokens: Tensor, vocabulary: int, who: str) -> None:
    """Raise a UserError unless every id is one that the model knows."""
    low, high = int(tokens.min()), int(tokens.max())
    if low < 0 or high >= vocabulary:
        worst = low if low < 0 else high
        raise UserError(f"{who} has the token {worst}; the model knows 0 to {vocabulary - 1}: was it made with another tokenizer?")


def read_source(text: str | None, dataset: str | None, shipped: str) -> tuple[str, str]:
    """(name, whole text) of a file, a Hub data set, or the shipped text; documents are joined by an empty line."""
    if dataset is not None:
        return dataset, "\n\n".join(_dataset(dataset))
    if text is not None:
        return Path(text).name, read_text(text)
    part = "calibration" if shipped == SHIPPED else shipped
    return f"shipped {part} text", shipped_text(part)


def shipped_text(part: str) -> str:
    """The package's own prose: ``calibration`` or ``evaluation``."""
    return resources.files(__package__).joinpath("texts", f"{part}.txt").read_text(encoding="utf-8")


def read_text(path: str | Path) -> str:
    """A .txt file as it is; of .jsonl and .parquet the field ``text``, joined by an empty line.

    Raises:
        UserError: no such file, another kind, not UTF-8, or a line without the field (says which).
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"--text {path}: no such file; give a .txt, .jsonl or .parquet file")
    readers = {".txt": _read_plain, ".jsonl": _read_jsonl, ".parquet": _read_parquet}
    if path.suffix not in readers:
        raise UserError(f"--text {path}: {path.suffix or 'no suffix'} is not read; give a .txt, .jsonl or .parquet file")
    try:
        return readers[path.suffix](path)
    except UnicodeDecodeError as error:
        raise UserError(f"--text {path} is not UTF-8 (byte {error.start}); convert it first") from error


def _read_plain(path: Path) -> str:
    return path.read_text(encoding="utf-8")


def _read_jsonl(path: Path) -> str:
    documents = []
    with path.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            row = parse_json(line, f"--text {path}: line {number}")
            if not isinstance(row, dict) or not isinstance(row.get("text"), str):
                has = ", ".join(list(row)[:8]) if isinstance(row, dict) else type(row).__name__
                kind = f"a field 'text' that is a {type(row['text']).__name__}" if "text" in row else "no field 'text'"
                raise UserError(f"--text {path}: line {number} has {kind} (it has {has}); each line needs a text")
            documents.append(row["text"])
    return "\n\n".join(documents)


def _read_parquet(path: Path) -> str:
    try:
        import pyarrow.parquet as parquet
    except ImportError as error:
        raise UserError(f"--text {path}: reading .parquet needs pyarrow; pip install 'shallower[data]'") from error
    try:
        table = parquet.read_table(path)
    except (OSError, ValueError) as error:
        raise UserError(f"--text {path} is not a readable .parquet file") from error
    if "text" not in table.column_names:
        raise UserError(f"--text {path} has no column 'text' (it has {', '.join(table.column_names)})")
    return "\n\n".join(str(value) for value in table["text"].to_pylist() if value)


def _dataset(name: str) -> Iterable[str]:
    rows = open_dataset(name)
    if "text" not in rows.column_names:
        raise UserError(f"--dataset {name} has no column 'text' (it has {', '.join(rows.column_names)})")
    return rows["text"]


def open_dataset(name: str, *, streaming: bool = False):
    """A data set of the Hub, or a folder that ``datasets`` reads, as ``NAME[:CONFIG[:SPLIT]]``; streaming reads only what is taken.

    Raises:
        UserError: it cannot be loaded.
    """
    try:
        from datasets import load_dataset
    except ImportError as error:
        raise UserError("--dataset needs the package datasets; pip install 'shallower[data]'") from error
    parts = name.split(":")
    config, split = (parts[1] or None if len(parts) > 1 else None), (parts[2] if len(parts) > 2 else "train")
    try:
        return load_dataset(parts[0], config, split=split, streaming=streaming)
    except Exception as error:  # the library raises many kinds: offline, unknown, gated, script
        raise UserError(
            f"--dataset {name} cannot be loaded ({' '.join(str(error).split())[:160]}): check the name and the network"
        ) from error
