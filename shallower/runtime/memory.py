"""Peak memory and seconds of a stretch of work: CUDA memory on a GPU, else the process's resident memory."""

import contextlib
import os
import resource
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

STATUS, CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


class Peak:
    """``with Peak(device) as peak: …`` then ``peak.seconds`` and ``peak.bytes``."""

    seconds: float = 0.0
    bytes: int = 0

    def __init__(self, device: str = "cpu"):
        self.device = device
        self.cuda = device.startswith("cuda")

    def __enter__(self) -> "Peak":
        if self.cuda:
            _torch().cuda.synchronize(self.device)
            _torch().cuda.reset_peak_memory_stats(self.device)
        else:
            with contextlib.suppress(OSError):
                CLEAR.write_text("5")  # Linux: start the high-water mark anew
        self.started = time.monotonic()
        return self

    def __exit__(self, *_) -> None:
        if self.cuda:
            _torch().cuda.synchronize(self.device)
        self.seconds = time.monotonic() - self.started
        self.bytes = _torch().cuda.max_memory_allocated(self.device) if self.cuda else high_water()


def _torch() -> ModuleType | None:
    """torch where it is loaded; a command that computes nothing does not wait for it."""
    return sys.modules.get("torch")


def high_water() -> int:
    """The process's largest resident memory in bytes since the mark was last started anew."""
    with contextlib.suppress(OSError, StopIteration):
        line = next(line for line in STATUS.read_text().splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def in_use() -> int:
    """Bytes in use now: of the GPU where it is used, else resident memory of the process."""
    torch = _torch()
    if torch and torch.cuda.is_available() and torch.cuda.memory_allocated():
        return torch.cuda.memory_allocated()
    with contextlib.suppress(OSError, IndexError, ValueError):
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    return high_water()


def total_memory(device: str = "cpu") -> int:
    """Bytes that a process may have in all.

    Of the GPU, or the machine's within the limit of the process's control group.
    """
    if device.startswith("cuda"):
        return _torch().cuda.get_device_properties(device).total_memory
    physical = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return min([physical, *_limits()])


def by_device(sizes: dict[str, int], device: str) -> int:
    """Of sizes by type of device the one for this type; the CPU's for a type that has none."""
    return sizes.get(device, sizes["cpu"])


def _limits() -> Iterator[int]:
    """Memory limits of the control groups (version 1 and 2) that the process is in, and of those above them."""
    with contextlib.suppress(OSError, ValueError):
        for line in Path("/proc/self/cgroup").read_text().splitlines():
            _, controllers, path = line.split(":", 2)
            base, name = {
                "": ("/sys/fs/cgroup", "memory.max"),
                "memory": ("/sys/fs/cgroup/memory", "memory.limit_in_bytes"),
            }.get(controllers, (None, None))
            if base is None:
                continue
            folder = Path(base) / path.lstrip("/")
            for place in (folder, *folder.parents):
                with contextlib.suppress(OSError, ValueError):
                    yield int((place / name).read_text())
                if place == Path(base):
                    break
