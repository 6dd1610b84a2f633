"""Run a command in a control group with a memory limit (Linux, version 1 or 2), where one can be made."""

import contextlib
import os
import resource
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

FILES = {  # version -> mount, limit, limit with swap, peak, counts of kills
    1: (
        "/sys/fs/cgroup/memory",
        "memory.limit_in_bytes",
        "memory.memsw.limit_in_bytes",
        "memory.max_usage_in_bytes",
        "memory.oom_control",
    ),
    2: ("/sys/fs/cgroup", "memory.max", "memory.swap.max", "memory.peak", "memory.events"),
}


class NoGroupError(Exception):
    """No control group can be made here; the text says why."""


@dataclass(frozen=True)
class Group:
    """A control group that is there for one command."""

    folder: Path
    version: int

    def read(self, place: int, key: str = "") -> int | None:
        """A number of one of its files, by place in FILES."""
        with contextlib.suppress(OSError, ValueError):
            text = (self.folder / FILES[self.version][place]).read_text()
            return int(dict(line.split() for line in text.splitlines())[key] if key else text)
        return None


def parents(given: Path | None) -> Iterator[tuple[int, Path]]:
    """Version and folder of groups in which one might be made: as given, or this process's own, so that its limits go
    on to hold.
    """
    for line in Path("/proc/self/cgroup").read_text().splitlines() if Path("/proc/self/cgroup").is_file() else ():
        _, controllers, path = line.split(":", 2)
        version = 2 if not controllers else 1 if "memory" in controllers.split(",") else 0
        if version:
            mount = Path(FILES[version][0])
            own = mount / path.lstrip("/")
            yield version, given or (own if own.is_dir() else mount)


@contextlib.contextmanager
def group(limit: int, given: Path | None = None) -> Iterator[Group]:
    """A new group with this many bytes, swap included where that can be said; removed at the end.

    Raises:
        NoGroupError: none can be made.
    """
    reasons = []
    for version, parent in sorted(parents(given)):
        made = Group(parent / f"shallower-bench-{os.getpid()}", version)
        try:
            made.folder.mkdir()
            (made.folder / FILES[version][1]).write_text(str(limit))
        except OSError as error:
            reasons.append(f"version {version}: {error.strerror.lower()}")
            with contextlib.suppress(OSError):
                made.folder.rmdir()
            continue
        with contextlib.suppress(OSError):
            (made.folder / FILES[version][2]).write_text(str(limit if version == 1 else 0))
        try:
            yield made
        finally:
            _removed(made.folder)
        return
    raise NoGroupError(
        "no control group with a memory limit can be made (" + ("; ".join(reasons) or "none is mounted") + ")"
    )


def _removed(folder: Path) -> None:
    for _ in range(50):  # busy until the last process in it is gone altogether
        with contextlib.suppress(OSError):
            folder.rmdir()
            return
        time.sleep(0.2)


def run_limited(
    command: list[str], limit: int, log: Path, *, timeout: float | None = None, given: Path | None = None, **options
) -> dict:
    """Run a command within the limit, its output in ``log``: how it ended, wall seconds and peaks in bytes.

    The group's peak counts the file cache too; the largest resident memory is that of one process.
    """
    with group(limit, given) as made, log.open("wb") as output:
        enter = ["sh", "-c", 'echo 0 > "$0" && exec "$@"', str(made.folder / "cgroup.procs")]
        started = time.monotonic()
        try:
            code = subprocess.run(
                [*enter, *command], stdout=output, stderr=output, timeout=timeout, **options
            ).returncode
            ended = "finished" if code == 0 else f"killed by signal {-code}" if code < 0 else f"exit status {code}"
        except subprocess.TimeoutExpired:
            ended = f"stopped after {timeout:.0f} s"
        return {
            "ended": ended,
            "wall_seconds": time.monotonic() - started,
            "limit_bytes": limit,
            "group_version": made.version,
            "group_peak_bytes": made.read(3),
            "kills_for_memory": made.read(4, "oom_kill"),
            "largest_resident_bytes": resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024,
        }
