"""Section on tasks with their standard errors."""

from ...artifacts import TaskResult
from ...results.summary import Summary
from ..figures import tasks_figure
from ..page import Box, Cell, Figure, Section, Table, Text

NOTE = "Higher is better unless the metric says otherwise; ± is the standard error over the items."


def section(summary: Summary) -> Section | None:
    """Every task a row, every model a column, and the same as a figure."""
    rows = [row for row in summary.rows if row.evaluation.tasks]
    names = list(dict.fromkeys(name for row in rows for name in row.evaluation.tasks))
    if not names:
        return None
    lines = []
    series = []
    for name in names:
        items = [row.evaluation.tasks.get(name) for row in rows]
        first = next(filter(None, items))
        what = Cell(name, f"{first.metric}, {first.count} items")
        lines.append([what, *map(_value, items)])
        values = [
            (f"{row.label} ({row.detail})", item.value, item.stderr or 0.0)
            for row, item in zip(rows, items, strict=True)
            if item
        ]
        series.append((name, values))
    head = ["task", *(Cell(row.label, row.detail) for row in rows)]
    table = Box([Text(NOTE, "note"), Table(head, lines, numbers=range(1, 1 + len(rows)))])
    figure = Figure(tasks_figure("tasks", series), "The same with 95 % intervals.")
    wide = len(rows) > 3  # then the table gets the whole width
    return Section("Tasks", [table, Box([figure], "pair")] if wide else [Box([table, figure], "pair")])


def _value(item: TaskResult | None) -> str:
    return "—" if item is None else f"{item.value:.3f} ± {item.stderr or 0:.3f}"
