"""Paths: as they were given, the kind of a file, JSON read with one-line errors, the folder of caches."""

import json
import os
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from ..errors import UserError

KIND = re.compile(rb'\s*\{\s*"kind":\s*"(\w+)"')  # an artifact has its kind first
LONGEST_NAME, LONGEST_PATH = 255, 4095  # bytes
SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")  # half of a character that takes two


def place(path: str | Path) -> Path:
    """A path as the user means it: ``~`` stands for the home.

    Raises:
        UserError: the home of a user that does not exist, or a character that no path can hold.
    """
    text = str(path)
    try:
        if len(text.encode()) > LONGEST_PATH or any(len(part.encode()) > LONGEST_NAME for part in text.split("/")):
            raise UserError(
                f"{text[:60]}… is too long for a path: {LONGEST_NAME} bytes a name and {LONGEST_PATH} in all "
                "are allowed"
            )
        return Path(text).expanduser()
    except (RuntimeError, ValueError) as error:
        raise UserError(
            f"{text!a} is no path ({' '.join(str(error).split())[:80]}): give one that can be read"
        ) from error


def cache_folder() -> Path:
    """Where this tool keeps what it can make again: $SHALLOWER_CACHE, or shallower below the user's cache folder."""
    base = os.environ.get("SHALLOWER_CACHE")
    return place(base) if base else place(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "shallower"


def kind_of(path: Path) -> str | None:
    """The kind of an artifact; None for other files."""
    try:
        with path.open("rb") as file:
            match = KIND.match(file.read(100))
    except OSError:
        return None
    return match[1].decode() if match else None


def parse_json(text: str | bytes, where: str) -> Any:
    """Parsed JSON.

    Raises:
        UserError: not JSON, nested without end, a number of thousands of digits, or half a character (a lone
            surrogate).
    """
    try:
        text = text.decode() if isinstance(text, bytes) else text
        content = json.loads(text)
        if SURROGATE.search(text):
            json.dumps(content, ensure_ascii=False).encode()
        return content
    except (ValueError, RecursionError) as error:
        what = "half a character in it" if isinstance(error, UnicodeEncodeError) else " ".join(str(error).split())[:80]
        raise UserError(f"{where} is not JSON ({what}): write or download it again") from error


def files_below(folder: Path) -> list[Path]:
    """All files and links below a folder, none of the links followed."""
    files = []
    for parent, folders, names in os.walk(folder):
        files += [
            Path(parent, name) for name in (*names, *(name for name in folders if Path(parent, name).is_symlink()))
        ]
    return sorted(files)


def short_list(names: Iterable[str], most: int = 4) -> str:
    """The first of some names, and how many there are beyond."""
    names = list(names)
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")
