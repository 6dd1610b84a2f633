"""Readers of .txt, .jsonl and .parquet files and of data sets of the Hub.

Rows with where they stand, checked one by one.
"""

from collections.abc import Iterator
from contextlib import suppress
from importlib import resources
from pathlib import Path
from typing import Any

from ..errors import UserError, argument
from ..storage.paths import parse_json, place

SUFFIXES = (".txt", ".jsonl", ".parquet")
LARGEST_TEXT = 4 << 30  # bytes of a file that is read into memory, and of a table once it is unpacked
PROSE = "prose"
CALIBRATION_KINDS = ("stories", "encyclopaedia", "dialogue", "instructions", "code", "technical")
Row = dict[str, Any]


def read_rows(path: str | Path, what: str = "text") -> Iterator[tuple[str, Row]]:
    """(where it stands, fields) of every document in a file; a .txt file is one document with the field ``text``.

    Args:
        what: the argument that the file was given by, for messages.
    Raises:
        UserError: no such file, another kind, too large, not UTF-8, or a row that is no object (says which).
    """
    path = place(path)
    try:
        there = path.is_file()
    except OSError as error:
        raise UserError(
            f"{argument(what, str(path)[:200])}: cannot be read ({(error.strerror or 'failed').lower()})"
        ) from error
    if not there:
        raise UserError(f"no such file; give {_listed_suffixes()}", **{what: path})
    if path.suffix not in SUFFIXES:
        raise UserError(f"{path.suffix or 'no suffix'} is not read; give {_listed_suffixes()}", **{what: path})
    if path.stat().st_size > LARGEST_TEXT:
        raise UserError(f"{argument(what, path)} is larger than {LARGEST_TEXT >> 30} GiB: {_instead()}")
    if path.suffix == ".parquet":
        yield from _parquet(path, what)
        return
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{argument(what, path)} is not UTF-8 (byte {error.start}); convert it first") from error
    except OSError as error:
        raise UserError(f"{argument(what, path)} cannot be read ({(error.strerror or 'failed').lower()})") from error
    if path.suffix == ".txt":
        yield str(path), {"text": text.replace("\r\n", "\n").replace("\r", "\n")}
        return
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            where = f"{argument(what, path)}: line {number}"
            row = parse_json(line, where)
            if not isinstance(row, dict):
                raise UserError(f"{where} is a {type(row).__name__}; each line needs an object with a text")
            yield f"{path}: line {number}", row


def read_text(path: str | Path, what: str = "text") -> str:
    """A .txt file as it is; of .jsonl and .parquet the field ``text``, documents joined by an empty line.

    Raises:
        UserError: as for ``read_rows``, or a row without the field.
    """
    return "\n\n".join(text_of(where, row, "text", what) for where, row in read_rows(path, what))


def text_of(where: str, row: Row, name: str, what: str = "text") -> str:
    """A field of a row that must be a text."""
    if not isinstance(row.get(name), str):
        kind = f"a field {name!r} that is a {type(row[name]).__name__}" if name in row else f"no field {name!r}"
        raise UserError(
            f"{argument(what, where)} has {kind} (it has {', '.join(map(str, list(row)[:8]))}); each needs a text there"
        )
    with suppress(UnicodeEncodeError):
        row[name].encode()
        return row[name]
    raise UserError(f"{argument(what, where)} has half a character in the field {name!r}: mend it")


def check_readable(paths: tuple[str, ...], what: str = "text") -> None:
    """Raise a UserError where a file is not there or of a kind that is not read, before anything long begins."""
    for given in paths:
        path = place(given)
        if not path.is_file():
            raise UserError(f"no such file; give {_listed_suffixes()}", **{what: path})
        if path.suffix not in SUFFIXES:
            raise UserError(f"{path.suffix or 'no suffix'} is not read; give {_listed_suffixes()}", **{what: path})


def _listed_suffixes() -> str:
    return f"a {', '.join(SUFFIXES[:-1])} or {SUFFIXES[-1]} file"


def _instead() -> str:
    return f"cut it, or read it as a {argument('dataset')}"


def _parquet(path: Path, what: str) -> Iterator[tuple[str, Row]]:
    try:
        import pyarrow.parquet as parquet
    except ImportError as error:
        raise UserError("reading .parquet needs pyarrow; pip install 'shallower[data]'", **{what: path}) from error
    try:
        about = parquet.read_metadata(path)
        size = sum(about.row_group(group).total_byte_size for group in range(about.num_row_groups))
        columns = [
            name for name in about.schema.to_arrow_schema().names if name in ("text", "instruction", "input", "output")
        ]
        if not columns:
            raise UserError(
                f"{argument(what, path)} has no column 'text' (it has "
                f"{', '.join(about.schema.to_arrow_schema().names[:8])})"
            )
        if size > LARGEST_TEXT:
            raise UserError(f"{argument(what, path)} unpacks to more than {LARGEST_TEXT >> 30} GiB: {_instead()}")
        rows = parquet.read_table(path, columns=columns).to_pylist()
    except UserError:
        raise
    except Exception as error:  # pyarrow raises many kinds for a broken file
        raise UserError(f"{argument(what, path)} is not a readable .parquet file") from error
    yield from (
        (f"{path}: row {number}", row)
        for number, row in enumerate(rows, 1)
        if any(value is not None for value in row.values())
    )


def shipped_text(part: str) -> str:
    """The package's own prose: ``evaluation``, or one of ``CALIBRATION_KINDS``."""
    folder = resources.files(__package__).joinpath(PROSE)
    file = (
        folder.joinpath("calibration", f"{part}.txt") if part in CALIBRATION_KINDS else folder.joinpath(f"{part}.txt")
    )
    return file.read_text(encoding="utf-8")


def dataset_text(name: str) -> str:
    """The field ``text`` of all rows of a data set, joined by an empty line."""
    rows = open_dataset(name)
    if "text" not in rows.column_names:
        raise UserError(f"{argument('dataset', name)} has no column 'text' (it has {', '.join(rows.column_names)})")
    return "\n\n".join(str(value) for value in rows["text"] if value)


def open_dataset(name: str, *, streaming: bool = False):
    """A data set of the Hub, or a folder that ``datasets`` reads, as ``NAME[:CONFIG[:SPLIT]]``.

    Streaming reads only what is taken.

    Raises:
        UserError: it cannot be loaded.
    """
    try:
        from datasets import load_dataset
    except ImportError as error:
        raise UserError(f"{argument('dataset')} needs the package datasets; pip install 'shallower[data]'") from error
    parts = name.split(":")
    config, split = (parts[1] or None if len(parts) > 1 else None), (parts[2] if len(parts) > 2 else "train")
    source = str(place(parts[0]))
    try:
        return load_dataset(source, config, split=split, streaming=streaming)
    except Exception as error:  # the library raises many kinds: offline, unknown, gated, script
        raise UserError(
            f"{argument('dataset', name)} cannot be loaded ({' '.join(str(error).split())[:160]}): check the name "
            "and the network"
        ) from error
