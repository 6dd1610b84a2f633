"""A comparison as a table in Markdown, and all the files that ``compare`` writes."""

from typing import Any

from ..artifacts import Comparison, dumps
from .comparing import title
from .pareto import pareto_pictures

MARK = "†"
LEGEND = (
    f"× and +/-: against the base, with 95 % intervals from paired resampling; {MARK} marks those that leave out no effect. "
    "The best of each column is bold."
)
ESCAPED = str.maketrans({sign: f"\\{sign}" for sign in r"\`*_|[]#!~"} | {"\n": " ", "<": "&lt;", ">": "&gt;", "&": "&amp;"})


def count_text(value: int | float, base: int = 1000) -> str:
    """6.74B, 134.5M for counts; 1.20 GiB for bytes with ``base`` 1024."""
    units = ("B", "M", "K") if base == 1000 else (" GiB", " MiB", " KiB")
    for power, unit in zip((3, 2, 1), units, strict=True):
        if value >= base**power:
            return f"{value / base**power:.{2 if power == 3 else 1}f}{unit}"
    return f"{value:.0f}"


def value_text(column: str, value: int | float) -> str:
    """A figure for people, with the digits that its column deserves."""
    if column == "layers":
        return f"{value:.0f}"
    if column == "parameters" or column.endswith("_bytes"):
        return count_text(value, 1000 if column == "parameters" else 1024)
    if column.startswith("task"):
        return f"{value:.4f}"
    if value >= 1e5:
        return f"{value:.3g}"
    return f"{value:.{3 if value < 10 else 2 if value < 100 else 1}f}"


def cell(column: str, figure: dict[str, Any]) -> list[str]:
    """The lines of a cell: value, delta, interval of the delta."""
    sign = _ratio if figure["effect"] == "ratio" else _difference
    mark = MARK if figure["clear"] else ""
    low, high = figure["delta_low"], figure["delta_high"]
    between = [] if low is None else [f"[{sign(low)[1]}, {sign(high)[1]}]{mark}"]
    if column == "perplexity_ratio":
        return [value_text(column, figure["value"]), *between]
    delta = [] if figure["delta"] is None or (column == "layers") else ["".join(sign(figure["delta"]))]
    return [value_text(column, figure["value"]), *delta, *between]


def _ratio(value: float) -> tuple[str, str]:
    return "×", f"{value:.3f}" if value < 10 else f"{value:.1f}" if value < 1e5 else f"{value:.3g}"


def _difference(value: float) -> tuple[str, str]:
    return "", f"{value:+.4f}"


def cells(found: Comparison) -> list[list[tuple[list[str], bool]]]:
    """Per row and column the lines of the cell and whether it is the best."""
    none = (["-"], False)
    return [
        [(cell(name, row["figures"][name]), row["figures"][name]["best"]) if name in row["figures"] else none for name in found.columns]
        for row in found.rows
    ]


def remarks(found: Comparison) -> list[str]:
    """What stands below the table: how models were made, and the notes."""
    return [*(f"{row['name']}: {row['how']}" for row in found.rows if row["how"]), *found.notes]


def markdown(found: Comparison, picture: str | None = None) -> str:
    """The table with its notes.

    Args:
        picture: the file that is shown below it.
    """
    titles = [title(name).translate(ESCAPED) for name in found.columns]
    lines = [["model", *titles], ["---", *["--:"] * len(titles)]]
    for row, line in zip(found.rows, cells(found), strict=True):
        texts = [" ".join([f"**{parts[0]}**" if best else parts[0], *parts[1:]]) for parts, best in line]
        lines.append([row["name"].translate(ESCAPED), *texts])
    table = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    notes = "".join(f"- {note.translate(ESCAPED)}\n" for note in remarks(found))
    shown = f"\n![quality against cost]({picture})\n" if picture else ""
    return f"# Compared with {found.base.translate(ESCAPED)}\n\n{table}\n\n{LEGEND}\n{shown}" + (f"\n{notes}" if notes else "")


def comparison_files(found: Comparison) -> dict[str, bytes]:
    """File name -> content: the record, the table and, where there is quality to be drawn, the pictures."""
    pictures = pareto_pictures(found)
    page = markdown(found, next(iter(pictures), None))
    return {"comparison.json": dumps(found).encode(), "comparison.md": page.encode(), **pictures}
