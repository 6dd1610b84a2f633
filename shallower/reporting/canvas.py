"""Canvas for drawings of boxes, lines, dots and text on a sheet, written as SVG (light and dark by CSS) and as PNG
(light).
"""

import html
import importlib
import math
import textwrap
from dataclasses import dataclass, field
from pathlib import Path

from ..runtime.format import Number, short
from .marks import Mark, can_be_png

WIDTH = 400.0  # of every sheet: on a phone one unit is about one pixel
SIZE = 11.5  # of text
MARGIN = 14.0  # around a drawing that is a file
LETTERS = 60  # of a line of its title
MAKER = "shallower"  # in the metadata of a PNG
FAR = 12  # a ratio of values from which a scale is logarithmic
PALETTE = {  # on light paper, on dark paper; blue against orange is told apart by nearly everybody
    "paper": ("#ffffff", "#14181e"),
    "ink": ("#18202b", "#e9edf2"),
    "soft": ("#586474", "#a4afbd"),
    "grid": ("#dce1e8", "#343d49"),
    "kept": ("#0b6bb0", "#5db4f0"),
    "pale": ("#a9cbe6", "#2c5f88"),
    "gone": ("#c85200", "#ff9d52"),
    "third": ("#11785a", "#42cf9f"),
    "fourth": ("#8a4a9e", "#d79be6"),
}
SERIES = ("kept", "gone", "third", "fourth", "soft")
LETTERING = {"verticalalignment": "baseline", "parse_math": False}
ANCHORS = {"start": "left", "middle": "center", "end": "right"}


def palette_css() -> str:
    """The colours as custom properties, for light and dark, and as classes: ``f-NAME`` fills, ``s-NAME`` draws."""
    sides = [";".join(f"--{name}:{pair[side]}" for name, pair in PALETTE.items()) for side in (0, 1)]
    dark = f"@media screen and (prefers-color-scheme:dark){{:root{{{sides[1]}}}}}"
    classes = "".join(f".f-{name}{{fill:var(--{name})}}.s-{name}{{stroke:var(--{name});fill:none}}" for name in PALETTE)
    return f":root{{{sides[0]}}}{dark}{classes}"


def is_figure(path: Path) -> bool:
    """Whether a file is a drawing of ours.

    An SVG with our colours, or a PNG that says so or lies beside such an SVG.
    """
    if path.is_symlink() or not path.is_file() or path.suffix not in (".svg", ".png"):
        return False
    with path.open("rb") as file:
        start = file.read(4096)
    if path.suffix == ".svg":
        return start.startswith(b"<svg ") and palette_css()[:60].encode() in start
    return start.startswith(b"\x89PNG") and (
        f"Software\0{MAKER}".encode() in start or is_figure(path.with_suffix(".svg"))
    )


