"""Raster pictures: a drawing as PNG, by matplotlib."""

import io
import warnings
from collections.abc import Iterable

from matplotlib.artist import Artist
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import FancyBboxPatch
from matplotlib.text import Text

from .marks import Mark

DPI = 216


def png(marks: Iterable[Mark], sheet: tuple[float, float, float, float], paper: str, metadata: dict[str, str]) -> bytes:
    """Marks on a sheet as PNG.

    Args:
        sheet: x, y, width and height, y growing downwards.
    """
    x, y, width, height = sheet
    figure = Figure(figsize=(width / 72, height / 72), dpi=DPI, facecolor=paper)
    FigureCanvasAgg(figure)
    axes = figure.add_axes((0, 0, 1, 1), xlim=(x, x + width), ylim=(y + height, y))
    axes.set_axis_off()
    for mark in marks:
        axes.add_artist(_artist(mark))
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph")  # a name in a script that the font has not
        figure.savefig(buffer, format="png", metadata=metadata)
    return buffer.getvalue()


def _artist(mark: Mark) -> Artist:
    kinds = {"box": FancyBboxPatch, "line": Line2D, "text": Text}
    return kinds[mark.kind](*mark.places, **mark.look)
