"""Numbers as text for people: parameter counts, bytes, layer numbers, seconds.

The same in tables, cards and reports.
"""

from collections.abc import Sequence

Number = int | float


def millions(count: int) -> str:
    """A parameter count for people: 6.74B, 134.5M, 345.2K."""
    for size, unit, digits in ((1e9, "B", 2), (1e6, "M", 1), (1e3, "K", 1)):
        if count >= size:
            return f"{count / size:.{digits}f}{unit}"
    return str(count)


def byte_count(count: int | float) -> str:
    """Bytes for people, in powers of ten as file managers and hubs show them: 2.20 GB, 491 MB."""
    for size, unit in ((1e12, "TB"), (1e9, "GB")):
        if count >= size:
            return f"{count / size:.2f} {unit}"
    for size, unit in ((1e6, "MB"), (1e3, "KB")):
        if count >= size:
            value = count / size
            return f"{value:.0f} {unit}" if value >= 99.5 else f"{value:.1f} {unit}"
    return f"{count:.0f} bytes"


def memory_text(count: int | float) -> str:
    """Bytes of memory for people, in powers of two as machines have them: 1.20 GiB, 345.0 MiB."""
    for power, unit in ((3, "GiB"), (2, "MiB"), (1, "KiB")):
        if count >= 1024**power:
            return f"{count / 1024**power:.{2 if power == 3 else 1}f} {unit}"
    return f"{count:.0f}"


def layers(indices: Sequence[int]) -> str:
    """Layer numbers with runs joined: 3, 8-10."""
    parts: list[list[int]] = []
    for index in sorted(indices):
        if parts and index == parts[-1][-1] + 1:
            parts[-1].append(index)
        else:
            parts.append([index])
    return ", ".join(f"{run[0]}-{run[-1]}" if len(run) > 2 else ", ".join(map(str, run)) for run in parts) or "none"


def duration(seconds: int | float) -> str:
    """A time for people: 4.2 s, 73 s, 12 min, 3 h 05 min."""
    if seconds < 120:
        return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"
    if seconds < 5400:
        return f"{seconds / 60:.0f} min"
    return f"{int(seconds // 3600)} h {int(seconds % 3600 // 60):02d} min"


def count_text(count: int, noun: str) -> str:
    """``1 weight``, ``3 weights``."""
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def short(value: Number, digits: int = 4) -> str:
    """A number for people: 0.0012, 3.14, 12.5, 1234, 1.2e+06."""
    if value and (abs(value) >= 1e5 or abs(value) < 1e-3):
        return f"{value:.{min(digits, 3)}g}"
    return f"{value:.{digits}g}" if abs(value) < 10**digits else f"{value:.0f}"
