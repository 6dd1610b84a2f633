"""Section on speed and memory, measured."""

from typing import Any

from ...artifacts import Speed
from ...results.summary import Summary, gigabytes
from ...results.timings import middle, setting
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
    for number, item in enumerate(summary.dossier.of("speed"), 1):
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
        if row.get("error"):
            cells = [row["error"], *["—"] * 5]
        else:
            times = [_milliseconds(row.get(phase)) for phase in ("prefill", "decode", "latency")]
            rate, peak, bound = (middle(row.get(key)) for key in ("tokens_per_second", "peak_memory_bytes", "bound"))
            shown = [short(rate) if rate else "—", gigabytes(peak) if peak else "—", f"{bound:.0%}" if bound else "—"]
            cells = times + shown
        rows.append([names.get(row.get("of"), str(row.get("of"))), setting(row), *cells])
    return Table(HEAD, rows, numbers=range(2, 8))


def _milliseconds(value: Any) -> Cell | str:
    found = middle(value)
    if found is None:
        return "—"
    spread = None
    if isinstance(value, dict) and {"p10", "p90"} <= set(value):
        spread = f"{1e3 * value['p10']:.4g} to {1e3 * value['p90']:.4g}"
    return Cell(f"{1e3 * found:.4g}", spread)


def _analytic(found: Speed) -> Box | None:
    sides = [side for side in ("model", "against") if found.analytic.get(side)]
    keys = list(dict.fromkeys(key for side in sides for key in found.analytic[side]))
    rows = [[key.replace("_", " "), *(f"{found.analytic[side].get(key, 0):,.0f}" for side in sides)] for key in keys]
    bandwidth = f"; measured memory bandwidth {found.bandwidth / 1e9:.1f} GB/s" if found.bandwidth else ""
    inside = Table(["", *sides], rows, numbers=range(1, 1 + len(sides)))
    return Box([inside], "details", f"Counted, not measured{bandwidth}") if rows else None
