"""Kills: what stands for kill -9 in a process, right after a journal was written."""

import pytest

from shallower import (
    Calibration,
)
from shallower.storage.journal import JournalPart

SHORT = Calibration(samples=6, length=16)


class Killed(BaseException):
    """Stands for kill -9: nothing that catches errors catches it."""


def killed(*given, **options):
    """Stands for anything that is killed."""
    raise Killed


def keep_every_step(monkeypatch) -> None:
    """Let journals be written whenever they can be, not now and then."""
    monkeypatch.setattr("shallower.storage.journal.JOURNAL_SECONDS", 0.0)
    monkeypatch.setattr("shallower.storage.journal.PATIENCE", 0.0)


def killed_after(monkeypatch, count: int, run) -> None:
    """Die right after the journal was written ``count`` times."""
    kept = JournalPart.keep
    calls = []

    def keep(self, step, *what, **how):
        kept(self, step, *what, **how)
        if self.journal.folder is None:  # nothing was written
            return
        calls.append(step)
        if len(calls) == count:
            raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(JournalPart, "keep", keep)
        with pytest.raises(Killed):
            run()
