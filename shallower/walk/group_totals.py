"""Group totals: the importance of weights, added up by the groups of a part that they go with."""

from collections.abc import Callable

import torch
from torch import Tensor

from ..anatomy.units.group import Groups
from .sums import Sums
from .unit_totals import UnitTotals

Places = Callable[[Sums, tuple[int, ...]], dict[str, Tensor]]  # totals of a weight, axes to add over -> by place


def group_sums(sums: Sums, groups: Groups, name: str, places: Places) -> Sums:
    """Numbers by group, (count,) each, from the totals of one weight."""
    added: dict[str, Tensor] = {}
    sums = Sums({label: value[:, None] if value.dim() == 1 else value for label, value in sums.items()})  # a bias: rows
    dims = max(value.dim() for value in sums.values())
    if not dims:  # nothing of it counts
        return Sums()
    for cut in groups.slices[name]:
        others = tuple(axis for axis in range(dims) if axis != cut.axis)
        for label, values in places(sums, others).items():
            for start, step, length in cut.runs:
                at = torch.arange(groups.count)[:, None] * step + start + torch.arange(length)
                each = values.double().cpu()[at].sum(dim=1)
                added[label] = added[label] + each if label in added else each
    return Sums(added)


class GroupTotals(UnitTotals):
    """The totals of a layer's parameters while batches are added, condensed to numbers by group.

    Args:
        firsts: part -> number of its first group, by which the totals are known.
        groups: of the layer's parts.
        places: see ``group_sums``.
    """

    def __init__(
        self, firsts: dict[str, int], groups: dict[str, Groups], measure: Callable, places: Places, first: int
    ):
        owners = {name: firsts[part] for part in firsts for name in groups[part].slices}
        super().__init__(owners, measure, dict, first)
        self.groups = {firsts[part]: groups[part] for part in firsts}
        self.places = places

    def condensed(self, name: str, sums: Sums) -> Sums:
        return group_sums(sums, self.groups[self.owners[name]], name, self.places)
