"""Machine: what computes, and how busy it was with the work of others."""

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from shallower.runtime.provenance import processor

BUSY = 0.2  # cores used by others from which on a piece should be measured again


def machine() -> dict:
    """What computes: the CPU by name, with those of its instruction sets that decide how fast products are."""
    cpu, *sets = processor().split(", ")
    return {"cpu": cpu, "cores": os.cpu_count(), "torch_threads": torch.get_num_threads(), "instruction_sets": sets}


def processor_text(found: dict) -> str:
    """A CPU's name and, where they were noted, its instruction sets, of what ``machine`` found."""
    if "instruction_sets" not in found:
        return found["cpu"]
    return f"{found['cpu']} ({', '.join(found['instruction_sets']) or 'no wide instruction sets'})"


@contextmanager
def others() -> Iterator[dict[str, float]]:
    """How many cores were busy with anything but this process and its children while inside; known at the end."""
    found: dict[str, float] = {}
    wall, cores, own = time.monotonic(), _busy(), sum(os.times()[:4])
    yield found
    wall, cores, own = time.monotonic() - wall, _busy() - cores, sum(os.times()[:4]) - own
    if cores:
        found["cores_used_by_others"] = round(max(0.0, cores - own) / wall, 3)


def _busy() -> float:
    """Seconds that all cores have been busy, the kernel's own work and other guests' included.

    0 where that is not known.
    """
    if not Path("/proc/stat").is_file():
        return 0.0
    user, nice, system, _, _, *rest = map(int, Path("/proc/stat").read_text().split("\n")[0].split()[1:9])
    return (user + nice + system + sum(rest)) / os.sysconf("SC_CLK_TCK")


def least(run: Callable[[], list], repeats: int = 5) -> tuple[float, list]:
    """Seconds of the fastest of several runs, and what the last one gave."""
    took = []
    for _ in range(repeats):
        started = time.perf_counter()
        result = run()
        took.append(time.perf_counter() - started)
    return min(took), result
