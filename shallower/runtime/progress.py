"""Progress on stderr: a bar on a terminal, a line now and then in a log, nothing for the Python API unless asked."""

import importlib
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, redirect_stdout
from contextvars import ContextVar
from dataclasses import dataclass, field
from io import TextIOBase
from typing import Any, TypeVar

from .format import duration
from .memory import in_use

T = TypeVar("T")
_shown: ContextVar[bool] = ContextVar("shown", default=False)
_span: ContextVar["_Span | None"] = ContextVar("span", default=None)
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
def stdout_to_stderr() -> Iterator[None]:
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


@dataclass
class _Clock:
    """Of one command.

    When it began, how far it is (0 to 1), and how much of that took no time because it had been done before.
    """

    started: float = field(default_factory=lambda: time.monotonic())
    at: float = 0.0
    skipped: float = 0.0

    def seconds_left(self) -> float:
        """Seconds that the rest will take at the pace so far."""
        advance = self.at - self.skipped
        return (time.monotonic() - self.started) / advance * (1 - self.at) if advance > 0 else 0.0


@dataclass
class _Span:
    """The stretch of a command that runs now: from where to where (0 to 1), and how it is called."""

    clock: _Clock
    low: float
    high: float
    name: str
    measured: bool = False  # whether something inside has shown how far it is


@contextmanager
def parts(costs: Mapping[str, int | float]) -> Iterator[Callable[[str], AbstractContextManager[None]]]:
    """The parts of a piece of work in order, with about what each costs, so that all of it has one estimate of the
    time left.

    ``with parts({"scoring": 3, "writing": 1}) as part: with part("scoring"): …``. Inside a part, parts divide it
    further. Parts that are not entered are passed over.
    """
    outer = _span.get()
    clock, low, high = (outer.clock, outer.low, outer.high) if outer else (_Clock(), 0.0, 1.0)
    whole = sum(costs.values()) or 1.0
    names = list(costs)

    @contextmanager
    def part(name: str) -> Iterator[None]:
        place = names.index(name)
        begin = low + (high - low) * sum(costs[one] for one in names[:place]) / whole
        end = begin + (high - low) * costs[name] / whole
        clock.skipped += max(0.0, begin - clock.at)  # parts that were not entered
        clock.at = max(clock.at, begin)
        full_name = f"{outer.name}, {name}" if outer else f"{place + 1} of {len(names)}, {name}"
        span = _Span(clock, begin, end, full_name)
        token = _span.set(span)
        try:
            yield
        finally:
            _span.reset(token)
            if not span.measured:
                clock.skipped += max(0.0, end - clock.at)
            elif outer:
                outer.measured = True
            clock.at = max(clock.at, end)

    yield part


class Meter:
    """How far along a piece of work is: ``meter.add(units, "layer 3 of 30")``.

    Shows nothing unless progress is shown.
    """

    def __init__(self, label: str, total: int, done: int = 0):
        self.label = label
        self.total = total
        self.done = done
        self.first = done
        self.start = self.last = time.monotonic()

    def add(self, units: int = 1, note: str = "") -> None:
        self.done += units
        self.show(note)

    def show(self, note: str) -> None:
        """Nothing here."""

    def seconds_left(self) -> float:
        """Seconds that the rest will take at the pace so far."""
        units = self.done - self.first
        return (time.monotonic() - self.start) / units * (self.total - self.done) if units else 0.0

    @property
    def share(self) -> float:
        """Of the work, how much is done."""
        return self.done / self.total if self.total else 1.0


class _Shown(Meter):
    """A meter that moves the clock of the command that it is a part of, if there is one."""

    def __init__(self, label: str, total: int, done: int):
        super().__init__(label, total, done)
        self.span = _span.get()
        if self.span is not None:
            self.span.measured = True
            self.span.clock.skipped += max(0.0, self._position() - self.span.clock.at)
            self.span.clock.at = max(self.span.clock.at, self._position())
            self.label = f"{self.span.name}: {label}"

    def _position(self) -> float:
        return self.span.low + (self.span.high - self.span.low) * self.share

    def add(self, units: int = 1, note: str = "") -> None:
        self.done += units
        if self.span is not None:
            self.span.clock.at = max(self.span.clock.at, self._position())
        self.show(note)

    def seconds_left(self) -> float:
        return self.span.clock.seconds_left() if self.span is not None else super().seconds_left()


class _Lines(_Shown):
    def show(self, note: str) -> None:
        now = time.monotonic()
        if now - self.last < LOG_SECONDS and (self.done < self.total or self.span is not None):
            return
        over = self.done >= self.total and self.span is None
        ending = f"{now - self.start:.1f} s" if over else f"about {duration(self.seconds_left())} left"
        where = f", {note}" if note else ""
        print(
            f"{self.label}: {self.share:.0%}{where}, {ending}, {in_use() / 2**30:.1f} GiB", file=sys.stderr, flush=True
        )
        self.last = now


class _Bar(_Shown):
    def __init__(self, label: str, total: int, done: int, progress: Any):
        super().__init__(label, total, done)
        self.progress = progress
        self.task = progress.add_task(self.label, total=total, completed=done, note="", memory="", left="")

    def show(self, note: str) -> None:
        remaining = f"about {duration(self.seconds_left())} left" if self.done > self.first else ""
        self.progress.update(
            self.task, completed=self.done, note=note, memory=f"{in_use() / 2**30:.1f} GiB", left=remaining
        )


@contextmanager
def meter(label: str, total: int, done: int = 0) -> Iterator[Meter]:
    """A meter for ``total`` units of work, of which ``done`` were done before."""
    if not _shown.get():
        yield Meter(label, total, done)
    elif not sys.stderr.isatty():
        yield _Lines(label, total, done)
    else:
        rich = importlib.import_module("rich.progress")  # here, because a start must not wait for it
        columns = (
            rich.TextColumn("{task.description:<24}", markup=False),
            rich.BarColumn(),
            rich.TaskProgressColumn(),
            rich.TextColumn("{task.fields[left]}"),
            rich.TextColumn("{task.fields[memory]} {task.fields[note]}", markup=False),
        )
        console = importlib.import_module("rich.console").Console(stderr=True)
        with rich.Progress(*columns, console=console, transient=_span.get() is not None) as progress:
            yield _Bar(label, total, done, progress)


def track(items: Iterable[T], label: str, total: int) -> Iterator[T]:
    """Yield the items while showing how far along they are and how long the rest takes."""
    with meter(label, total) as done:
        for item in items:
            yield item
            done.add()
