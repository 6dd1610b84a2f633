"""Files: written atomically, never half; a new folder takes the place of an old one only when it is complete."""

import contextlib
import errno
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from ..errors import DiskError, UserError
from ..runtime.progress import say
from .ownership import check_free, check_replaceable, others
from .paths import files_below, short_list


@contextlib.contextmanager
def disk_errors(target: Path, hint: str = "") -> Iterator[None]:
    """Turn a full, read-only or failing disk into a DiskError that names the target; ``hint`` is added to its text."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise DiskError(
                f"no space left on the disk of {target}: free some space or write elsewhere{hint}"
            ) from error
        reason = (error.strerror or type(error).__name__).lower()
        raise DiskError(f"cannot write {target}: {reason}; give a place that can be written{hint}") from error


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
        raise DiskError(
            f"not enough space for {needed / 1e9:.2f} GB at {place} ({free / 1e9:.2f} GB free): free some or "
            "write elsewhere"
        )


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
        raise UserError(
            f"{path} would hold half a character ({content[error.start]!a}): mend the input that it comes from"
        ) from error
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
def new_folder(
    target: str | Path, *, overwrite: bool = False, at: Path | None = None, inputs: Iterable[Any] = ()
) -> Iterator[Path]:
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
    """Let what this tool did not write into a folder also lie in the one that takes its place.

    Files are linked, not copied.
    """
    foreign = others(old)
    for name in foreign:
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
    if foreign:
        say(f"kept in {old}, not written by shallower: {short_list(foreign)}")


def remove_own(folder: Path, names: re.Pattern) -> None:
    """Remove the files below a working folder whose names (from there) are ours, and what is empty then.

    No link is followed.
    """
    for path in files_below(folder):
        if names.fullmatch(path.relative_to(folder).as_posix()):
            path.unlink(missing_ok=True)
    for parent, _, _ in os.walk(folder, topdown=False):
        with contextlib.suppress(OSError):
            os.rmdir(parent)


def replace_files(folder: Path, contents: dict[str, bytes], ours: Callable[[Path], bool]) -> None:
    """Write files into a folder, each atomically, and remove those of ours that are no longer made.

    See ``check_replaceable``.
    """
    check_replaceable(folder, contents, ours)
    for name, content in contents.items():
        write_atomic(folder / name, content)
    for path in list(folder.iterdir()) if folder.is_dir() else []:
        if path.name not in contents and ours(path):
            with disk_errors(path):
                path.unlink()
