"""Readers of .txt, .jsonl and .parquet files and of data sets of the Hub.

Rows with where they stand, checked one by one. Limits, encodings, broken lines and wrong types are met here alone.
"""

from collections.abc import Iterable, Iterator
from contextlib import suppress
from importlib import resources
from pathlib import Path
from typing import Any

from ..errors import UserError, argument
from ..storage.paths import parse_json, place

SUFFIXES = (".txt", ".jsonl", ".parquet")
COLUMNS = ("text", "prompt", "instruction", "input", "output")  # what is read of a table
OWN_WORDS = "self:"  # in front of a file of prompts that the unpruned model is to answer
LARGEST_TEXT = 4 << 30  # bytes of a file that is read into memory, and of a table once it is unpacked
SHUFFLE_BUFFER = 10_000  # rows of a streamed data set that are shuffled together
PROSE = "prose"
CALIBRATION_KINDS = ("stories", "encyclopaedia", "dialogue", "instructions", "code", "technical")
Row = dict[str, Any]


def rows(source: str | Path, what: str = "text") -> Iterator[tuple[str, Row]]:
    """(where it stands, fields) of every row; a .txt file is one row with the field ``text``.

    Args:
        source: a .txt, .jsonl or .parquet file, or a data set of the Hub as ``NAME[:CONFIG[:SPLIT]]``.
        what: the argument that it was given by, for messages; ``dataset`` tells a data set from a file.
    Raises:
        UserError: no such file, another kind, too large, not UTF-8, a row that is no object (says which), or a data
            set that cannot be loaded.
    """
    if what == "dataset":
        dataset = _open_dataset(str(source), streaming=False)
        columns = _known_columns(dataset.column_names, argument(what, source))
        yield from _dataset_rows(str(source), dataset.select_columns(columns))
        return
    path = _readable_file(source, what)
    named = argument(what, place(source))
    if path.stat().st_size > LARGEST_TEXT:
        raise UserError(f"{named} is larger than {LARGEST_TEXT >> 30} GiB: {_instead()}")
    read = {".txt": _text_row, ".jsonl": _line_rows, ".parquet": _table_rows}[path.suffix]
    yield from read(path, named)


def stream_rows(name: str, seed: int | None = None, skipped: int = 0) -> Iterator[tuple[str, Row]]:
    """The rows of a data set as ``rows`` gives them, read as they are needed.

    Args:
        seed: shuffled within a buffer; None: in their own order.
        skipped: so many at the start are left out.
    Raises:
        UserError: it cannot be opened, or breaks off.
    """
    dataset = _open_dataset(name, streaming=True)
    if seed is not None:
        dataset = dataset.shuffle(seed=seed, buffer_size=SHUFFLE_BUFFER)
    yield from _dataset_rows(name, dataset.skip(skipped) if skipped else dataset, skipped)


def read_text(source: str | Path, what: str = "text") -> str:
    """A .txt file as it is; of others the field ``text``, documents joined by an empty line.

    Rows of a data set without text are left out.

    Raises:
        UserError: as for ``rows``, or a row without the field.
    """
    located_rows = rows(source, what)
    return "\n\n".join(text_of(where, row) for where, row in located_rows if what != "dataset" or row.get("text", True))


def text_of(where: str, row: Row, name: str = "text") -> str:
    """A field of a row that must be a text."""
    if not isinstance(row.get(name), str):
        kind = f"a field {name!r} that is a {type(row[name]).__name__}" if name in row else f"no field {name!r}"
        raise UserError(f"{where} has {kind} (it has {', '.join(map(str, list(row)[:8]))}); each needs a text there")
    with suppress(UnicodeEncodeError):
        row[name].encode()
        return row[name]
    raise UserError(f"{where} has half a character in the field {name!r}: mend it")


