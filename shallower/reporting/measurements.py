"""Report sections on what was measured: perplexity, tasks, speed and memory, models side by side."""


from ..artifacts import Comparison, FailedRow, Speed, Spread, TaskResult, plain
from ..results.collection import CollectedArtifact
from ..results.comparison import title
from ..results.comparison_text import LEGEND, cells, remarks
from ..results.summary import EvaluationRow, Summary, gigabytes, perplexity_text
from ..results.timings import setting
from ..runtime.format import millions, short
from . import figures
from .canvas import Drawing
from .markup import Markup, section, table, tag, two_lines
from .sections import Page, numbered


def quality_section(page: Page) -> Markup | None:
    """Perplexity: the table, and the curves against layers removed."""
    found, sweeps = page.findings, page.dossier.of("sweep")
    if not found.columns and not sweeps:
        return None
    told = _perplexities(page) if found.columns else None
    if sweeps:
        drawn = [page.figure(*_sweep(page, item, number)) for number, item in enumerate(sweeps, 1)]
    else:
        drawn = [page.figure(*_bars(page, column, number)) for number, column in enumerate(found.columns[:4], 1)]
    above, beside = (told, None) if len(found.columns) > 2 else (None, told)  # a wide table gets the whole width
    return section("Perplexity", above, tag("div", beside, *drawn, class_="pair"))


def _perplexities(page: Page) -> Markup:
    found = page.findings
    measured = [row for row in found.rows if row.evaluation.perplexity]
    head: list[object] = ["model", "parameters"]
    for column in found.columns:
        item = next(item for row in measured if (item := row.at(column)))
        head.append(two_lines(column[0], f"length {item.length}, BOS {item.bos}"))
    rows = [
        [two_lines(row.label, row.detail), _parameters(row), *(_value(found, row, at) for at in found.columns)]
        for row in measured
    ]
    main = [index for index, row in enumerate(measured) if row is found.main_row]
    note = "Below each figure: the ratio to the dense model on the same tokens. Lower is better."
    return tag(
        "div", tag("p", note, class_="note"), table(head, rows, numbers=range(1, 2 + len(found.columns)), main=main)
    )


def _parameters(row: EvaluationRow) -> str:
    model = row.evaluation.model
    return millions(model.parameters - sum(model.layer_parameters[index] for index in row.evaluation.removed))


def _value(found: Summary, row: EvaluationRow, column: tuple[str, str]) -> Markup | str:
    item, ratio = row.at(column), found.ratio(row, column)
    if item is None:
        return "—"
    return two_lines(perplexity_text(item.value), f"×{ratio:.2f}" if ratio and not row.dense else None)


def _bars(page: Page, column: tuple[str, str], number: int) -> tuple[Drawing, str]:
    found = page.findings
    rows = [row for row in found.rows if row.at(column)]
    colours = ["soft" if row.dense else "kept" if row is found.main_row else "gone" for row in rows]
    shown = [
        (f"{row.label} ({row.detail})", row.at(column).value, colour)
        for row, colour in zip(rows, colours, strict=True)
    ]
    caption = f"Perplexity on {column[0]}; dashed: the dense model."
    return figures.bars_figure(
        numbered("perplexity", number),
        caption,
        shown,
        y_label="perplexity, lower is better",
        base=found.base(column) or 0.0,
    ), caption


def _sweep(page: Page, item: CollectedArtifact, number: int) -> tuple[Drawing, str]:
    sweep, found = item.record, page.findings
    texts = list(dict.fromkeys(name for row in sweep.rows for name in row.perplexity))
    series, points = [], []
    for name in texts:
        rows = [row for row in sweep.rows if name in row.perplexity]
        series.append(
            (name, [float(row.removed) for row in rows], [row.perplexity[name].value for row in rows])
        )
        points += [
            (
                f"{row.label}, {row.detail}" + (f", {name}" if len(texts) > 1 else ""),
                float(len(row.removal.removed)),
                same.value,
            )
            for row in found.rows
            if row.removal and (same := row.at((name, rows[0].perplexity[name].hash)))
        ]
    how = sweep.selection + (f", {sweep.criterion}" if sweep.criterion else "")
    caption = f"Perplexity against layers removed ({how})" + ("; circles: written models." if points else ".")
    return figures.curves_figure(
        numbered("sweep", number), caption, series, x_label="layers removed", y_label="perplexity", points=points
    ), caption


