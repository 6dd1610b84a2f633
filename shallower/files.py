"""Files: written atomically, never half; what may be replaced and what not; JSON read with one-line errors.

One rule holds for every writer: replaced is only what this tool wrote there before, known by its name and a mark in it. What
else lies in a folder that is written anew stays in it, nothing is replaced that the same command reads, and no link is
followed out of a folder.
"""

import contextlib
import errno
import json
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from .errors import DiskError, UserError
from .progress import say

KIND = re.compile(rb'\s*\{\s*"kind":\s*"(\w+)"')  # an artifact has its kind first
MARKS = {"shallower.json": "pruned", "healing.json": "healing", "comparison.json": "comparison"}  # one of them tells a folder as ours
BASE_CARD = "README.base.md"  # the card that the unpruned model came with
CARD, CARD_MARK = "README.md", "<!-- made by shallower from shallower.json -->"
OURS = re.compile(  # what version 0.1 wrote into folders in which it did not list its files
    r"model(-\d{5}-of-\d{5})?\.safetensors|model\.safetensors\.index\.json|(generation_)?config\.json|README(\.base)?\.md"
    r"|tokenizer[\w.]*|(special_tokens_map|added_tokens)\.json|(vocab|merges)\.\w+|chat_template\.\w+|(LICENSE|NOTICE)[\w.]*"
    r"|(comparison|compensation|healing|shallower)\.(json|md|png)|pareto\.(png|svg)|metrics\.jsonl|adapter/[^/]+|training/[^/]+"
)
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
            raise UserError(f"{text[:60]}… is too long for a path: {LONGEST_NAME} bytes a name and {LONGEST_PATH} in all are allowed")
        return Path(text).expanduser()
    except (RuntimeError, ValueError) as error:
        raise UserError(f"{text!a} is no path ({' '.join(str(error).split())[:80]}): give one that can be read") from error


