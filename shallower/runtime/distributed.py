"""Distributed processes, started by torchrun or srun.

Each takes a part of the samples, and sums are added over all of them.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor

from ..errors import UserError, argument

HOURS = 2  # one process may compute or read that long while the others wait


def rank() -> int:
    """The number of this process, 0 where it is alone."""
    return dist.get_rank() if _is_joined() else 0


def size() -> int:
    """How many processes work together."""
    return dist.get_world_size() if _is_joined() else 1


def _is_joined() -> bool:
    return dist.is_available() and dist.is_initialized()


def launched_processes() -> int:
    """How many processes a launcher such as torchrun has started."""
    count = os.environ.get("WORLD_SIZE", "1")
    return int(count) if count.isdigit() else 1


@contextmanager
def process_group() -> Iterator[None]:
    """Join the other processes where a launcher has started several; each takes its own GPU where there is one."""
    if _is_joined() or launched_processes() < 2:
        yield
        return
    cuda = torch.cuda.is_available()
    if cuda:
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")) % torch.cuda.device_count())
    dist.init_process_group("cpu:gloo,cuda:nccl" if cuda else "gloo", timeout=timedelta(hours=HOURS))
    try:
        yield
    finally:
        dist.destroy_process_group()


def share(samples: Tensor) -> Tensor:
    """This process's part of the samples, a contiguous piece of the first axis.

    Raises:
        UserError: fewer samples than processes.
    """
    if len(samples) < size():
        raise UserError(
            f"{len(samples)} samples cannot be split among {size()} processes: raise {argument('samples')} "
            "or start fewer"
        )
    return samples.tensor_split(size())[rank()]


def all_sum(value: Tensor) -> Tensor:
    """The sum of a tensor over all processes, in place; each must call this with the same shape, in the same order."""
    if size() > 1:
        dist.all_reduce(value)
    return value


def all_gather(value: object) -> list:
    """What every process gives, in the order of their numbers."""
    values = [value] * size()
    if size() > 1:
        dist.all_gather_object(values, value)
    return values
