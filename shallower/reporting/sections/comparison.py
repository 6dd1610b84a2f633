"""Section on models side by side, with intervals."""

from ...artifacts import Comparison
from ...results.comparison import title
from ...results.comparison_text import LEGEND, cells, remarks
from ...results.summary import Summary
from ..page import Cell, Part, Section, Text, table


def section(summary: Summary) -> Section | None:
    """The table of every comparison between its base and its remarks."""
    parts: list[Part] = []
    for item in summary.dossier.of("comparison"):
        found: Comparison = item.record
        rows = [
            [row["name"], *(Cell(first, " ".join(rest), best) for (first, *rest), best in line)]
            for row, line in zip(found.rows, cells(found), strict=True)
        ]
        shown = table(["model", *map(title, found.columns)], rows, numbers=range(1, 1 + len(found.columns)))
        notes = [Text(line, "note") for line in (f"Base: {found.base}. {LEGEND}", *remarks(found))]
        parts += [notes[0], shown, *notes[1:]]
    return Section("Side by side", parts) if parts else None
