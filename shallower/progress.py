"""Progress on stderr: a bar on a terminal, a line now and then in a log, nothing for the Python API unless asked."""

import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

T = TypeVar("T")
_shown: ContextVar[bool] = ContextVar("shown", default=False)
LOG_SECONDS = 10.0


@contextmanager
def shown(on: bool = True) -> Iterator[None]:
    """Show the progress of everything that runs inside."""
    token = _shown.set(on)
    try:
        yield
    finally:
        _shown.reset(token)


def say(message: str) -> None:
    """One line to stderr, if progress is shown."""
    if _shown.get():
        print(message, file=sys.stderr, flush=True)


def track(items: Iterable[T], label: str, total: int) -> Iterator[T]:
    """Yield the items while showing how far along they are and how long the rest takes."""
    if not _shown.get():
        yield from items
    elif sys.stderr.isatty():
        yield from _bar(items, label, total)
    else:
        yield from _lines(items, label, total)


def _bar(items, label, total):
    columns = (TextColumn("{task.description:<32}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(elapsed_when_finished=True))
    with Progress(*columns, console=Console(stderr=True), transient=False) as progress:
        yield from progress.track(items, total=total, description=label)


def _lines(items, label, total):
    start = last = time.monotonic()
    for done, item in enumerate(items, 1):
        yield item
        now = time.monotonic()
        if now - last >= LOG_SECONDS or done == total:
            left = (now - start) / done * (total - done)
            ending = f"about {left:.0f} s left" if done < total else f"{now - start:.1f} s"
            print(f"{label}: {done}/{total}, {ending}", file=sys.stderr, flush=True)
            last = now
