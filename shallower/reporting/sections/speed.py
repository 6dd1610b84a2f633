"""Section on speed and memory, measured."""

from ...artifacts import FailedRow, Speed, Spread, plain
from ...results.summary import Summary, gigabytes
from ...results.timings import setting
from ...runtime.format import short
from ..figures import speedups_figure
from ..page import Block, Box, Cell, Figure, Section, Table, Text, figure_name

CAPTION = (
    "Times as fast as the model that it is held against, measured in turns; dashed: as fast. Bytes: the limit of "
    "decoding."
)
HEAD = ("model", "setting", "prefill, ms", "decoding, ms/step", "whole, ms", "tokens/s", "peak memory", "bandwidth")


def section(summary: Summary) -> Section | None:
    """Every measurement: its table, how many times as fast, and what was counted."""
    parts: list[Block | None] = []
    for number, item in enumerate(summary.collection.of("speed"), 1):
        speed: Speed = item.record
        conditions = f"{speed.device}, {speed.threads} threads, {speed.dtype}; protocol {speed.protocol}"
        parts += [Text(conditions, "note"), _table(speed)]
        if speed.speedups:
            parts.append(Figure(speedups_figure(figure_name("speed", number), speed), CAPTION))
        parts.append(_analytic(speed))
    return Section("Speed and memory", parts) if parts else None


def _table(speed: Speed) -> Table:
    against = f"{speed.against.layers} layers" if speed.against else "against"
    names = {"model": f"{speed.model.layers} layers", "against": against}
    rows = []
    for row in speed.rows:
        if isinstance(row, FailedRow):
            cells = [row.error, *["—"] * 5]
        else:
            peak = row.peak_memory_bytes
            bound = row.bound
            cells = [*map(_milliseconds, (row.prefill, row.decode, row.latency)), short(row.tokens_per_second)]
            cells += [gigabytes(peak) if peak else "—", f"{bound:.0%}" if bound else "—"]
        rows.append([names[row.of], setting(row), *cells])
    return Table(HEAD, rows, numbers=range(2, 8))


def _milliseconds(spread: Spread) -> Cell:
    return Cell(f"{1e3 * spread.median:.4g}", f"{1e3 * spread.p10:.4g} to {1e3 * spread.p90:.4g}")


def _analytic(speed: Speed) -> Box | None:
    sides = {side: plain(speed.analytic[side]) for side in ("model", "against") if side in speed.analytic}
    keys = list(next(iter(sides.values()), ()))
    rows = [[key.replace("_", " "), *(f"{figures[key]:,.0f}" for figures in sides.values())] for key in keys]
    bandwidth = f"; measured memory bandwidth {speed.bandwidth / 1e9:.1f} GB/s" if speed.bandwidth else ""
    table = Table(["", *sides], rows, numbers=range(1, 1 + len(sides)))
    return Box([table], "details", f"Counted, not measured{bandwidth}") if rows else None
