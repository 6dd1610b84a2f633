"""Timings of a speed record: medians, and the setting of a row as text."""

from typing import Any


def middle(value: Any) -> float | None:
    """The median of a measured figure, which may be a number by itself."""
    found = value.get("median") if isinstance(value, dict) else value
    return float(found) if isinstance(found, int | float) else None


def setting(row: dict[str, Any]) -> str:
    """Batch, prompt and new tokens of a row, for people."""
    return f"batch {row.get('batch')}, prompt {row.get('prompt')}, {row.get('new')} new"
