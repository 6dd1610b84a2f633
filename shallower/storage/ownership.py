"""Ownership of outputs: what may be replaced, known by its name and a mark in it, and what not.

One rule holds for every writer: replaced is only what this tool wrote there before. What else lies in a folder that is
written anew stays in it, nothing is replaced that the same command reads, and no link is followed out of a folder.
"""

import contextlib
import os
import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from ..errors import UserError, argument
from .paths import files_below, kind_of, parse_json, place, short_list

OUTPUT_MARKS = {
    "shallower.json": "pruned",
    "healing.json": "healing",
    "comparison.json": "comparison",
    "quantised.json": "quantised",
}  # one of them tells a folder as ours
BASE_CARD = "README.base.md"  # the card that the dense model came with
CARD, CARD_MARK = "README.md", "<!-- made by shallower from shallower.json -->"
OURS = re.compile(  # what version 0.1 wrote into folders in which it did not list its files
    r"model(-\d{5}-of-\d{5})?\.safetensors|model\.safetensors\.index\.json"
    r"|(generation_)?config\.json|README(\.base)?\.md"
    r"|tokenizer[\w.]*|(special_tokens_map|added_tokens)\.json|(vocab|merges)\.\w+"
    r"|chat_template\.\w+|(LICENSE|NOTICE)[\w.]*"
    r"|(comparison|compensation|healing|shallower)\.(json|md|png)|pareto\.(png|svg)"
    r"|metrics\.jsonl|adapter/[^/]+|training/[^/]+"
)


def own_files(folder: Path) -> set[str] | None:
    """Names below a folder of the files that this tool wrote there; None where no mark tells that it wrote any."""
    marks = {
        name for name, kind in OUTPUT_MARKS.items() if (folder / name).is_file() and kind_of(folder / name) == kind
    }
    if not marks:
        return None
    names = [path.relative_to(folder).as_posix() for path in files_below(folder)]
    record_names: set[str] = set()
    for name in marks:
        with contextlib.suppress(UserError, OSError):
            content = parse_json((folder / name).read_bytes(), name)
            entries = content.get("files") if isinstance(content, dict) else None
            record_names |= {one for one in entries if isinstance(one, str)} if isinstance(entries, list) else set()
    own = {name for name in names if name in marks or (name in record_names if record_names else OURS.fullmatch(name))}
    return {name for name in own if name != CARD or CARD_MARK in _start(folder / name)}


def others(folder: Path) -> list[str]:
    """Names of the files below a folder that this tool did not write there."""
    own = own_files(folder) or set()
    return [name for path in files_below(folder) if (name := path.relative_to(folder).as_posix()) not in own]


def check_free(target: str | Path, *, overwrite: bool = False, inputs: Iterable[Any] = ()) -> None:
    """Raise a UserError unless an output folder may be written at ``target``: nothing is there, or ``overwrite``
    replaces what we wrote.

    Args:
        inputs: files and folders that are read by the same command; None among them are left out.
    """
    target = Path(target)
    _check_parents(target)
    if target.exists() and not target.is_dir():
        raise UserError(f"{argument('out', target)} is a file; give a folder")
    if target.is_symlink():
        raise UserError(
            f"{argument('out', target)} is a link to {target.resolve()}, which is not followed: give that folder itself"
        )
    if not target.is_dir() or not any(target.iterdir()):
        return
    check_apart(target, inputs)
    if not overwrite:
        raise UserError(
            f"{argument('out', target)} exists and is not empty; give another folder or pass "
            f"{argument('overwrite', True)}"
        )
    precious = [folder for folder in (Path.home(), Path.cwd()) if folder.resolve().is_relative_to(target.resolve())]
    if precious or (target / ".git").exists():
        raise UserError(
            f"{argument('out', target)} holds {precious[0] if precious else 'a repository'}; it is not replaced: give "
            "another folder"
        )
    if own_files(target) is None:
        raise UserError(
            f"{argument('out', target)} holds nothing that shallower wrote ({', '.join(OUTPUT_MARKS)} would tell), so "
            "it is not replaced: give another folder, or empty this one"
        )


