"""Comparison as text: the cells of its table, its remarks and its legend."""

from ..artifacts import ComparedFigure, Comparison
from ..runtime.format import memory_text, millions

CLEAR_MARK = "†"
LEGEND = (
    f"× and +/-: against the base, with 95 % intervals from paired resampling; {CLEAR_MARK} marks those that leave "
    "out no effect. "
    "The best of each column is bold."
)


def value_text(column: str, value: int | float) -> str:
    """A figure for people, with the digits that its column deserves."""
    if column == "layers":
        return f"{value:.0f}"
    if column == "parameters":
        return millions(int(value))
    if column.endswith("_bytes"):
        return memory_text(value)
    if column.startswith(("task", "agreement")):
        return f"{value:.4f}"
    if value >= 1e5:
        return f"{value:.3g}"
    return f"{value:.{3 if value < 10 else 2 if value < 100 else 1}f}"


def cell(column: str, figure: ComparedFigure) -> list[str]:
    """The lines of a cell: value, delta, interval of the delta."""
    sign = _ratio if figure.effect == "ratio" else _difference
    mark = CLEAR_MARK if figure.clear else ""
    low, high = figure.delta_low, figure.delta_high
    between = [] if low is None else [f"[{sign(low)[1]}, {sign(high)[1]}]{mark}"]
    if column == "perplexity_ratio":
        return [value_text(column, figure.value), *between]
    delta = [] if figure.delta is None or (column == "layers") else ["".join(sign(figure.delta))]
    return [value_text(column, figure.value), *delta, *between]


def _ratio(value: float) -> tuple[str, str]:
    return "×", f"{value:.3f}" if value < 10 else f"{value:.1f}" if value < 1e5 else f"{value:.3g}"


def _difference(value: float) -> tuple[str, str]:
    return "", f"{value:+.4f}"


def cells(comparison: Comparison) -> list[list[tuple[list[str], bool]]]:
    """Per row and column the lines of the cell and whether it is the best."""
    none = (["-"], False)
    return [
        [
            (cell(name, row.figures[name]), row.figures[name].best) if name in row.figures else none
            for name in comparison.columns
        ]
        for row in comparison.rows
    ]


def remarks(comparison: Comparison) -> list[str]:
    """What stands below the table: how models were made, and the notes."""
    return [*(f"{row.name}: {row.how}" for row in comparison.rows if row.how), *comparison.notes]
