"""Calibration record: which tokens were used."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class SourceRecord:
    """How many samples a text gave."""

    name: str
    samples: int


@dataclass(frozen=True)
class CalibrationRecord:
    """Which tokens were used.

    ``hash`` covers every token id and the shape, ``sources`` says how many samples each text gave.
    """

    source: str
    samples: int
    length: int
    seed: int | None
    bos: str
    hash: str
    sources: list[SourceRecord] = field(default_factory=list)

    @staticmethod
    def of(used: Sequence[tuple[str, int]], samples: int, length: int, **how: Any) -> "CalibrationRecord":
        """The record of samples from (name, how many) sources."""
        sources = [SourceRecord(name, count) for name, count in used]
        return CalibrationRecord(" + ".join(one.name for one in sources), samples, length, sources=sources, **how)
