"""Pareto plot, quality against cost: every model a point, those that no other beats in both joined by a line."""

import contextlib
import io
import warnings
from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import matplotlib
import numpy as np
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.text import Annotation
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter
from matplotlib.transforms import Bbox

from ..artifacts import Comparison
from ..results.comparison import title

POINT, FRONT, BASE, FAINT = "#2b6cb5", "#b5542b", "#222222", "#8a8f98"
COSTS = {"parameters": "parameters", "decode_ms": "measured decode time, ms per token (batch {batch})"}
SIDES = ((1, 0.4), (-1, 0.4), (1, -1), (-1, -1), (0, 1), (0, -1.4))
AROUND = [(reach * x, reach * y) for reach in (7, 14, 24, 38) for x, y in SIDES]  # of a label from its point
LINES = 0.7  # how bad it is to cover a line, against a point or a name
MANY = 8  # models that fit beside their points
LONG = 24  # letters of a name that fits there
WIDE = 8.0  # a larger quotient of the largest and the least value is drawn on a logarithmic axis


class Point(NamedTuple):
    name: str
    x: int | float
    y: int | float
    low: float | None
    high: float | None


def pareto_pictures(comparison: Comparison) -> dict[str, bytes]:
    """pareto.png and pareto.svg; empty where fewer than two models have a figure of quality."""
    with _settings():
        figure, _ = _draw(comparison)
        return {f"pareto.{kind}": _encode(figure, kind) for kind in ("png", "svg")} if figure.axes else {}


def label_boxes(comparison: Comparison) -> list[list[Bbox]]:
    """Where the names stand, per panel, in pixels."""
    with _settings():
        return _draw(comparison)[1]


@contextlib.contextmanager
def _settings() -> Iterator[None]:
    with matplotlib.rc_context({"svg.hashsalt": "shallower"}), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph")  # a name in a script that the font lacks
        yield


def _draw(comparison: Comparison) -> tuple[Figure, list[list[Bbox]]]:
    """A panel for every kind of quality against every cost that two models have, and the places of their labels."""
    pairs = [
        (cost, quality)
        for quality in qualities(comparison)
        for cost in COSTS
        if len(points_of(comparison, cost, quality)) > 1
    ]
    rows = len({quality for _, quality in pairs})
    columns = len({cost for cost, _ in pairs})
    labels = _labels(comparison)
    below = 0.1 * len(labels) if _has_numbers(labels) else 0.0  # the key
    figure = Figure(figsize=(6.4 * max(1, columns), 4.8 * max(1, rows) + below), layout="constrained")
    FigureCanvasAgg(figure)
    panels = [
        _panel(figure.add_subplot(rows, columns, place), comparison, *pair) for place, pair in enumerate(pairs, 1)
    ]
    text = f"square: {_short(comparison.base)}, the base; line: not beaten by any other; grey: 95 % interval"
    figure.suptitle(text, fontsize=9, color=FAINT, parse_math=False)
    _key(figure, labels)
    figure.draw_without_rendering()  # settles where the axes lie, which labels need to know
    return figure, [_label(*panel, labels) for panel in panels]


def qualities(comparison: Comparison) -> list[str]:
    """The columns that stand for quality: the mean perplexity ratio and the mean of tasks, else what there is."""
    means = [name for name in ("perplexity_ratio", "task_mean") if name in comparison.columns]
    kinds = ("bits_per_byte", "perplexity", "task")
    single = [name for kind in kinds for name in comparison.columns if name.partition(" ")[0] == kind]
    if "perplexity_ratio" in means and "task_mean" not in means:
        means += [name for name in single if name.startswith("task ")][:1]
    return means or single[:1]


def points_of(comparison: Comparison, cost: str, quality: str) -> list[Point]:
    figures = [(row.name, row.figures) for row in comparison.rows if cost in row.figures and quality in row.figures]
    return [
        Point(name, own[cost].value, own[quality].value, own[quality].low, own[quality].high) for name, own in figures
    ]


def front(points: Sequence[Point], better: str) -> list[Point]:
    """The points that no other beats in one and equals in the other, by rising cost."""
    sign = 1 if better == "lower" else -1
    best: list[Point] = []
    for point in sorted(points, key=lambda point: (point.x, sign * point.y)):
        if not best or sign * point.y < sign * best[-1].y:
            best.append(point)
    return best


def _panel(axes: Axes, comparison: Comparison, cost: str, quality: str) -> tuple[Axes, list[Point], list[Point]]:
    points = points_of(comparison, cost, quality)
    better = next(row.figures[quality].better for row in comparison.rows if quality in row.figures)
    best = front(points, better)
    axes.plot(
        [point.x for point in best], [point.y for point in best], "-", color=FRONT, linewidth=1.6, alpha=0.7, zorder=1
    )
    for point in points:
        if point.low is not None:
            axes.plot([point.x, point.x], [point.low, point.high], "-", color=FAINT, linewidth=1.2, zorder=2)
        colour = BASE if point.name == comparison.base else FRONT if point in best else POINT
        axes.plot(
            point.x, point.y, "s" if point.name == comparison.base else "o", color=colour, markersize=6.5, zorder=3
        )
    _scales(axes, points, cost)
    axes.set_xlabel(_cost_label(comparison, cost))
    axes.set_ylabel(f"{title(quality)} ({better} is better)", parse_math=False)
    axes.grid(alpha=0.3)
    return axes, points, best


