"""Calibration record: which tokens were used."""

from collections.abc import Sequence
from dataclasses import field
from typing import Any

from .record import Size, TypedRecord, check, record


@record
class SourceRecord(TypedRecord):
    """Samples that a text gave."""

    name: str
    """Name of the file or the data set, or the kind of shipped prose."""
    samples: Size
    """Samples from it."""


@record
class CalibrationRecord(TypedRecord):
    """Tokens that a stage looked at."""

    source: str
    """Names of all texts, joined by `+`."""
    samples: Size
    """Samples in all."""
    length: Size
    """Tokens per sample, BOS counted."""
    seed: int | None
    """Seed that drew the samples; null for given tokens."""
    bos: str
    """Rule by which a BOS token was put in: `first`, `every`, `none`, or `as given`."""
    hash: str
    """Hash of every token id and of the shape."""
    sources: list[SourceRecord] = field(default_factory=list)
    """Samples by text."""

    @check
    def _check(self) -> "CalibrationRecord":
        if self.sources and sum(one.samples for one in self.sources) != self.samples:
            raise ValueError("the samples of the sources do not add up")
        return self

    @staticmethod
    def of(used: Sequence[tuple[str, int]], samples: int, length: int, **how: Any) -> "CalibrationRecord":
        """The record of samples from (name, how many) sources."""
        sources = [SourceRecord(name, count) for name, count in used]
        return CalibrationRecord(" + ".join(one.name for one in sources), samples, length, sources=sources, **how)
