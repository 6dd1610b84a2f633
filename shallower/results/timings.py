"""Timings of a speed record: the setting of a row as text."""

from ..artifacts import FailedRow, SpeedRow, Speedup


def setting(row: SpeedRow | FailedRow | Speedup) -> str:
    """Batch, prompt and new tokens of a row, for people."""
    return f"batch {row.batch}, prompt {row.prompt}, {row.new} new"