def split_own(paths: Iterable[str | Path]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """(files of text or examples, files of prompts) of what is given to train on."""
    given = [str(path) for path in paths]
    prompts = tuple(path.removeprefix(OWN_WORDS) for path in given if path.startswith(OWN_WORDS))
    return tuple(path for path in given if not path.startswith(OWN_WORDS)), prompts


def check_trainable(paths: Iterable[str | Path]) -> None:
    """Raise a UserError where a file to train on, or of prompts, is not there or of a kind that is not read."""
    files, prompts = split_own(paths)
    check_readable([*files, *prompts], "data")
    if texts := [path for path in prompts if place(path).suffix == ".txt"]:
        raise UserError("a .txt is one text; give prompts in rows, as a .jsonl or .parquet file", data=texts[0])


def check_readable(paths: Iterable[str | Path], what: str = "text") -> None:
    """Raise a UserError where a file is not there or of a kind that is not read, before anything long begins."""
    for path in paths:
        _readable_file(path, what)


def _readable_file(given: str | Path, what: str) -> Path:
    """The place of a file that is there and of a kind that is read."""
    path = place(given)
    suffixes = f"a {', '.join(SUFFIXES[:-1])} or {SUFFIXES[-1]} file"
    try:
        there = path.is_file()
    except OSError as error:
        raise UserError(_read_error(error), **{what: str(path)[:200]}) from error
    if not there:
        raise UserError(f"no such file; give {suffixes}", **{what: path})
    if path.suffix not in SUFFIXES:
        raise UserError(f"{path.suffix or 'no suffix'} is not read; give {suffixes}", **{what: path})
    return path


def _text_row(path: Path, named: str) -> Iterator[tuple[str, Row]]:
    yield named, {"text": _decode(path, named).replace("\r\n", "\n").replace("\r", "\n")}


def _line_rows(path: Path, named: str) -> Iterator[tuple[str, Row]]:
    for number, line in enumerate(_decode(path, named).split("\n"), 1):
        if line.strip():
            where = f"{named}: line {number}"
            row = parse_json(line, where)
            if not isinstance(row, dict):
                raise UserError(f"{where} is a {type(row).__name__}; each line needs an object with a text")
            yield where, row


def _table_rows(path: Path, named: str) -> Iterator[tuple[str, Row]]:
    try:
        import pyarrow.parquet as parquet
    except ImportError as error:
        raise UserError(f"{named}: reading .parquet needs pyarrow; pip install 'shallower[data]'") from error
    try:
        about = parquet.read_metadata(path)
        size = sum(about.row_group(group).total_byte_size for group in range(about.num_row_groups))
        columns = _known_columns(about.schema.to_arrow_schema().names, named)
        if size > LARGEST_TEXT:
            raise UserError(f"{named} unpacks to more than {LARGEST_TEXT >> 30} GiB: {_instead()}")
        table = parquet.read_table(path, columns=columns).to_pylist()
    except UserError:
        raise
    except Exception as error:  # pyarrow raises many kinds for a broken file
        raise UserError(f"{named} is not a readable .parquet file") from error
    for number, row in enumerate(table, 1):
        if any(value is not None for value in row.values()):
            yield f"{named}: row {number}", row


def _dataset_rows(name: str, dataset_rows: Iterable[Row], skipped: int = 0) -> Iterator[tuple[str, Row]]:
    named = argument("dataset", name)
    number = skipped
    try:
        for number, row in enumerate(dataset_rows, skipped + 1):
            yield f"{named}: row {number}", row
    except (OSError, ValueError, RuntimeError) as error:
        raise UserError(
            f"{named} broke off behind row {number} ({' '.join(str(error).split())[:160]}): start again"
        ) from error


def _open_dataset(name: str, *, streaming: bool) -> Any:
    """A data set of the Hub, or a folder that ``datasets`` reads; streaming reads only what is taken."""
    try:
        from datasets import load_dataset
    except ImportError as error:
        raise UserError(f"{argument('dataset')} needs the package datasets; pip install 'shallower[data]'") from error
    parts = name.split(":")
    config = parts[1] or None if len(parts) > 1 else None
    split = parts[2] if len(parts) > 2 else "train"
    try:
        return load_dataset(str(place(parts[0])), config, split=split, streaming=streaming)
    except Exception as error:  # the library raises many kinds: offline, unknown, gated, script
        said = " ".join(str(error).split())[:160]
        raise UserError(
            f"{argument('dataset', name)} cannot be loaded ({said}): check the name and the network"
        ) from error


def _known_columns(there: list[str], named: str) -> list[str]:
    """The columns of a table that are read."""
    columns = [name for name in there if name in COLUMNS]
    if not columns:
        raise UserError(f"{named} has no column 'text' (it has {', '.join(there[:8])})")
    return columns


def _decode(path: Path, named: str) -> str:
    try:
        return path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{named} is not UTF-8 (byte {error.start}); convert it first") from error
    except OSError as error:
        raise UserError(f"{named}: {_read_error(error)}") from error


def _read_error(error: OSError) -> str:
    return f"cannot be read ({(error.strerror or 'failed').lower()})"


def _instead() -> str:
    return f"cut it, or read it as a {argument('dataset')}"


def shipped_text(part: str) -> str:
    """The package's own prose: ``evaluation``, or one of ``CALIBRATION_KINDS``."""
    folder = resources.files(__package__).joinpath(PROSE)
    file = (
        folder.joinpath("calibration", f"{part}.txt") if part in CALIBRATION_KINDS else folder.joinpath(f"{part}.txt")
    )
    return file.read_text(encoding="utf-8")
