"""File locks: an output is written by one process at a time; the lock goes with the process, however it ends."""

from pathlib import Path

from filelock import BaseFileLock, FileLock, Timeout

from ..errors import UserError


def acquire_lock(folder: Path, busy: str, name: str = "lock") -> BaseFileLock:
    """The lock of a folder, held until it is released or the process ends.

    Args:
        busy: what is said where another process holds it.
        name: of its file, where not all of the folder is locked.
    Raises:
        UserError: another process holds it.
        OSError: no lock can be made there.
    """
    lock = FileLock(folder / name, timeout=0)
    try:
        lock.acquire()
    except Timeout as error:
        raise UserError(busy) from error
    return lock
