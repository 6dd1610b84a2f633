"""Progress on stderr: a bar on a terminal, a line now and then in a log, nothing for the Python API unless asked."""

import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, redirect_stdout
from contextvars import ContextVar
from io import TextIOBase
from typing import TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from .memory import in_use

T = TypeVar("T")
_shown: ContextVar[bool] = ContextVar("shown", default=False)
_stdout: ContextVar[TextIOBase | None] = ContextVar("stdout", default=None)
LOG_SECONDS = 10.0


@contextmanager
def shown(on: bool = True) -> Iterator[None]:
    """Show the progress of everything that runs inside."""
    token = _shown.set(on)
    try:
        yield
    finally:
        _shown.reset(token)


@contextmanager
def aside() -> Iterator[None]:
    """What libraries print while inside goes to stderr; only what is written to ``stdout()`` does not."""
    token = _stdout.set(stdout())
    try:
        with redirect_stdout(sys.stderr):
            yield
    finally:
        _stdout.reset(token)


def stdout() -> TextIOBase:
    """Where results go."""
    return _stdout.get() or sys.stdout


def say(message: str) -> None:
    """One line to stderr, if progress is shown."""
    if _shown.get():
        print(message, file=sys.stderr, flush=True)


class Meter:
    """How far along a piece of work is: ``meter.add(units, "layer 3 of 30")``; shows nothing unless progress is shown."""

    def __init__(self, label: str, total: int, done: int = 0):
        self.label, self.total, self.done, self.first = label, total, done, done
        self.start = self.last = time.monotonic()

    def add(self, units: int = 1, note: str = "") -> None:
        self.done += units
        self.show(note)

    def show(self, note: str) -> None:
        """Nothing here."""

    def left(self) -> float:
        """Seconds that the rest will take at the pace so far."""
        made = self.done - self.first
        return (time.monotonic() - self.start) / made * (self.total - self.done) if made else 0.0


class _Lines(Meter):
    def show(self, note: str) -> None:
        now = time.monotonic()
        if now - self.last < LOG_SECONDS and self.done < self.total:
            return
        ending = f"about {self.left():.0f} s left" if self.done < self.total else f"{now - self.start:.1f} s"
        where = f", {note}" if note else ""
        print(f"{self.label}: {self.done}/{self.total}{where}, {ending}, {in_use() / 2**30:.1f} GiB", file=sys.stderr, flush=True)
        self.last = now


class _Bar(Meter):
    def __init__(self, label: str, total: int, done: int, progress: Progress):
        super().__init__(label, total, done)
        self.progress, self.task = progress, progress.add_task(label, total=total, completed=done, note="", memory="")

    def show(self, note: str) -> None:
        self.progress.update(self.task, completed=self.done, note=note, memory=f"{in_use() / 2**30:.1f} GiB")


@contextmanager
def meter(label: str, total: int, done: int = 0) -> Iterator[Meter]:
    """A meter for ``total`` units of work, of which ``done`` were done before."""
    if not _shown.get():
        yield Meter(label, total, done)
    elif not sys.stderr.isatty():
        yield _Lines(label, total, done)
    else:
        columns = (
            TextColumn("{task.description:<24}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(elapsed_when_finished=True),
            TextColumn("{task.fields[memory]} {task.fields[note]}"),
        )
        with Progress(*columns, console=Console(stderr=True)) as progress:
            yield _Bar(label, total, done, progress)


def track(items: Iterable[T], label: str, total: int) -> Iterator[T]:
    """Yield the items while showing how far along they are and how long the rest takes."""
    with meter(label, total) as done:
        for item in items:
            yield item
            done.add()