def check_apart(target: str | Path, inputs: Iterable[Any]) -> None:
    """Raise a UserError if something that is read lies in a folder that is to be replaced, or is a link to something
    there.
    """
    home = Path(target).resolve()
    for one in inputs:
        if one is not None and home.exists() and place(one).resolve().is_relative_to(home):
            raise UserError(
                f"{argument('out', target)} is or holds {one}, which is read here, so it is not replaced: give another "
                "folder"
            )


def check_replaceable(folder: Path, names: Iterable[str], ours: Callable[[Path], bool]) -> None:
    """Raise a UserError unless files of these names may be written into a folder: there are none, or ours.

    Args:
        ours: whether this tool wrote a file that is there.
    """
    if folder.is_symlink() or (folder.exists() and not folder.is_dir()):
        raise UserError(
            f"{folder} is a {'link' if folder.is_symlink() else 'file'}, where a folder would go: give "
            f"{argument('out')} another name"
        )
    there = list(folder.iterdir()) if folder.is_dir() else []
    if there and not any(ours(path) for path in there):
        raise UserError(
            f"{folder} exists and holds other things ({short_list(sorted(path.name for path in there))}): give "
            f"{argument('out')} another name"
        )
    for name in names:
        path = folder / name
        if (path.exists() or path.is_symlink()) and not ours(path):
            raise UserError(
                f"{path} was written by something else, so it is not replaced: move it away, or give {argument('out')} "
                "another name"
            )


def artifact_place(out: str | Path | None, kind: str, inputs: Iterable[Any] = ()) -> Path | None:
    """Where an artifact goes, checked to be free or to hold an older one of its kind, and to be nothing that is read.

    None stays None.
    """
    if out is None:
        return None
    target = place(out)
    check_file(target, kind)
    if target.exists():
        check_apart(target, inputs)
    return target


def check_file(target: Path, kind: str) -> None:
    """Raise a UserError unless an artifact of this kind may be written at ``target``: a new file, or an older
    artifact.
    """
    _check_parents(target)
    if not target.exists() and not target.is_symlink():
        return
    if target.is_symlink() or not target.is_file():
        raise UserError(f"{argument('out', target)} is not a plain file; give the name of a .json file")
    present_kind = kind_of(target)
    if target.stat().st_size and present_kind != kind:
        raise UserError(
            f"{argument('out', target)} holds something else ({present_kind or 'no artifact'}); only older {kind} are "
            "replaced: give another name"
        )


def record_place(out: Path) -> Path:
    """Where the record of a written file that is no artifact itself lies, such as of a .gguf file."""
    return out.with_name(f"{out.name}.json")


def check_recorded(out: Path, kind: str, *, overwrite: bool) -> None:
    """Raise a UserError unless a file with a record of this kind beside it may be written at ``out``: nothing is there,
    or ``overwrite`` replaces what we wrote.
    """
    if out.is_dir() or out.is_symlink():
        raise UserError(f"it is a {'link' if out.is_symlink() else 'folder'}; give the name of a new file", out=out)
    check_file(record_place(out), kind)
    ours = record_place(out).is_file()
    if out.exists() and not (overwrite and ours):
        other = f"pass {argument('overwrite', True)}" if ours else "it was not written by us"
        raise UserError(f"it is there already: give another name, or {other}", out=out)


def _check_parents(target: Path) -> None:
    """Raise a UserError where the nearest existing folder above cannot take a new entry."""
    try:
        above = next((folder for folder in target.absolute().parents if folder.exists()), Path("/"))
        if above.is_dir() and os.access(above, os.W_OK):
            target.exists()  # names that are too long fail here
            return
    except (OSError, ValueError) as error:
        raise UserError(
            f"cannot write {str(target)[:200]}: {' '.join(str(error).split())[:80]}; give another place"
        ) from error
    raise UserError(f"cannot write {target}: {above} is not a folder that can be written; give another place")


def _start(path: Path) -> str:
    with contextlib.suppress(OSError), path.open("rb") as file:
        return file.read(1 << 20).decode("utf-8", "replace")
    return ""
