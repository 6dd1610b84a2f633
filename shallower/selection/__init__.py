"""From scores or losses to the layers that go; one file per selection, the file name is its name.

A file has a docstring (rule, source, what is our reconstruction), ``NEEDS`` (scores, losses or nothing) and
``select(problem)`` that returns a ``Choice``; ``ITERATIVE = True`` where it can score anew after every removal. A
``Settings`` dataclass, if present, arrives as ``problem.settings``;
``PROTECT = (first, last)`` replaces the usual protection where the paper has its own.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor


@dataclass(frozen=True)
class Problem:
    """What a selection is given.

    Attributes:
        layers: number of layers.
        amount: how many go.
        allowed: the layers that may go, in order.
        scores: one per layer, or None.
        windows: ``windows[n-1][s]`` for removing layers s … s+n-1, or None.
        losses: masks (variant, layer), true where removed, and a label for progress -> mean NLL per variant, or None; with
            ``bounded=True`` only the lowest is exact, and a variant that was seen to be worse is inf.
        rescore: removed layers -> scores of those that stay, or None; for iterative schedules.
        iterative: score anew after every removal.
    """

    layers: int
    amount: int
    allowed: tuple[int, ...]
    scores: list[float] | None = None
    windows: list[list[float]] | None = None
    losses: Callable[..., Tensor] | None = None
    rescore: Callable[[tuple[int, ...]], dict[int, float]] | None = None
    iterative: bool = False
    settings: Any = None


@dataclass(frozen=True)
class Choice:
    """The layers that go, in order of removal, and what the selection saw at each step (scores or losses)."""

    order: tuple[int, ...]
    trace: tuple[float, ...] = field(default=())
