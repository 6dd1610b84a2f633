"""Selection problem and choice: what a selection is given, and what it returns."""

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from ..artifacts.removal import Removal
from ..artifacts.units import Units
from ..errors import UserError, argument


@dataclass(frozen=True)
class Problem:
    """What a selection is given.

    Layers are known by their numbers, other units by theirs in ``units``.

    Attributes:
        units: what may be removed at all.
        amount: how many go.
        wanted: instead, parameters that have to go at least; 0 for a number of units.
        allowed: numbers of those that may go, in order.
        scores: one per unit, or None.
        windows: ``windows[n-1][s]`` for removing layers s … s+n-1, or None.
        losses: removals and a label for progress -> mean NLL per removal, or None; with ``bounded=k`` only the k
            lowest are exact, and a variant that was seen to be worse is inf; with
            ``objective="kl"`` the mean KL divergence from the dense model instead.
        rescore: removal -> scores of the units that stay, or None; for iterative schedules.
        iterative: score anew after every removal.
        start: greedy's choice, for a selection that searches.
        affords: number of variants -> whether their losses would be known before the time budget ends.
    """

    units: Units
    amount: int
    allowed: tuple[int, ...]
    wanted: float = 0
    scores: list[float] | None = None
    windows: list[list[float]] | None = None
    losses: Callable[..., Tensor] | None = None
    rescore: Callable[[Removal], dict[int, float]] | None = None
    iterative: bool = False
    settings: Any = None
    start: "Choice | None" = None
    affords: Callable[[int], bool] = lambda variants: True

    @property
    def layers(self) -> int:
        """Number of units: of layers, where whole layers go."""
        return len(self.units)

    def goes_on(self, order: Collection[int]) -> bool:
        """Whether more has to go than these.

        Raises:
            UserError: more would have to, and nothing is left that may.
        """
        if not self.wanted:
            return len(order) < self.amount
        on = not self.meets(order)
        if on and len(order) >= self.amount:
            raise UserError(
                f"without {len(order)} units {self.units.parameters(order)} parameters go, {self.wanted:.0f} should, "
                f"and no more may: lower the amount, {argument('keep_first')} or {argument('keep_last')}"
            )
        return on

    def meets(self, numbers: Collection[int]) -> bool:
        """Whether as many parameters go with these as have to."""
        return not self.wanted or self.units.parameters(numbers) >= self.wanted

    def progress(self, order: Collection[int]) -> str:
        """How far a choice has come, for messages."""
        return f"{len(order) + 1}" if self.wanted else f"{len(order) + 1}/{self.amount}"

    def values(self, sets: Collection[frozenset[int]], label: str, *, bounded: int = 0) -> dict[frozenset[int], float]:
        """The objective, the settings' own or the loss, without each of these sets, all walked together."""
        removals = [self.units.removal(numbers) for numbers in sets]
        objective = getattr(self.settings, "objective", "loss")
        losses = self.losses(removals, label, bounded=bounded, objective=objective)
        return dict(zip(sets, losses.tolist(), strict=True))

    def scores_without(self, numbers: Sequence[int]) -> dict[int, float]:
        """Scores of the units that stay without these."""
        return self.rescore(self.units.removal(numbers))


@dataclass(frozen=True)
class Choice:
    """Numbers of the units that go, in order of removal, and what the selection saw at each step (scores or losses)."""

    order: tuple[int, ...]
    trace: tuple[float, ...] = field(default=())
