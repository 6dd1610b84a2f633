"""Section on models side by side, with intervals."""

from ...artifacts import Comparison
from ...results.comparison import title
from ...results.comparison_text import LEGEND, cells, remarks
from ...results.summary import Summary
from ..page import Block, Cell, Section, Table, Text


def section(summary: Summary) -> Section | None:
    """The table of every comparison between its base and its remarks."""
    parts: list[Block] = []
    for item in summary.collection.of("comparison"):
        comparison: Comparison = item.record
        rows = [
            [row.name, *(Cell(first, " ".join(rest), best) for (first, *rest), best in line)]
            for row, line in zip(comparison.rows, cells(comparison), strict=True)
        ]
        head = ["model", *map(title, comparison.columns)]
        table = Table(head, rows, numbers=range(1, 1 + len(comparison.columns)))
        parts += [Text(f"Base: {comparison.base}. {LEGEND}", "note"), table]
        parts += [Text(line, "note") for line in remarks(comparison)]
    return Section("Side by side", parts) if parts else None