def _scales(axes: Axes, points: Sequence[Point], cost: str) -> None:
    """Logarithmic quality where it spans much; room around the points for their labels."""
    ys = [value for point in points for value in (point.y, point.low, point.high) if value is not None]
    if min(ys) > 0 and max(ys) / min(ys) > WIDE:
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.yaxis.set_minor_formatter(NullFormatter())
    axes.margins(0.2, 0.14)
    if cost == "parameters":
        unit, sign = (1e9, "B") if max(point.x for point in points) >= 1e9 else (1e6, "M")
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value / unit:.4g}{sign}"))


def _cost_label(comparison: Comparison, cost: str) -> str:
    note = next((note for note in comparison.notes if note.startswith("speed: ") and "; batch " in note), "")
    batch = note.partition("; batch ")[2].partition(",")[0]
    return COSTS[cost].format(batch=batch or "?")


def _label(axes: Axes, points: Sequence[Point], best: Sequence[Point], labels: dict[str, str]) -> list[Bbox]:
    """The boxes of the labels beside the points, each where it covers least of points, labels before it and lines."""
    renderer = axes.figure.canvas.get_renderer()
    inside = axes.get_window_extent(renderer).frozen()
    boxes = [_box_around(spot, 6.0) for spot in axes.transData.transform([(point.x, point.y) for point in points])]
    lines = _boxes_along(axes, [(point.x, point.y) for point in best])
    for point in points:
        if point.low is not None:
            lines += _boxes_along(axes, [(point.x, point.low), (point.x, point.high)])
    for point in sorted(points, key=lambda point: point.x):
        text = axes.annotate(
            labels[point.name],
            (point.x, point.y),
            xytext=(0, 0),
            textcoords="offset points",
            fontsize=8.5,
            parse_math=False,
        )
        ways = []
        for place in range(len(AROUND)):
            _place_text(text, place)
            box = text.get_window_extent(renderer).padded(1)
            cost = (
                _overlap(box, boxes)
                + LINES * _overlap(box, lines)
                + 2 * (box.width * box.height - _overlap(box, [inside]))
            )
            ways.append((cost + place, place, box))  # near ones first
        _, place, box = min(ways, key=lambda way: way[:2])
        _place_text(text, place)
        if max(map(abs, AROUND[place])) > 20:
            line = {"arrowstyle": "-", "color": FAINT, "linewidth": 0.6}
            axes.annotate("", (point.x, point.y), xytext=AROUND[place], textcoords="offset points", arrowprops=line)
        boxes.append(box)
    return boxes[len(points) :]


def _place_text(text: Annotation, place: int) -> None:
    x, y = AROUND[place]
    text.set(position=(x, y), horizontalalignment="left" if x > 0 else "right" if x < 0 else "center")


def _box_around(spot: Float[np.ndarray, "2"], half: float) -> Bbox:
    return Bbox.from_bounds(spot[0] - half, spot[1] - half, 2 * half, 2 * half)


def _boxes_along(axes: Axes, corners: Sequence[tuple[int | float, int | float]]) -> list[Bbox]:
    """Small boxes along a line, in pixels."""
    spots = axes.transData.transform(corners)
    boxes = []
    for start, end in pairwise(spots):
        steps = max(2, int(np.hypot(*(end - start)) / 4))
        boxes += [_box_around(start + (end - start) * step / steps, 2.0) for step in range(steps + 1)]
    return boxes


def _overlap(box: Bbox, others: Sequence[Bbox]) -> float:
    """The area that a box shares with others, in pixels."""
    if not others:
        return 0.0
    x0, y0, x1, y1 = np.array([other.extents for other in others]).T
    widths = np.minimum(x1, box.x1) - np.maximum(x0, box.x0)
    heights = np.minimum(y1, box.y1) - np.maximum(y0, box.y0)
    return float((widths.clip(0) * heights.clip(0)).sum())


def _labels(comparison: Comparison) -> dict[str, str]:
    """Name -> what stands beside its point: the name, or its number in the table where names would not fit."""
    names = [row.name for row in comparison.rows]
    fits = len(names) <= MANY and max(map(len, names)) <= LONG
    return {name: name if fits else str(place) for place, name in enumerate(names, 1)}


def _has_numbers(labels: dict[str, str]) -> bool:
    return any(name != label for name, label in labels.items())


def _key(figure: Figure, labels: dict[str, str]) -> None:
    """What the numbers mean, below the panels."""
    if _has_numbers(labels):
        handles = [Line2D([], [], linestyle="none", label=f"{label}  {_short(name)}") for name, label in labels.items()]
        key = figure.legend(
            handles=handles, loc="outside lower center", ncols=2, fontsize=8.5, frameon=False, handlelength=0
        )
        for text in key.get_texts():
            text.set_parse_math(False)


def _short(name: str) -> str:
    return name if len(name) <= 60 else f"{name[:28]}…{name[-31:]}"


def _encode(figure: Figure, kind: str) -> bytes:
    metadata: dict[str, Any] = {"png": {"Software": None}, "svg": {"Date": None, "Creator": None}}[kind]
    buffer = io.BytesIO()
    figure.savefig(buffer, format=kind, dpi=130, metadata=metadata)
    return buffer.getvalue()
