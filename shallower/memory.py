"""Seconds and peak memory of a stretch of work: CUDA memory on a GPU, else the process's resident memory."""

import contextlib
import resource
import time
from pathlib import Path

import torch

STATUS, CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


class Peak:
    """``with Peak(device) as peak: …`` then ``peak.seconds`` and ``peak.bytes``."""

    seconds: float = 0.0
    bytes: int = 0

    def __init__(self, device: str = "cpu"):
        self.cuda = device.startswith("cuda")

    def __enter__(self) -> "Peak":
        if self.cuda:
            torch.cuda.synchronize()
            torch.cuda.reset_peak_memory_stats()
        else:
            with contextlib.suppress(OSError):
                CLEAR.write_text("5")  # Linux: start the high-water mark anew
        self.started = time.monotonic()
        return self

    def __exit__(self, *_) -> None:
        if self.cuda:
            torch.cuda.synchronize()
        self.seconds = time.monotonic() - self.started
        self.bytes = torch.cuda.max_memory_allocated() if self.cuda else high_water()


def high_water() -> int:
    """The process's largest resident memory in bytes since the mark was last started anew."""
    with contextlib.suppress(OSError, StopIteration):
        line = next(line for line in STATUS.read_text().splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
