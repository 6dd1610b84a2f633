"""Marks: what a drawing consists of, in words that matplotlib is told where a PNG is made of it."""

from importlib import util
from typing import Any, Literal, NamedTuple


class Mark(NamedTuple):
    """A box, a line (or a dot of it) or a text: its places, and how it looks."""

    kind: Literal["box", "line", "text"]
    places: tuple
    look: dict[str, Any]


def can_be_png() -> bool:
    """Whether matplotlib (extra [report]) is installed, without which drawings are SVG only."""
    return util.find_spec("matplotlib") is not None
