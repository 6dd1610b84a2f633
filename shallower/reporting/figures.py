"""Figures drawn from artifacts: the stack, importance, sweeps, the drift of a repair, tasks and speed."""

import math
from collections.abc import Iterable, Sequence
from itertools import pairwise
from statistics import median
from typing import TypeAlias

from ..artifacts import Compensation, Healing, Scores, Speed, Unit, Units
from ..artifacts.removal import PARTS
from ..results.healing import perplexities
from ..results.timings import setting
from ..runtime.format import Number, short
from .canvas import SERIES, WIDTH, Drawing, Scale, frame

STACK_ROWS = 44  # layers in one column of the stack
ROW = 14.0
LEFT, RIGHT = 42.0, WIDTH - 8
Curve: TypeAlias = tuple[str, list[Number], list[Number]]  # label, x, y


def stack_figure(
    name: str,
    title: str,
    *,
    removed: dict[int, int | None],
    protected: Iterable[int],
    scores: Sequence[Number] | None,
    count: int,
    parts: Sequence[Unit] = (),
) -> Drawing:
    """The stack, layer by layer from the input down, with the scores that decided.

    Args:
        removed: layer -> its place in the order of removal, or None.
        protected: layers that were kept for sure.
        count: the layers of the dense model.
        parts: what layers lose that stay: a hollow half, attention on the left, the MLP on the right.
    """
    columns = -(-count // STACK_ROWS)
    rows = -(-count // columns)
    width = WIDTH / columns
    drawing = Drawing(name, title, 34 + rows * ROW + 26)
    protected = set(protected)
    block = width - 34 if scores is None else 0.36 * (width - 30)
    scale = Scale.over(list(scores or ()), 0, width - 30 - block - (56 if columns == 1 else 12), zero=True)
    for column in range(columns):
        drawing.text(column * width, 12, "layer", colour="soft", size=10.5)
        if scores is not None:
            label = "score" + (", log scale" if scale.log else "")
            drawing.text(column * width + 34 + block, 12, label, colour="soft", size=10.5)
    for index in range(count):
        left = index // rows * width
        y = 22 + index % rows * ROW
        drawing.text(
            left + 22, y + 10, str(index), colour="gone" if index in removed else "soft", anchor="end", size=10.5
        )
        colour = "gone" if index in removed else "pale" if index in protected else "kept"
        state = "removed" if index in removed else "protected" if index in protected else "kept"
        value = f", score {short(scores[index])}" if scores is not None else ""
        hint = f"layer {index}: {state}{value}"
        lost = {unit.part: len(unit.groups) for unit in parts if unit.layer == index}
        if lost:
            _halves(drawing, index, lost, colour, (left + 28, y, block))
        else:
            drawing.box(left + 28, y + 1, block, ROW - 3, colour, hollow=index in removed, hint=hint)
        if removed.get(index) is not None:
            place = ordinal(removed[index] + 1)
            drawing.text(left + 28 + block / 2, y + 10, place, colour="gone", anchor="middle", size=9.5)
        if scores is not None:
            _score_bar(drawing, scale, scores[index], left + 34 + block, y, colour, labelled=columns == 1)
    stripe = ", a stripe: narrower" if any(unit.groups for unit in parts) else ""
    gone_text = f"removed (left half: attention, right half: MLP{stripe})" if parts else "removed, in this order"
    items = [("kept", "kept", False), ("protected", "pale", False), (gone_text, "gone", True)]
    drawing.legend(drawing.height - 8, items if protected else [items[0], items[2]])
    return drawing


def _halves(drawing: Drawing, index: int, lost: dict[str, int], colour: str, place: tuple[float, float, float]) -> None:
    """A layer that stays as its two halves, attention and MLP: hollow where one is gone, a stripe where it is narrower.

    Args:
        lost: part -> how many groups it loses; 0 where the whole part goes.
        place: left and top edge, and width of both.
    """
    left, y, block = place
    for number, name in enumerate(PARTS):
        half, side = left + number * block / 2, block / 2 - 1
        gone, narrower = lost.get(name) == 0, lost.get(name, 0)
        state = f"{narrower:,} group{'s' * (narrower > 1)} removed" if narrower else "removed" if gone else "kept"
        hint = f"layer {index}, {name}: {state}"
        drawing.box(half, y + 1, side, ROW - 3, "gone" if gone else colour, hollow=gone, hint=hint)
        if narrower:
            drawing.box(half, y + ROW - 6, side, 4, "gone", hint=hint)


def _score_bar(
    drawing: Drawing, scale: Scale, value: Number, x: Number, y: Number, colour: str, *, labelled: bool
) -> None:
    zero = 0.0 if scale.log or scale.low > 0 else scale(0.0)
    end = scale(value)
    drawing.box(x + min(zero, end), y + 3, max(abs(end - zero), 1), ROW - 7, colour)
    if labelled:
        drawing.text(x + max(zero, end) + 5, y + 10.5, f"{value:#.3g}".rstrip("."), colour="soft", size=10)


def ordinal(number: int) -> str:
    """1st, 2nd, 3rd, 4th …"""
    ending = "th" if number % 100 in (11, 12, 13) else {1: "st", 2: "nd", 3: "rd"}.get(number % 10, "th")
    return f"{number}{ending}"


def importance_figure(name: str, scores: Scores, removed: Iterable[int]) -> Drawing:
    """One bar per layer; those of removed layers stand out."""
    drawing = Drawing(name, f"Importance of every layer by {scores.criterion}", 210)
    removed, values, names = set(removed), scores.scores, scores.names
    y = Scale.over(values, 172, 30, zero=True)
    x = Scale(-0.5, len(values) - 0.5, LEFT, RIGHT)
    frame(drawing, x, y, x_label=scores.word, y_label=f"{scores.criterion}: low goes first")
    width = min(14.0, 0.74 * (RIGHT - LEFT) / len(values))
    foot = _foot(y)
    for index, value in enumerate(values):
        top = y(value)
        colour = "gone" if index in removed else "kept"
        hint = f"{scores.word} {names[index]}: {short(value)}" + (", removed" if index in removed else "")
        drawing.box(x(index) - width / 2, min(top, foot), width, max(abs(foot - top), 1), colour, hint=hint)
    return drawing


def _foot(y: Scale) -> Number:
    """Where bars begin: at 0, or at the edge of a scale that does not hold it."""
    return y(0.0) if not y.log and y.low <= 0 <= y.high else y.start


def groups_figure(name: str, scores: Scores, removed: Iterable[int]) -> Drawing:
    """The median score of the groups of every attention and MLP, a plot for each kind; of a bar as much is in the
    colour of what is removed as of its groups go.
    """
    removed = set(removed)
    by_part = Units.named(scores.units, scores.model.layer_parameters).by_part
    kinds = [kind for kind in PARTS if any(part.part == kind for part in by_part)]
    drawing = Drawing(name, f"Importance of the groups of every part by {scores.criterion}", 210 * len(kinds))
    x = Scale(-0.5, len(scores.model.layer_parameters) - 0.5, LEFT, RIGHT)
    width = min(14.0, 0.74 * (RIGHT - LEFT) / len(scores.model.layer_parameters))
    for row, kind in enumerate(kinds):
        bars = {part: numbers for part, numbers in by_part.items() if part.part == kind}
        middle = {part: median(scores.scores[number] for number in numbers) for part, numbers in bars.items()}
        y = Scale.over(list(middle.values()), 210 * row + 172, 210 * row + 30, zero=True)
        frame(drawing, x, y, x_label="layer", y_label=f"{kind}: median of {scores.criterion}")
        foot = _foot(y)
        for part, numbers in bars.items():
            top, gone = y(middle[part]), sum(number in removed for number in numbers)
            hint = f"{part}: {short(middle[part])}" + f", {gone:,} of {len(numbers):,} groups removed" * bool(gone)
            height, share = max(abs(foot - top), 1), gone / len(numbers)
            left, upper = x(part.layer) - width / 2, min(top, foot)
            drawing.box(left, upper, width, height, "kept", hint=hint)
            if gone:
                drawing.box(left, upper + height * (1 - share), width, height * share, "gone", hint=hint)
    return drawing


def curves_figure(
    name: str,
    title: str,
    series: list[Curve],
    *,
    x_label: str,
    y_label: str,
    points: Sequence[tuple[str, Number, Number]] = (),
) -> Drawing:
    """Lines over whole numbers: (label, x, y) each; ``points`` are single hollow dots with their label."""
    drawing = Drawing(name, title, 236 + 15 * (len(series) + len(points)))
    y = Scale.over([value for _, _, ys in series for value in ys] + [point[2] for point in points], 182, 30)
    every_x = [value for _, xs, _ in series for value in xs] + [point[1] for point in points]
    x = Scale(min(every_x) - 0.5, max(every_x) + 0.5, LEFT, RIGHT)
    frame(drawing, x, y, x_label=x_label, y_label=y_label)
    _lines(drawing, series, x, y)
    for number, (label, one, other) in enumerate(points):
        colour = SERIES[(len(series) + number) % len(SERIES)]
        drawing.dot(x(one), y(other), colour, hollow=True, size=4.5, hint=f"{label}: {short(other)}")
        _entry(drawing, y.start + 50 + 15 * (len(series) + number), f"{label}: {short(other)}", colour, hollow=True)
    return drawing


def _lines(
    drawing: Drawing, series: list[Curve], x: Scale, y: Scale, *, legend: bool = True, gap: Number = math.inf
) -> None:
    """Lines with dots; they are broken where two places are further apart than ``gap``."""
    for number, (label, xs, ys) in enumerate(series):
        colour = SERIES[number % len(SERIES)]
        points = list(zip(xs, ys, strict=True))
        cuts = [0, *(index for index in range(1, len(xs)) if xs[index] - xs[index - 1] > gap), len(xs)]
        for start, end in pairwise(cuts):
            if end - start > 1:
                path = [(x(one), y(other)) for one, other in points[start:end]]
                drawing.line(path, colour, dashed=number >= len(SERIES))
        for one, other in points:
            drawing.dot(x(one), y(other), colour, size=2.6, hint=f"{label}, {short(one)}: {short(other)}")
        if legend:
            _entry(drawing, y.start + 50 + 15 * number, label, colour, hollow=False)


def runs(numbers: Iterable[int]) -> list[tuple[int, int]]:
    """First and last of every run of neighbours."""
    spans: list[tuple[int, int]] = []
    for number in sorted(numbers):
        if spans and number == spans[-1][1] + 1:
            spans[-1] = (spans[-1][0], number)
        else:
            spans.append((number, number))
    return spans


def _entry(drawing: Drawing, y: Number, label: str, colour: str, *, hollow: bool) -> None:
    if not hollow:
        drawing.line([(LEFT - 8, y - 4), (LEFT + 8, y - 4)], colour)
    drawing.dot(LEFT, y - 4, colour, hollow=hollow, size=4.5 if hollow else 2.6)
    drawing.text(LEFT + 15, y, label if len(label) < 56 else label[:54] + "…", colour="soft")


def drift_figure(compensation: Compensation, name: str = "repair") -> Drawing:
    """Shift and error of the stream behind every retained layer, before and after the repair.

    Removed layers are shaded.
    """
    drawing = Drawing(
        name, f"How far the pruned stream is from the dense one, before and after {compensation.method}", 410
    )
    x = Scale(-0.5, max([item.layer for item in compensation.layers] + compensation.removed) + 0.5, LEFT, RIGHT)
    for key, top in (("shift", 30.0), ("error", 212.0)):
        series = [_drift_curve(compensation, side, key) for side in ("after", "before")]
        y = Scale.over([value for _, _, values in series for value in values], top + 130, top)
        for start, end in runs(compensation.removed):
            drawing.box(x(start - 0.5), y.end, x(end + 0.5) - x(start - 0.5), y.start - y.end, "grid")
        label = {"shift": "distance of the mean streams", "error": "relative error of the stream"}[key]
        last = key == "error"
        frame(drawing, x, y, x_label="layer (shaded: removed)" if last else "", y_label=label)
        _lines(drawing, series, x, y, legend=last, gap=1)
    return drawing


def trained_layers_figure(compensation: Compensation, name: str) -> Drawing:
    """Error behind every locally trained layer: with the dense weights, after the closed form, and after training."""
    every = compensation.trained
    sides = {"trained": "error", "closed form": "error_closed_form", "dense weights": "error_before"}
    series = [
        (label, [one.layer for one in every], [getattr(one, key) for one in every]) for label, key in sides.items()
    ]
    title = "Error behind each layer while it is repaired, on samples that it is not trained on"
    return curves_figure(name, title, series, x_label="layer", y_label="error of the stream")


def local_curves_figure(compensation: Compensation, name: str) -> Drawing:
    """Error of the layers that were trained longest, by step, as a share of the one that their training began with."""
    every = sorted(
        (one for one in compensation.trained if one.curve and one.curve[0][2] > 0), key=lambda one: -one.steps
    )
    shown = sorted(every[: len(SERIES)], key=lambda one: one.layer)
    series = [
        (f"layer {one.layer}", [point[0] for point in one.curve], [point[2] / one.curve[0][2] for point in one.curve])
        for one in shown
    ]
    return curves_figure(name, "Local training of the layers", series, x_label="step", y_label="error, 1 at the start")


def learning_figure(healing: Healing, name: str = "healing") -> Drawing:
    """Training loss, in at most 150 means of neighbouring steps, and the loss on texts that are not trained on, by
    step.
    """
    rows = [row for row in healing.rows if row.loss is not None]
    size = -(-len(rows) // 150)
    parts = [rows[start : start + size] for start in range(0, len(rows), size)]
    means = [sum(row.loss for row in part) / len(part) for part in parts]
    series = [("training", [part[-1].step for part in parts], means)]
    for note, control in (("", False), (", dense", True)):
        for text, values in perplexities(healing, control).items():
            series.append((text + note, [step for step, _ in values], [math.log(value) for _, value in values]))
    title = f"Loss while healing by {healing.method}"
    return curves_figure(name, title, series, x_label="step", y_label="nats per token")


def progress_figure(healings: list[tuple[str, Healing]], text: str, by: str, name: str) -> Drawing:
    """Perplexity of one text while several models heal, ``by`` tokens or seconds."""
    series = []
    for label, healing in healings:
        rows = [row for row in healing.rows if text in (row.eval or {})]
        series.append((label, [getattr(row, by) or 0 for row in rows], [row.eval[text].value for row in rows]))
    return curves_figure(name, f"Perplexity of {text} by {by}", series, x_label=by, y_label="perplexity")


def _drift_curve(compensation: Compensation, side: str, key: str) -> Curve:
    """The layers where the streams differ, for a scale that has no zero."""
    values = [(float(item.layer), getattr(getattr(item, side), key)) for item in compensation.layers]
    points = [(place, value) for place, value in values if value > 0]
    return side, [place for place, _ in points], [value for _, value in points]


def bars_figure(
    name: str, title: str, rows: list[tuple[str, Number, str]], *, y_label: str, base: Number = 0.0
) -> Drawing:
    """Horizontal bars from zero: (label, value, colour); ``base``: a dashed line at a value to hold them against."""
    drawing = Drawing(name, title, 30 + 34 * len(rows))
    reach = max([value for _, value, _ in rows] + [base]) or 1.0
    scale = Scale(0, reach, 0, WIDTH - 66)
    drawing.text(0, 12, y_label, colour="soft")
    for number, (label, value, colour) in enumerate(rows):
        y = 22 + 34 * number
        drawing.text(0, y + 12, label if len(label) < 62 else label[:60] + "…", size=11)
        drawing.box(0, y + 16, max(scale(value), 1), 11, colour, hint=f"{label}: {short(value)}")
        drawing.text(scale(value) + 6, y + 26, short(value), size=11)
        if base:
            drawing.line([(scale(base), y + 14), (scale(base), y + 29)], "ink", width=1.2, dashed=True)
    return drawing


def tasks_figure(name: str, rows: list[tuple[str, list[tuple[str, Number, Number]]]]) -> Drawing:
    """Per task a row per model: (task, [(model, value, standard error)]); the whiskers are 95 % intervals."""
    models = list(dict.fromkeys(model for _, items in rows for model, _, _ in items))
    heights = [16 + 13 * len(items) for _, items in rows]
    drawing = Drawing(name, "Tasks with 95 % intervals", 36 + sum(heights) + 15 * len(models) + 20)
    ends = [value + side * 1.96 * error for _, items in rows for _, value, error in items for side in (-1, 1)]
    x = Scale.over([max(0.0, min(ends)), max(ends)], 110, RIGHT)
    y = 22.0
    bottom = 22 + sum(heights)
    for value in x.ticks():
        drawing.line([(x(value), 16), (x(value), bottom)], "grid", width=1)
        drawing.text(x(value), bottom + 14, short(value), colour="soft", anchor="middle", size=10.5)
    for (task, items), height in zip(rows, heights, strict=True):
        drawing.text(0, y + height / 2, task if len(task) < 18 else task[:16] + "…")
        for number, (model, value, error) in enumerate(items):
            colour = SERIES[models.index(model) % len(SERIES)]
            at = y + 6 + 13 * number
            drawing.line([(x(max(x.low, value - 1.96 * error)), at), (x(value + 1.96 * error), at)], colour, width=1.6)
            drawing.dot(x(value), at, colour, size=3.4, hint=f"{task}, {model}: {short(value)} ± {short(error)}")
        y += height
    for number, model in enumerate(models):
        _entry(drawing, bottom + 34 + 15 * number, model, SERIES[number % len(SERIES)], hollow=False)
    return drawing


PHASES = {
    "prefill": ("prefill", "third"),
    "decode": ("decoding", "kept"),
    "latency": ("whole", "fourth"),
    "ideal": ("bytes", "pale"),
}


def speedups_figure(name: str, speed: Speed) -> Drawing:
    """How many times as fast as the model that it is held against, per setting and phase.

    And what the bytes read would allow.
    """
    groups = [(setting(row), [(key, getattr(row, key)) for key in PHASES]) for row in speed.speedups]
    title = f"Times as fast as the model that it is held against, on {speed.device}"
    drawing = Drawing(name, title, 6 + sum(30 + 16 * len(rows) for _, rows in groups))
    scale = Scale(0, max([value for _, rows in groups for _, value in rows] + [1.0]), 58, WIDTH - 44)
    y = 0.0
    for heading, rows in groups:
        drawing.text(0, y + 14, heading)
        for number, (key, value) in enumerate(rows):
            at = y + 21 + 16 * number
            label, colour = PHASES[key]
            drawing.text(0, at + 9, label, colour="soft", size=10.5)
            hint = f"{heading}, {label}: {value:.3f} times as fast"
            drawing.box(58, at, max(scale(value) - 58, 1), 10, colour, hint=hint)
            drawing.text(scale(value) + 5, at + 9, f"×{value:.2f}", size=10.5)
        drawing.line([(scale(1), y + 19), (scale(1), y + 19 + 16 * len(rows))], "ink", width=1.2, dashed=True)
        y += 30 + 16 * len(rows)
    return drawing
