"""Comparison table in Markdown, and all the files that ``compare`` writes."""

import importlib

from ..artifacts import Comparison, dumps
from ..results.comparison import title
from ..results.comparison_text import LEGEND, cells, remarks
from .marks import can_be_png

ESCAPED = str.maketrans(
    {sign: f"\\{sign}" for sign in r"\`*_|[]#!~"} | {"\n": " ", "<": "&lt;", ">": "&gt;", "&": "&amp;"}
)


def markdown(comparison: Comparison, picture: str | None = None) -> str:
    """The table with its notes.

    Args:
        picture: the file that is shown below it.
    """
    titles = [title(name).translate(ESCAPED) for name in comparison.columns]
    lines = [["model", *titles], ["---", *["--:"] * len(titles)]]
    for row, line in zip(comparison.rows, cells(comparison), strict=True):
        texts = [" ".join([f"**{parts[0]}**" if best else parts[0], *parts[1:]]) for parts, best in line]
        lines.append([row.name.translate(ESCAPED), *texts])
    table = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    notes = "".join(f"- {note.translate(ESCAPED)}\n" for note in remarks(comparison))
    image = f"\n![quality against cost]({picture})\n" if picture else ""
    return f"# Compared with {comparison.base.translate(ESCAPED)}\n\n{table}\n\n{LEGEND}\n{image}" + (
        f"\n{notes}" if notes else ""
    )


def comparison_files(comparison: Comparison) -> dict[str, bytes]:
    """File name -> content: the record, the table and, where there is quality to be drawn, the pictures."""
    pictures = importlib.import_module(f"{__package__}.pareto").pareto_pictures(comparison) if can_be_png() else {}
    page = markdown(comparison, next(iter(pictures), None))
    return {"comparison.json": dumps(comparison).encode(), "comparison.md": page.encode(), **pictures}
