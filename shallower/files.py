"""Files: written atomically, never half; what may be replaced and what not; JSON read with one-line errors."""

import contextlib
import errno
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from .errors import DiskError, UserError


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
        UserError: not JSON, or nested without end.
    """
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{where} is not JSON ({' '.join(str(error).split())[:80]}): write or download it again") from error


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


def write_atomic(path: str | Path, text: str) -> Path:
    """Write text beside ``path``, then rename, so that a reader sees the old file or the new one, never a part."""
    path = Path(path)
    with disk_errors(path), made_parents(path):
        handle, name = tempfile.mkstemp(prefix=f".{path.name[:100]}.", dir=path.parent)
        try:
            with os.fdopen(handle, "w", encoding="utf-8") as file:
                file.write(text)
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
def new_folder(target: str | Path, *, overwrite: bool = False, at: Path | None = None) -> Iterator[Path]:
    """A folder beside ``target`` to write into; it takes the target's place on success and vanishes on failure.

    Args:
        at: below which folder to write, on the same disk; what an interrupted process left there is found again.
    Raises:
        UserError: as ``check_free`` says, or the disk refuses.
    """
    check_free(target, overwrite=overwrite)
    target = Path(target).resolve()
    with disk_errors(target), made_parents(target):
        if at is None:
            beside = Path(tempfile.mkdtemp(prefix=f".{target.name[:100]}.", dir=target.parent))
        else:
            beside = at / "model"
            beside.mkdir(exist_ok=True)
        try:
            yield beside
            os.chmod(beside, 0o777 & ~_umask())
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


def check_free(target: str | Path, *, overwrite: bool = False) -> None:
    """Raise a UserError unless a model folder may be written at ``target``.

    ``overwrite`` replaces any folder but those that a slip must not cost: a home, a repository, the current folder.
    """
    target = Path(target)
    _check_parents(target)
    if target.exists() and not target.is_dir():
        raise UserError(f"--out {target} is a file; give a folder")
    if not target.is_dir() or not any(target.iterdir()):
        return
    if not overwrite:
        raise UserError(f"--out {target} exists and is not empty; give another folder or pass --overwrite")
    precious = [folder for folder in (Path.home(), Path.cwd()) if folder.resolve().is_relative_to(target.resolve())]
    if precious or (target / ".git").exists():
        raise UserError(f"--out {target} holds {precious[0] if precious else 'a repository'}; it is not replaced: give another folder")


def check_file(target: str | Path | None, kind: str) -> None:
    """Raise a UserError unless an artifact of this kind may be written at ``target``: a new file, or an older artifact."""
    if target is None:
        return
    target = Path(target)
    _check_parents(target)
    if not target.exists():
        return
    if not target.is_file():
        raise UserError(f"--out {target} is not a plain file; give the name of a .json file")
    found = None
    with contextlib.suppress(ValueError, RecursionError, OSError, AttributeError):
        found = json.loads(target.read_text(encoding="utf-8")).get("kind")
    if target.stat().st_size and found != kind:
        raise UserError(
            f"--out {target} holds something else ({found or 'no artifact'}); only older {kind} are replaced: give another name"
        )


def _check_parents(target: Path) -> None:
    """Raise a UserError where the nearest existing folder above cannot take a new entry."""
    above = next((folder for folder in target.absolute().parents if folder.exists()), Path("/"))
    if not above.is_dir() or not os.access(above, os.W_OK):
        raise UserError(f"cannot write {target}: {above} is not a folder that can be written; give another place")
