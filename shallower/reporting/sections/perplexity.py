"""Section on perplexity: the table, and bars or the curves against layers removed."""

from ...results.collection import CollectedArtifact
from ...results.summary import EvaluationRow, Summary, TextColumn, perplexity_text
from ...runtime.format import millions
from ..figures import bars_figure, curves_figure
from ..page import Box, Cell, Figure, Section, Table, Text, figure_name

NOTE = "Below each figure: the ratio to the dense model on the same tokens. Lower is better."


def section(summary: Summary) -> Section | None:
    """Perplexity of every model on every text, and of every sweep."""
    columns = summary.columns
    sweeps = summary.collection.of("sweep")
    if not columns and not sweeps:
        return None
    table = _perplexities(summary) if columns else None
    if sweeps:
        figures = [_sweep(summary, item, number) for number, item in enumerate(sweeps, 1)]
    else:
        figures = [_bars(summary, column, number) for number, column in enumerate(columns[:4], 1)]
    wide = len(columns) > 2  # then the table gets the whole width
    return Section("Perplexity", [table, Box(figures, "pair")] if wide else [Box([table, *figures], "pair")])


def _perplexities(summary: Summary) -> Box:
    columns = summary.columns
    measured = [row for row in summary.rows if row.evaluation.perplexity]
    head: list[object] = ["model", "parameters"]
    for column in columns:
        item = next(item for row in measured if (item := row.at(column)))
        head.append(Cell(column[0], f"length {item.length}, BOS {item.bos}"))
    rows = [
        [Cell(row.label, row.detail), _parameters(row), *(_value(summary, row, column) for column in columns)]
        for row in measured
    ]
    main = [index for index, row in enumerate(measured) if row is summary.main_row]
    return Box([Text(NOTE, "note"), Table(head, rows, numbers=range(1, 2 + len(columns)), main=main)])


def _parameters(row: EvaluationRow) -> str:
    return millions(row.evaluation.parameters)


def _value(summary: Summary, row: EvaluationRow, column: TextColumn) -> Cell | str:
    item = row.at(column)
    ratio = summary.ratio(row, column)
    if item is None:
        return "—"
    return Cell(perplexity_text(item.value), f"×{ratio:.2f}" if ratio and not row.dense else None)


def _bars(summary: Summary, column: TextColumn, number: int) -> Figure:
    bars = []
    for row in summary.rows:
        if item := row.at(column):
            colour = "soft" if row.dense else "kept" if row is summary.main_row else "gone"
            bars.append((f"{row.label} ({row.detail})", item.value, colour))
    caption = f"Perplexity on {column[0]}; dashed: the dense model."
    base = summary.base(column) or 0.0
    name = figure_name("perplexity", number)
    return Figure(bars_figure(name, caption, bars, y_label="perplexity, lower is better", base=base), caption)


def _sweep(summary: Summary, item: CollectedArtifact, number: int) -> Figure:
    sweep = item.record
    texts = list(dict.fromkeys(name for row in sweep.rows for name in row.perplexity))
    series = []
    points = []
    for text in texts:
        rows = [row for row in sweep.rows if text in row.perplexity]
        values = [row.perplexity[text].value for row in rows]
        series.append((text, [float(row.removed) for row in rows], values))
        column = (text, rows[0].perplexity[text].hash)
        which = f", {text}" if len(texts) > 1 else ""
        points += [
            (f"{row.label}, {row.detail}{which}", float(len(row.pruning.removal)), same.value)
            for row in summary.rows
            if row.pruning and (same := row.at(column))
        ]
    how = sweep.selection + (f", {sweep.criterion}" if sweep.criterion else "")
    caption = f"Perplexity against layers removed ({how})" + ("; circles: written models." if points else ".")
    name = figure_name("sweep", number)
    labels = {"x_label": "layers removed", "y_label": "perplexity"}
    return Figure(curves_figure(name, caption, series, points=points, **labels), caption)
