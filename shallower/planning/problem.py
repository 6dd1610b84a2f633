"""Selection problem and choice: what a selection is given, and what it returns."""

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from ..artifacts.removal import Removal


@dataclass(frozen=True)
class Problem:
    """What a selection is given.

    Attributes:
        layers: number of layers.
        amount: how many go.
        allowed: the layers that may go, in order.
        scores: one per layer, or None.
        windows: ``windows[n-1][s]`` for removing layers s … s+n-1, or None.
        losses: removals and a label for progress -> mean NLL per removal, or None; with ``bounded=k`` only the k
            lowest are exact, and a variant that was seen to be worse is inf; with
            ``objective="kl"`` the mean KL divergence from the dense model instead.
        rescore: removal -> scores of the layers that stay, or None; for iterative schedules.
        iterative: score anew after every removal.
        start: greedy's choice, for a selection that searches.
        affords: number of variants -> whether their losses would be known before the time budget ends.
    """

    layers: int
    amount: int
    allowed: tuple[int, ...]
    scores: list[float] | None = None
    windows: list[list[float]] | None = None
    losses: Callable[..., Tensor] | None = None
    rescore: Callable[[Removal], dict[int, float]] | None = None
    iterative: bool = False
    settings: Any = None
    start: "Choice | None" = None
    affords: Callable[[int], bool] = lambda variants: True

    def values(self, sets: Collection[frozenset[int]], label: str, *, bounded: int = 0) -> dict[frozenset[int], float]:
        """The objective, the settings' own or the loss, of the model without each of these sets of layers, all walked
        together.
        """
        removals = [Removal.of_layers(layers) for layers in sets]
        objective = getattr(self.settings, "objective", "loss")
        losses = self.losses(removals, label, bounded=bounded, objective=objective)
        return dict(zip(sets, losses.tolist(), strict=True))

    def scores_without(self, layers: Sequence[int]) -> dict[int, float]:
        """Scores of the layers that stay without these."""
        return self.rescore(Removal.of_layers(layers))


@dataclass(frozen=True)
class Choice:
    """The layers that go, in order of removal, and what the selection saw at each step (scores or losses)."""

    order: tuple[int, ...]
    trace: tuple[float, ...] = field(default=())

    @property
    def removal(self) -> Removal:
        """What goes."""
        return Removal.of_layers(self.order)