def tasks_section(page: Page) -> Markup | None:
    """Tasks with their standard errors."""
    rows = [row for row in page.findings.rows if row.evaluation.tasks]
    names = list(dict.fromkeys(name for row in rows for name in row.evaluation.tasks))
    if not names:
        return None
    known = {name: next(row.evaluation.tasks[name] for row in rows if name in row.evaluation.tasks) for name in names}
    cells = []
    for name, item in known.items():
        what = two_lines(name, f"{item.metric}, {item.count} items")
        cells.append([what, *(_task(row.evaluation.tasks.get(name)) for row in rows)])
    head = ["task", *(two_lines(row.label, row.detail) for row in rows)]
    drawn = [
        (
            name,
            [
                (_of(row), item.value, item.stderr or 0.0)
                for row in rows
                if (item := row.evaluation.tasks.get(name))
            ],
        )
        for name in names
    ]
    note = tag(
        "p", "Higher is better unless the metric says otherwise; ± is the standard error over the items.", class_="note"
    )
    figure = page.figure(figures.tasks_figure("tasks", drawn), "The same with 95 % intervals.")
    told = tag("div", note, table(head, cells, numbers=range(1, 1 + len(rows))))
    above, beside = (told, None) if len(rows) > 3 else (None, told)
    return section("Tasks", above, tag("div", beside, figure, class_="pair"))


def _task(item: TaskResult | None) -> str:
    return "—" if item is None else f"{item.value:.3f} ± {item.stderr or 0:.3f}"


def _of(row: EvaluationRow) -> str:
    return f"{row.label} ({row.detail})"


def speed_section(page: Page) -> Markup | None:
    """Speed and memory, measured."""
    parts = []
    for number, item in enumerate(page.dossier.of("speed"), 1):
        found: Speed = item.record
        about = f"{found.device}, {found.threads} threads, {found.dtype}; protocol {found.protocol}"
        parts += [tag("p", about, class_="note"), _speed_table(found)]
        if found.speedups:
            caption = (
                "Times as fast as the model that it is held against, measured in turns; dashed: as fast. Bytes: "
                "the limit of decoding."
            )
            parts.append(page.figure(figures.speedups_figure(numbered("speed", number), found), caption))
        parts.append(_analytic(found))
    return section("Speed and memory", *parts) if parts else None


def _speed_table(found: Speed) -> Markup:
    names = {
        "model": f"{found.model.layers} layers",
        "against": f"{found.against.layers} layers" if found.against else "against",
    }
    head = ("model", "setting", "prefill, ms", "decoding, ms/step", "whole, ms", "tokens/s", "peak memory", "bandwidth")
    rows = []
    for row in found.rows:
        if isinstance(row, FailedRow):
            rows.append([names[row.of], setting(row), row.error, *["—"] * 5])
            continue
        times = [_milliseconds(spread) for spread in (row.prefill, row.decode, row.latency)]
        peak, bound = row.peak_memory_bytes, row.bound
        shown = [short(row.tokens_per_second), gigabytes(peak) if peak else "—", f"{bound:.0%}" if bound else "—"]
        rows.append([names[row.of], setting(row), *times, *shown])
    return table(head, rows, numbers=range(2, 8))


def _milliseconds(spread: Spread) -> Markup:
    return two_lines(f"{1e3 * spread.median:.4g}", f"{1e3 * spread.p10:.4g} to {1e3 * spread.p90:.4g}")


def _analytic(found: Speed) -> Markup | None:
    sides = {side: plain(found.analytic[side]) for side in ("model", "against") if side in found.analytic}
    keys = list(next(iter(sides.values()), ()))
    rows = [[key.replace("_", " "), *(f"{one[key]:,.0f}" for one in sides.values())] for key in keys]
    if not rows:
        return None
    bandwidth = f"; measured memory bandwidth {found.bandwidth / 1e9:.1f} GB/s" if found.bandwidth else ""
    inside = table(["", *sides], rows, numbers=range(1, 1 + len(sides)))
    return tag("details", tag("summary", f"Counted, not measured{bandwidth}"), inside)


def comparison_section(page: Page) -> Markup | None:
    """Models side by side with intervals."""
    parts: list[object] = []
    for item in page.dossier.of("comparison"):
        found: Comparison = item.record
        rows = [
            [row.name, *(_compared(*cell) for cell in line)]
            for row, line in zip(found.rows, cells(found), strict=True)
        ]
        parts += [tag("p", f"Base: {found.base}. {LEGEND}", class_="note")]
        parts += [table(["model", *map(title, found.columns)], rows, numbers=range(1, 1 + len(found.columns)))]
        parts += [tag("p", line, class_="note") for line in remarks(found)]
    return section("Side by side", *parts) if parts else None


def _compared(lines: list[str], best: bool) -> Markup:
    return two_lines(tag("b", lines[0]) if best else lines[0], " ".join(lines[1:]))