@dataclass
class Drawing:
    """A sheet WIDTH wide; y grows downwards. ``name`` is the file's, ``title`` is read out."""

    name: str
    title: str
    height: Number
    _svg: list[str] = field(default_factory=list)
    _marks: list[Mark] = field(default_factory=list)

    def box(
        self, x: Number, y: Number, width: Number, height: Number, colour: str, *, hollow: bool = False, hint: str = ""
    ) -> None:
        """A box with slightly rounded corners; a hollow one is dashed; ``hint`` appears when it is pointed at."""
        radius = round(min(2.0, width / 3, height / 3), 2)
        how = f's-{colour}" stroke-dasharray="3 2' if hollow else f"f-{colour}"
        shape = f'x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" height="{height:.1f}" rx="{radius}"'
        self._svg.append(f'<rect {shape} class="{how}">{_hint(hint)}</rect>')
        ink = PALETTE[colour][0]
        look = (
            {"facecolor": "none", "edgecolor": ink, "linestyle": (0, (3, 2)), "linewidth": 1}
            if hollow
            else {"color": ink, "linewidth": 0}
        )
        look["boxstyle"] = f"round,pad=0,rounding_size={radius}"
        self._marks.append(Mark("box", ((x, y), width, height), look))

    def line(
        self, points: list[tuple[Number, Number]], colour: str, *, width: Number = 2.0, dashed: bool = False
    ) -> None:
        """A line through the points."""
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
        dashes = ' stroke-dasharray="4 3"' if dashed else ""
        self._svg.append(f'<polyline points="{path}" class="s-{colour}" stroke-width="{width:g}"{dashes}/>')
        look = {"color": PALETTE[colour][0], "linewidth": width, "linestyle": (0, (2, 1.5)) if dashed else "-"}
        self._marks.append(Mark("line", tuple(zip(*points, strict=True)), look))

    def dot(
        self, x: Number, y: Number, colour: str, *, hollow: bool = False, size: Number = 3.0, hint: str = ""
    ) -> None:
        """A dot; a hollow one has the colour of the paper inside."""
        how = f'f-paper" style="stroke:var(--{colour});stroke-width:1.6' if hollow else f"f-{colour}"
        self._svg.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{size:g}" class="{how}">{_hint(hint)}</circle>')
        ink = PALETTE[colour][0]
        look = {
            "markerfacecolor": PALETTE["paper"][0] if hollow else ink,
            "markeredgecolor": ink,
            "markeredgewidth": 1.6 if hollow else 0,
        }
        self._marks.append(Mark("line", ([x], [y]), look | {"marker": "o", "markersize": 2 * size}))

    def text(
        self, x: Number, y: Number, content: str, *, colour: str = "ink", size: Number = SIZE, anchor: str = "start"
    ) -> None:
        """Text on a base line that starts, ends or has its middle at x."""
        self._svg.append(
            f'<text x="{x:.1f}" y="{y:.1f}" class="f-{colour}" font-size="{size:g}" '
            f'text-anchor="{anchor}">{html.escape(content)}</text>'
        )
        look = {
            "color": PALETTE[colour][0],
            "fontsize": 0.93 * size,
            "horizontalalignment": ANCHORS[anchor],
        }  # its letters are wider
        self._marks.append(Mark("text", (x, y, content), LETTERING | look))

    def legend(self, y: Number, items: list[tuple[str, str, bool]], x: Number = 0.0) -> None:
        """Squares with names, in one row: (name, colour, hollow)."""
        for name, colour, hollow in items:
            self.box(x + 0.5, y - 8.5, 9, 9, colour, hollow=hollow)
            self.text(x + 14, y, name, colour="soft")
            x += 26 + 6.2 * len(name)

    def svg(self) -> str:
        """The drawing as SVG, for a page that holds ``palette_css`` and tells its title."""
        return self._element(f'viewBox="0 0 {WIDTH:g} {self.height:g}"', "")

    def file(self) -> str:
        """The drawing as an SVG file by itself, under its title."""
        x, y, width, height = self._sheet()
        size = (
            f'xmlns="http://www.w3.org/2000/svg" width="{2 * width:g}" height="{2 * height:g}" viewBox="{x:g} '
            f'{y:g} {width:g} {height:g}"'
        )
        paper = f'<rect x="{x:g}" y="{y:g}" width="{width:g}" height="{height:g}" class="f-paper"/>'
        lines = [
            f'<text x="0" y="{at:g}" class="f-ink" font-size="{SIZE}">{html.escape(line)}</text>'
            for at, line in self._heading()
        ]
        return self._element(size, f"<style>{palette_css()}</style>{paper}{''.join(lines)}")

    def png(self) -> bytes | None:
        """The drawing as PNG, on white, under its title; None where matplotlib is not installed."""
        if not can_be_png():
            return None
        raster = importlib.import_module(f"{__package__}.raster")
        look = LETTERING | {"color": PALETTE["ink"][0], "fontsize": 0.93 * SIZE}
        heading = [Mark("text", (0, at, line), look) for at, line in self._heading()]
        about = {"Software": MAKER, "Description": self.title}
        return raster.png([*heading, *self._marks], self._sheet(), PALETTE["paper"][0], about)

    def files(self) -> dict[str, bytes]:
        """Name -> content: the drawing as SVG, and as PNG where that can be made."""
        png = self.png()
        return {f"{self.name}.svg": self.file().encode()} | ({f"{self.name}.png": png} if png is not None else {})

    def _element(self, attributes: str, before: str) -> str:
        body = "\n".join(self._svg)
        title = f"<title>{html.escape(self.title)}</title>"
        return f'<svg {attributes} role="img" font-family="system-ui,sans-serif">{title}{before}\n{body}\n</svg>\n'

    def _heading(self) -> list[tuple[Number, str]]:
        """The lines of the title above the drawing, with the place of each."""
        lines = textwrap.wrap(self.title, LETTERS)
        return [(-12 - 15 * (len(lines) - index - 1), line) for index, line in enumerate(lines)]

    def _sheet(self) -> tuple[Number, Number, Number, Number]:
        """(x, y, width, height) of a file, with a margin around the drawing and its title."""
        top = MARGIN + 12 + 15 * len(self._heading())
        return -MARGIN, -top, WIDTH + 2 * MARGIN, self.height + top + MARGIN


