"""Hashes of whole files, SHA-256, each read once: kept by size, times and inode, so a second start costs nothing."""

import hashlib
import json
import os
import re
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext, suppress
from pathlib import Path

from ..errors import UserError
from ..runtime.progress import Meter, meter
from .files import write_atomic
from .paths import cache_folder

HASH_PIECE = 8 << 20
THREADS = 8
LARGE_FILE = 2000  # megabytes from which on it is shown how far it has come
SETTLED = 2_000_000_000  # nanoseconds: a file that was changed since might change again within the clock's step
BLOB = re.compile(r"[0-9a-f]{64}")


def file_hashes(files: Iterable[Path]) -> dict[Path, str]:
    """File -> SHA-256 of its bytes, in hexadecimal; several are read at once.

    A file of the Hub's cache is named by its hash, which is taken as it is.

    Raises:
        UserError: a file that cannot be read, or is being changed.
    """
    files = list(dict.fromkeys(files))
    hashes = {file: known_hash(file) for file in files}
    unread = [file for file, digest in hashes.items() if digest is None]
    total = sum(file.stat().st_size for file in unread if file.exists()) // 10**6
    progress = meter("hashing the weights, MB", total) if total > LARGE_FILE else nullcontext(Meter("", total))
    if unread:
        with progress as done, ThreadPoolExecutor(THREADS) as workers:
            hashes |= zip(unread, workers.map(lambda file: _hash_file(file, done.add), unread), strict=True)
    return {file: str(hashes[file]) for file in files}


def remember(hashes: dict[Path, str]) -> None:
    """Keep hashes of files that were just written, and of which they are known."""
    for file, digest in hashes.items():
        with suppress(OSError):
            _keep(file.resolve(), {"file": str(file.resolve()), "stat": _stat(file.resolve()), "sha256": digest})


def known_hash(file: Path) -> str | None:
    """Hash of a file without reading the file: by its name in the Hub's cache, or as it was kept."""
    real = file.resolve()
    if file.is_symlink() and real.parent.name == "blobs" and BLOB.fullmatch(real.name):
        return real.name
    with suppress(OSError, ValueError, AttributeError):
        record = json.loads(_place(real).read_text(encoding="utf-8"))
        if record.get("stat") == _stat(real) and BLOB.fullmatch(str(record.get("sha256"))):
            return record["sha256"]
    return None


def _hash_file(file: Path, tell: Callable[[int], None]) -> str:
    real = file.resolve()
    digest = hashlib.sha256()
    buffer = bytearray(HASH_PIECE)
    try:
        before = _stat(real)
        since = 0
        with real.open("rb", buffering=0) as stream:
            if hasattr(os, "posix_fadvise"):
                os.posix_fadvise(stream.fileno(), 0, 0, os.POSIX_FADV_SEQUENTIAL)
            while count := stream.readinto(buffer):
                digest.update(memoryview(buffer)[:count])
                since += count
                tell(since // 10**6)
                since %= 10**6
        after = _stat(real)
    except OSError as error:
        raise UserError(
            f"{file} cannot be read ({(error.strerror or 'failed').lower()}): download or save it again"
        ) from error
    if before != after:
        raise UserError(f"{file} was changed while it was read: wait until nothing writes to it")
    if time.time_ns() - max(after["mtime"], after["ctime"]) > SETTLED:
        _keep(real, {"file": str(real), "stat": after, "sha256": digest.hexdigest()})
    return digest.hexdigest()


def _stat(file: Path) -> dict[str, int]:
    status = file.stat()
    return {
        "size": status.st_size,
        "mtime": status.st_mtime_ns,
        "ctime": status.st_ctime_ns,
        "inode": status.st_ino,
        "device": status.st_dev,
    }


def _place(real: Path) -> Path:
    return cache_folder() / "hashes" / f"{hashlib.sha256(str(real).encode()).hexdigest()[:32]}.json"


def _keep(real: Path, content: dict) -> None:
    """Best effort: where the cache cannot be written the file is read again next time."""
    with suppress(OSError, UserError):
        write_atomic(_place(real), json.dumps(content))