def cache_folder() -> Path:
    """Where this tool keeps what it can make again: $SHALLOWER_CACHE, or shallower below the user's cache folder."""
    base = os.environ.get("SHALLOWER_CACHE")
    return place(base) if base else place(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "shallower"


def kind_of(path: Path) -> str | None:
    """The kind of an artifact; None for other files."""
    try:
        with path.open("rb") as file:
            found = KIND.match(file.read(100))
    except OSError:
        return None
    return found[1].decode() if found else None


@contextlib.contextmanager
def disk_errors(target: Path, hint: str = "") -> Iterator[None]:
    """Turn a full, read-only or failing disk into a DiskError that names the target; ``hint`` is added to its text."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise DiskError(f"no space left on the disk of {target}: free some space or write elsewhere{hint}") from error
        reason = (error.strerror or type(error).__name__).lower()
        raise DiskError(f"cannot write {target}: {reason}; give a place that can be written{hint}") from error


def parse_json(text: str | bytes, where: str) -> Any:
    """Parsed JSON.

    Raises:
        UserError: not JSON, nested without end, a number of thousands of digits, or half a character (a lone surrogate).
    """
    try:
        text = text.decode() if isinstance(text, bytes) else text
        found = json.loads(text)
        if SURROGATE.search(text):
            json.dumps(found, ensure_ascii=False).encode()
        return found
    except (ValueError, RecursionError) as error:
        what = "half a character in it" if isinstance(error, UnicodeEncodeError) else " ".join(str(error).split())[:80]
        raise UserError(f"{where} is not JSON ({what}): write or download it again") from error


@contextlib.contextmanager
def made_parents(target: Path) -> Iterator[None]:
    """Make the folders that lead to ``target``; those made here go again if what runs inside fails."""
    missing = [folder for folder in target.absolute().parents if not folder.exists()]
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        yield
    except BaseException:
        for folder in missing:
            with contextlib.suppress(OSError):
                folder.rmdir()
        raise


def check_space(target: Path, needed: int) -> None:
    """Raise a DiskError where the disk of an output has not so many bytes left."""
    place = next(folder for folder in target.absolute().parents if folder.exists())
    free = shutil.disk_usage(place).free
    if free < needed:
        raise DiskError(f"not enough space for {needed / 1e9:.2f} GB at {place} ({free / 1e9:.2f} GB free): free some or write elsewhere")


def write_atomic(path: str | Path, content: str | bytes) -> Path:
    """Write beside ``path``, then rename, so that a reader sees the old file or the new one, never a part.

    Raises:
        DiskError: the disk refuses.
        UserError: text that UTF-8 cannot hold.
    """
    path = Path(path)
    try:
        raw = content.encode() if isinstance(content, str) else content
    except UnicodeEncodeError as error:
        raise UserError(f"{path} would hold half a character ({content[error.start]!a}): mend the input that it comes from") from error
    with disk_errors(path), made_parents(path):
        handle, name = tempfile.mkstemp(prefix=f".{path.name[:100]}.", dir=path.parent)
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(raw)
                file.flush()
                os.fsync(file.fileno())
            os.chmod(name, 0o666 & ~_umask())
            os.replace(name, path)
        except BaseException:
            with contextlib.suppress(OSError):
                os.unlink(name)
            raise
    return path


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


@contextlib.contextmanager
def new_folder(target: str | Path, *, overwrite: bool = False, at: Path | None = None, inputs: Iterable[Any] = ()) -> Iterator[Path]:
    """A folder beside ``target`` to write into; it takes the target's place on success and vanishes on failure.

    Of a folder that is replaced what this tool did not write there stays in it.

    Args:
        at: below which folder to write, on the same disk; what an interrupted process left there is found again.
        inputs: what is read meanwhile.
    Raises:
        UserError: as ``check_free`` says, or the disk refuses.
    """
    check_free(target, overwrite=overwrite, inputs=inputs)
    target = Path(target).absolute()
    with disk_errors(target), made_parents(target):
        if at is None:
            beside = Path(tempfile.mkdtemp(prefix=f".{target.name[:100]}.", dir=target.parent))
        else:
            beside = at / "model"
            beside.mkdir(exist_ok=True)
        try:
            yield beside
            os.chmod(beside, 0o777 & ~_umask())
            for path in files_below(beside):  # some libraries write for the owner alone
                if not path.is_symlink():
                    os.chmod(path, 0o666 & ~_umask())
            _replace_folder(beside, target)
        except KeyboardInterrupt:
            if at is None:
                shutil.rmtree(beside, ignore_errors=True)
            raise
        except BaseException:
            shutil.rmtree(beside, ignore_errors=True)
            raise


def _replace_folder(new: Path, target: Path) -> None:
    """Rename, with what stood there moved aside first and moved back if that fails."""
    if not target.exists():
        os.replace(new, target)
        return
    _keep_others(target, new)
    aside = Path(tempfile.mkdtemp(prefix=f".{target.name[:100]}.before.", dir=target.parent))
    try:
        os.replace(target, aside)
        try:
            os.replace(new, target)
        except BaseException:
            os.rename(aside, target)
            raise
    except BaseException:
        with contextlib.suppress(OSError):
            aside.rmdir()  # empty: what was there is back in its place
        raise
    shutil.rmtree(aside, ignore_errors=True)


def _keep_others(old: Path, new: Path) -> None:
    """Let what this tool did not write into a folder also lie in the one that takes its place; files are linked, not copied."""
    kept = others(old)
    for name in kept:
        goal = new / name
        while goal.exists() or goal.is_symlink():
            goal = goal.with_name(goal.name + ".before")
        goal.parent.mkdir(parents=True, exist_ok=True)
        if (old / name).is_symlink():
            goal.symlink_to(os.readlink(old / name))
            continue
        try:
            os.link(old / name, goal)
        except OSError:  # a file system without links
            shutil.copy2(old / name, goal)
    if kept:
        say(f"kept in {old}, not written by shallower: {listed(kept)}")


def own_files(folder: Path) -> set[str] | None:
    """Names below a folder of the files that this tool wrote there; None where no mark tells that it wrote any."""
    marks = {name for name, kind in MARKS.items() if (folder / name).is_file() and kind_of(folder / name) == kind}
    if not marks:
        return None
    names = [path.relative_to(folder).as_posix() for path in files_below(folder)]
    listed_there: set[str] = set()
    for name in marks:
        with contextlib.suppress(UserError, OSError):
            content = parse_json((folder / name).read_bytes(), name)
            found = content.get("files") if isinstance(content, dict) else None
            listed_there |= {one for one in found if isinstance(one, str)} if isinstance(found, list) else set()
    own = {name for name in names if name in marks or (name in listed_there if listed_there else OURS.fullmatch(name))}
    return {name for name in own if name != CARD or CARD_MARK in _start(folder / name)}


def others(folder: Path) -> list[str]:
    """Names of the files below a folder that this tool did not write there."""
    own = own_files(folder) or set()
    return [name for path in files_below(folder) if (name := path.relative_to(folder).as_posix()) not in own]


def files_below(folder: Path) -> list[Path]:
    """All files and links below a folder, none of the links followed."""
    found = []
    for parent, folders, names in os.walk(folder):
        found += [Path(parent, name) for name in (*names, *(name for name in folders if Path(parent, name).is_symlink()))]
    return sorted(found)


def remove_own(folder: Path, names: re.Pattern) -> None:
    """Remove the files below a working folder whose names (from there) are ours, and what is empty then; no link is followed."""
    for path in files_below(folder):
        if names.fullmatch(path.relative_to(folder).as_posix()):
            path.unlink(missing_ok=True)
    for parent, _, _ in os.walk(folder, topdown=False):
        with contextlib.suppress(OSError):
            os.rmdir(parent)


def listed(names: Iterable[str], most: int = 4) -> str:
    """The first of some names, and how many there are beyond."""
    names = list(names)
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def _start(path: Path) -> str:
    with contextlib.suppress(OSError), path.open("rb") as file:
        return file.read(1 << 20).decode("utf-8", "replace")
    return ""


def check_free(target: str | Path, *, overwrite: bool = False, inputs: Iterable[Any] = ()) -> None:
    """Raise a UserError unless an output folder may be written at ``target``: nothing is there, or ``overwrite`` replaces what we wrote.

    Args:
        inputs: files and folders that are read by the same command; None among them are left out.
    """
    target = Path(target)
    _check_parents(target)
    if target.exists() and not target.is_dir():
        raise UserError(f"--out {target} is a file; give a folder")
    if target.is_symlink():
        raise UserError(f"--out {target} is a link to {target.resolve()}, which is not followed: give that folder itself")
    if not target.is_dir() or not any(target.iterdir()):
        return
    check_apart(target, inputs)
    if not overwrite:
        raise UserError(f"--out {target} exists and is not empty; give another folder or pass --overwrite")
    precious = [folder for folder in (Path.home(), Path.cwd()) if folder.resolve().is_relative_to(target.resolve())]
    if precious or (target / ".git").exists():
        raise UserError(f"--out {target} holds {precious[0] if precious else 'a repository'}; it is not replaced: give another folder")
    if own_files(target) is None:
        raise UserError(
            f"--out {target} holds nothing that shallower wrote ({', '.join(MARKS)} would tell), so it is not replaced: "
            "give another folder, or empty this one"
        )


def check_apart(target: str | Path, inputs: Iterable[Any]) -> None:
    """Raise a UserError if something that is read lies in a folder that is to be replaced, or is a link to something there."""
    home = Path(target).resolve()
    for one in inputs:
        if one is not None and home.exists() and place(one).resolve().is_relative_to(home):
            raise UserError(f"--out {target} is or holds {one}, which is read here, so it is not replaced: give another folder")


def check_replaceable(folder: Path, names: Iterable[str], ours: Callable[[Path], bool]) -> None:
    """Raise a UserError unless files of these names may be written into a folder: there are none, or ours.

    Args:
        ours: whether this tool wrote a file that is there.
    """
    if folder.is_symlink() or (folder.exists() and not folder.is_dir()):
        raise UserError(f"{folder} is a {'link' if folder.is_symlink() else 'file'}, where a folder would go: give --out another name")
    there = list(folder.iterdir()) if folder.is_dir() else []
    if there and not any(ours(path) for path in there):
        raise UserError(f"{folder} exists and holds other things ({listed(sorted(path.name for path in there))}): give --out another name")
    for name in names:
        path = folder / name
        if (path.exists() or path.is_symlink()) and not ours(path):
            raise UserError(f"{path} was written by something else, so it is not replaced: move it away, or give --out another name")


def replace_files(folder: Path, contents: dict[str, bytes], ours: Callable[[Path], bool]) -> None:
    """Write files into a folder, each atomically, and remove those of ours that are no longer made; see ``check_replaceable``."""
    check_replaceable(folder, contents, ours)
    for name, content in contents.items():
        write_atomic(folder / name, content)
    for path in list(folder.iterdir()) if folder.is_dir() else []:
        if path.name not in contents and ours(path):
            with disk_errors(path):
                path.unlink()


def artifact_place(out: str | Path | None, kind: str, inputs: Iterable[Any] = ()) -> Path | None:
    """Where an artifact goes, checked to be free or to hold an older one of its kind, and to be nothing that is read; None stays None."""
    if out is None:
        return None
    target = place(out)
    check_file(target, kind)
    if target.exists():
        check_apart(target, inputs)
    return target


def check_file(target: Path, kind: str) -> None:
    """Raise a UserError unless an artifact of this kind may be written at ``target``: a new file, or an older artifact."""
    _check_parents(target)
    if not target.exists() and not target.is_symlink():
        return
    if target.is_symlink() or not target.is_file():
        raise UserError(f"--out {target} is not a plain file; give the name of a .json file")
    found = kind_of(target)
    if target.stat().st_size and found != kind:
        raise UserError(
            f"--out {target} holds something else ({found or 'no artifact'}); only older {kind} are replaced: give another name"
        )


def _check_parents(target: Path) -> None:
    """Raise a UserError where the nearest existing folder above cannot take a new entry."""
    try:
        above = next((folder for folder in target.absolute().parents if folder.exists()), Path("/"))
        if above.is_dir() and os.access(above, os.W_OK):
            target.exists()  # names that are too long fail here
            return
    except (OSError, ValueError) as error:
        raise UserError(f"cannot write {str(target)[:200]}: {' '.join(str(error).split())[:80]}; give another place") from error
    raise UserError(f"cannot write {target}: {above} is not a folder that can be written; give another place")
