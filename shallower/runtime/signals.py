"""Signals that ask to stop: Ctrl-C and SIGTERM, taken where the work can be kept, and told in one line."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from ..errors import Stopped

_signals: list[int] = []  # signals that came while the work was to end in its own time


@contextmanager
def patient() -> Iterator[None]:
    """While inside, the first signal is only noted, for work that asks ``stop_asked``; the second one stops at once."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def note(number: int, frame: FrameType | None) -> None:
        if _signals:
            raise Stopped(number)
        _signals.append(number)

    before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        _signals.clear()


def stop_asked() -> int:
    """The signal that has asked for an end, or 0."""
    return _signals[0] if _signals else 0


@contextmanager
def terminable() -> Iterator[None]:
    """While inside, SIGTERM (a scheduler that wants the machine back) raises like Ctrl-C, so that all is left tidy."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(number: int, frame: FrameType | None) -> None:
        raise Stopped(number)

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
