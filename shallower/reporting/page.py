"""Page of the report as data: sections and their parts; the templates say how each kind looks."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple, TypeAlias

from markupsafe import Markup

from .canvas import Drawing


class Text(NamedTuple):
    """Plain text: a ``paragraph``, a ``heading``, a ``note`` in small letters or ``commands`` as in a terminal."""

    text: str
    kind: str = "paragraph"


class Facts(NamedTuple):
    """Terms with what they are; those without content are left out."""

    terms: Mapping[str, object]
    kind: str = "facts"


class Cell(NamedTuple):
    """Cell with a smaller second line; the best of a column is bold."""

    text: object
    below: object = None
    best: bool = False


class Table(NamedTuple):
    """Table of cells or their texts; ``numbers``: columns set to the right, ``main``: rows that stand out."""

    head: Iterable[object]
    rows: Iterable[Iterable[object]]
    numbers: Sequence[int] = ()
    main: Sequence[int] = ()
    kind: str = "table"


class Figure(NamedTuple):
    """Drawing under its caption."""

    drawing: Drawing
    caption: str
    kind: str = "figure"

    @property
    def svg(self) -> Markup:
        """The drawing inside the page; all text in it is escaped where it is drawn."""
        return Markup(self.drawing.svg())


class Box(NamedTuple):
    """Parts one below the other (``box``), side by side (``pair``) or behind a title that opens them (``details``)."""

    parts: Sequence["Block | None"]
    kind: str = "box"
    title: str = ""


class Section(NamedTuple):
    """Section under its title; ``style``: a class of its own."""

    title: str
    parts: Sequence["Block | None"]
    style: str = ""


Block: TypeAlias = Text | Facts | Table | Figure | Box


def drawings(parts: Iterable[Section | Block | None]) -> Iterator[Drawing]:
    """All drawings of parts and of what is in them."""
    for part in parts:
        if isinstance(part, Figure):
            yield part.drawing
        elif isinstance(part, (Section, Box)):
            yield from drawings(part.parts)


def figure_name(name: str, number: int) -> str:
    """A figure's name: the first of its kind has no number."""
    return name if number == 1 else f"{name}-{number}"
