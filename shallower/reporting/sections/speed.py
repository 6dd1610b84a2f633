"""Section on speed and memory, measured."""

from ...artifacts import FailedRow, Speed, Spread, plain
from ...results.summary import Summary, gigabytes
from ...results.timings import setting
from ...runtime.format import short
from ..figures import speedups_figure
from ..page import Box, Cell, Figure, Part, Section, Table, Text, numbered

CAPTION = (
    "Times as fast as the model that it is held against, measured in turns; dashed: as fast. Bytes: the limit of "
    "decoding."
)
HEAD = ("model", "setting", "prefill, ms", "decoding, ms/step", "whole, ms", "tokens/s", "peak memory", "bandwidth")


def section(summary: Summary) -> Section | None:
    """Every measurement: its table, how many times as fast, and what was counted."""
    parts: list[Part | None] = []
    for number, item in enumerate(summary.collection.of("speed"), 1):
        found: Speed = item.record
        about = f"{found.device}, {found.threads} threads, {found.dtype}; protocol {found.protocol}"
        parts += [Text(about, "note"), _measured(found)]
        if found.speedups:
            parts.append(Figure(speedups_figure(numbered("speed", number), found), CAPTION))
        parts.append(_analytic(found))
    return Section("Speed and memory", parts) if parts else None


def _measured(found: Speed) -> Table:
    against = f"{found.against.layers} layers" if found.against else "against"
    names, rows = {"model": f"{found.model.layers} layers", "against": against}, []
    for row in found.rows:
        if isinstance(row, FailedRow):
            cells = [row.error, *["—"] * 5]
        else:
            peak, bound = row.peak_memory_bytes, row.bound
            cells = [*map(_milliseconds, (row.prefill, row.decode, row.latency)), short(row.tokens_per_second)]
            cells += [gigabytes(peak) if peak else "—", f"{bound:.0%}" if bound else "—"]
        rows.append([names[row.of], setting(row), *cells])
    return Table(HEAD, rows, numbers=range(2, 8))


def _milliseconds(spread: Spread) -> Cell:
    return Cell(f"{1e3 * spread.median:.4g}", f"{1e3 * spread.p10:.4g} to {1e3 * spread.p90:.4g}")


def _analytic(found: Speed) -> Box | None:
    sides = {side: plain(found.analytic[side]) for side in ("model", "against") if side in found.analytic}
    keys = list(next(iter(sides.values()), ()))
    rows = [[key.replace("_", " "), *(f"{one[key]:,.0f}" for one in sides.values())] for key in keys]
    bandwidth = f"; measured memory bandwidth {found.bandwidth / 1e9:.1f} GB/s" if found.bandwidth else ""
    inside = Table(["", *sides], rows, numbers=range(1, 1 + len(sides)))
    return Box([inside], "details", f"Counted, not measured{bandwidth}") if rows else None