def _hint(text: str) -> str:
    return f"<title>{html.escape(text)}</title>" if text else ""


@dataclass(frozen=True)
class Scale:
    """Numbers -> places on the sheet, linear or by their logarithm."""

    low: Number
    high: Number
    start: Number
    end: Number
    log: bool = False

    @staticmethod
    def over(values: list[Number], start: Number, end: Number, *, zero: bool = False) -> "Scale":
        """A scale that holds all values, by logarithm where all are positive and far apart.

        Else ``zero`` lets it reach zero.
        """
        low, high = min(values, default=0.0), max(values, default=1.0)
        if low > 0 and high / low > FAR:
            room = 0.04 * math.log10(high / low)
            return Scale(low / 10**room, high * 10**room, start, end, log=True)
        low, high = (min(low, 0.0), max(high, 0.0)) if zero else (low, high)
        room = 0.06 * (high - low) or abs(high) or 1.0
        return Scale(
            low - room * (not zero or low < 0), high + room * (not zero or high > 0 or low == high), start, end
        )

    def __call__(self, value: Number) -> Number:
        low, high, value = (math.log10(item) if self.log else item for item in (self.low, self.high, value))
        return self.start + (value - low) / (high - low) * (self.end - self.start)

    def ticks(self, count: int = 5) -> list[Number]:
        """Round numbers within the scale, about so many."""
        if self.log:
            powers = range(math.floor(math.log10(self.low)), math.ceil(math.log10(self.high)) + 1)
            for digits in ((1, 2, 5), (1, 3), (1,)):
                values = [digit * 10.0**power for power in powers for digit in digits]
                values = [value for value in values if self.low <= value <= self.high]
                if len(values) <= count + 2:
                    return values
            return values[:: -(-len(values) // count)]
        rough = (self.high - self.low) / count
        unit = 10.0 ** math.floor(math.log10(rough))
        step = unit * next(factor for factor in (1, 2, 5, 10) if factor * unit >= 0.999 * rough)
        first, last = math.ceil(self.low / step - 1e-9), math.floor(self.high / step + 1e-9)
        return [float(f"{step * index:.12g}") for index in range(first, last + 1)]


def frame(drawing: Drawing, x: Scale, y: Scale, *, x_label: str = "", y_label: str = "", whole: bool = True) -> None:
    """Grid, ticks and labels around a plot, a logarithmic y named so; ``whole``: the ticks of x are whole numbers."""
    for value in y.ticks():
        drawing.line([(x.start, y(value)), (x.end, y(value))], "grid", width=1)
        drawing.text(x.start - 5, y(value) + 4, short(value), colour="soft", anchor="end", size=10.5)
    for value in x.ticks(8):
        if not whole or value == int(value):
            drawing.text(x(value), y.start + 15, short(value), colour="soft", anchor="middle", size=10.5)
    if x_label:
        drawing.text(x.end, y.start + 30, x_label, colour="soft", anchor="end", size=10.5)
    drawing.text(0, y.end - 9, y_label + (", log scale" if y.log else ""), colour="soft")
