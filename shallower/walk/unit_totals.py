"""Unit totals: gradients of a layer's parameters, measured one by one and added up by the unit that they go with."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from .evidence import Gradients
from .sums import Halves, Sums

MARK = "|"  # between a unit's number and the name of a total
Condense = Callable[[Sums], dict]


class UnitTotals:
    """The totals of a layer's parameters while batches are added, and the numbers that they condense to.

    With one batch, or in the last of several, a parameter's total is condensed and freed before the next one is looked
    at. ``numbers`` are, by unit, those of all samples and, where ``first`` batches are of the first half and others
    follow, of either half.

    Args:
        owners: name of a parameter -> number of the unit that it goes with; others are not looked at.
    """

    def __init__(self, owners: dict[str, int], measure: Callable[[Gradients], dict], condense: Condense, first: int):
        self.owners = owners
        self.measure = measure
        self.condense = condense
        self.first = first
        self.sums: dict[tuple[str, bool], Sums] = {}
        self.numbers: dict[int, list[Sums]] = {}

    def of_layer(self) -> list[Sums]:
        """The numbers of all units as those of the layer."""
        return marked(self.numbers)

    @torch.no_grad()
    def add(self, layer: nn.Module, gradients: dict[str, Tensor | None], batch: int, *, last: bool) -> None:
        """Measure each parameter.

        Its gradient is freed as soon as it has been looked at. All processes do this in step.
        """
        for name, weight in layer.named_parameters():
            gradient = gradients.pop(name)
            if name not in self.owners:
                continue
            gradient = torch.zeros_like(weight) if gradient is None else gradient
            total = self.sums.setdefault((name, batch >= self.first), Sums())
            total += Sums.of(self.measure(Gradients(self.owners[name], name, weight.detach(), gradient)))
            if last:
                self._condense(name)

    def _condense(self, name: str) -> None:
        halves = [self.sums.pop((name, second)).all_sum() for second in (False, True) if (name, second) in self.sums]
        apart = [self.condensed(name, half) for half in halves] if len(halves) > 1 else []
        for other in halves[1:]:
            halves[0] += other
        results = [self.condensed(name, halves[0]), *apart]
        totals = self.numbers.setdefault(self.owners[name], [Sums() for _ in results])
        for total, numbers in zip(totals, results, strict=True):
            if numbers:  # nothing of a parameter may count
                total += numbers

    def condensed(self, name: str, sums: Sums) -> Sums:
        """The numbers that a parameter's total condenses to."""
        return Sums.of(self.condense(sums))


def marked(totals: dict[int, list[Sums]]) -> list[Sums]:
    """The totals of several units as those of one layer, their names marked by the unit's number."""
    halves = max(map(len, totals.values()), default=0)
    return [
        Sums({f"{number}{MARK}{name}": value for number, sums in totals.items() for name, value in sums[half].items()})
        for half in range(halves)
    ]


def unmarked(totals: dict[int, list[Sums]]) -> dict[int, list[Sums]]:
    """Number of a unit -> its totals, from those of the layers."""
    by_unit: dict[int, list[Sums]] = {}
    for halves in totals.values():
        for half, sums in enumerate(halves):
            for name, value in sums.items():
                number, _, own = name.partition(MARK)
                several = by_unit.setdefault(int(number), [Sums() for _ in halves])
                several[half][own] = value
    return dict(sorted(by_unit.items()))


def by_unit(totals: dict[int, list[Sums]]) -> dict[int, Halves]:
    """From the condensed totals of all samples and, behind them, of either half."""
    return {number: Halves(halves[0], tuple(halves[1:])) for number, halves in unmarked(totals).items()}
