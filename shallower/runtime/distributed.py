"""Distributed processes, started by torchrun or srun.

Each takes a part of the samples, and sums are added over all of them.
"""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import timedelta
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from ..errors import DiskError, ProcessLostError, UserError, argument

T = TypeVar("T")
HOURS = 2  # one process may compute or read that long while the others wait
FAILED, FOR_GOOD = "shallower/failed", "shallower/failed for good"  # counts at the store that all processes share
# errors after which the same command may succeed later
PASSING = (DiskError, ProcessLostError, OSError, MemoryError, torch.OutOfMemoryError)
LOST = "another process has ended: what it says, or who has killed it, tells why"
_alone: ContextVar[bool] = ContextVar("alone", default=False)


def rank() -> int:
    """The number of this process, 0 where it is alone."""
    return dist.get_rank() if _is_joined() else 0


def size() -> int:
    """How many processes work together."""
    return dist.get_world_size() if _is_joined() else 1


def _is_joined() -> bool:
    return not _alone.get() and dist.is_available() and dist.is_initialized()


def launched_processes() -> int:
    """How many processes a launcher such as torchrun has started."""
    count = os.environ.get("WORLD_SIZE", "1")
    return int(count) if count.isdigit() else 1


@contextmanager
def process_group() -> Iterator[None]:
    """Join the other processes where a launcher has started several; each takes its own GPU where there is one.

    Of errors that end several processes, all but the first to come are marked as told.
    """
    if _is_joined() or launched_processes() < 2:
        yield
        return
    cuda = torch.cuda.is_available()
    if cuda:
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")) % torch.cuda.device_count())
    dist.init_process_group("cpu:gloo,cuda:nccl" if cuda else "gloo", timeout=timedelta(hours=HOURS))
    try:
        yield
    except Exception as error:
        told = _count(FAILED) > 1
        if not isinstance(error, PASSING):
            _count(FOR_GOOD)
        if told and not isinstance(error, UserError):  # such as what a library says of a lost connection
            error = ProcessLostError(LOST)
        if isinstance(error, UserError):
            error.told = told
        raise error
    finally:
        dist.destroy_process_group()


def _count(name: str, more: int = 1) -> int:
    """Add to a count at the store, and read it; where the store has gone with its process, that one has told."""
    try:
        return dist.distributed_c10d._get_default_store().add(name, more)
    except RuntimeError:
        return 2


@contextmanager
def _together() -> Iterator[None]:
    """What fails inside because another process has ended says so.

    Raises:
        ProcessLostError: it was killed, or may succeed later.
        UserError: what it has told would come again.
    """
    try:
        yield
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:
        lost = UserError if _count(FOR_GOOD, 0) else ProcessLostError
        raise lost(LOST) from error


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
        with _together():
            dist.all_reduce(value)
    return value


def all_gather(value: object) -> list:
    """What every process gives, in the order of their numbers."""
    values = [value] * size()
    if size() > 1:
        with _together():
            dist.all_gather_object(values, value)
    return values


def of_first(value: T) -> T:
    """What the first process gives, for all: a clock, say, by which all decide alike."""
    return all_gather(value if rank() == 0 else None)[0]


def from_first(value: Tensor) -> Tensor:
    """The first process's tensor in all of them; the others give one of its shape and type, which stays as it is."""
    if size() > 1:
        value = value.contiguous() if rank() == 0 else torch.empty(value.shape, dtype=value.dtype, device=value.device)
        with _together():
            dist.broadcast(value, 0)
    return value


def by_first(work: Callable[[], T]) -> T:
    """What the first process makes while the others wait, for all of them; it is alone meanwhile.

    It begins when all have come so far: what they have checked before is not changed under them.

    Raises:
        UserError: in all of them, where it does in the first.
    """
    all_gather(None)
    made, error = None, None
    if rank() == 0:
        token = _alone.set(True)
        try:
            made = work()
        except UserError as failed:
            error = failed
        finally:
            _alone.reset(token)
    made, kind, text = of_first((made, type(error), str(error)))
    if issubclass(kind, UserError):
        raise error or kind(text)
    return made
