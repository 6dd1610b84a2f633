"""Pruning plan: which layers go and which stay (plan.json)."""

import math
from dataclasses import dataclass, field
from typing import Any

from ..runtime.format import layers
from ..runtime.provenance import Provenance
from .calibration import CalibrationRecord
from .model import ModelRecord
from .removal import Removal


@dataclass(frozen=True)
class Plan:
    """Which layers go and which stay, in MODEL's own numbering.

    ``order`` is the order of removal, ``budget`` in seconds, ``assumed`` what a target of memory, speed or quality
    rests on. ``bytes_before`` and ``bytes_after`` are those of the weights as they are stored. ``agreement`` says how
    many of the layers both halves of the calibration samples choose too, each by itself; None where they were not
    asked.
    """

    removed: list[int]
    kept: list[int]
    order: list[int]
    params_before: int
    params_after: int
    selection: str
    criterion: str | None
    settings: dict[str, Any]
    keep_first: int
    keep_last: int
    iterative: bool
    model: ModelRecord
    calibration: CalibrationRecord | None
    trace: list[float] = field(default_factory=list)
    scores: list[float] | None = None
    budget: float | None = None
    assumed: str = ""
    bytes_before: int = 0
    bytes_after: int = 0
    agreement: int | None = None
    seconds: float = 0.0
    provenance: Provenance = field(default_factory=Provenance.now)
    kind: str = "plan"
    schema: int = 1

    @property
    def removal(self) -> Removal:
        """What goes."""
        return Removal.of_layers(self.removed)

    @property
    def share(self) -> float:
        """The true share of parameters that goes."""
        return 1 - self.params_after / self.params_before

    @property
    def expected_speedup(self) -> float:
        """How many times faster decoding one sequence should be, by the parameters that a token reads."""
        read = self.params_before - self.model.lookup_parameters
        left = read - (self.params_before - self.params_after)
        return read / left if left > 0 else math.inf

    def original(self) -> list[int]:
        """The kept layers in the numbering of the first, dense ancestor."""
        return [self.model.original[index] for index in self.kept]

    def __repr__(self) -> str:
        by = f" by {self.criterion}" if self.criterion else ""
        return (
            f"<Plan: without layers {layers(self.removed)} of {self.model.layers} ({self.selection}{by}), "
            f"{-self.share:.1%} parameters>"
        )


def wrong_plan(plan: Plan) -> str | None:
    if sorted(plan.removed + plan.kept) != list(range(plan.model.layers)):
        return f"removed and kept together must name each layer 0 to {plan.model.layers - 1} exactly once"
    if not plan.removed or not plan.kept:
        return "at least one layer must go and one must stay"
    if plan.kept != sorted(plan.kept) or sorted(plan.order) != sorted(plan.removed):
        return "kept must be in order, and order must name the removed layers"
    gone = sum(plan.model.layer_parameters[index] for index in plan.removed)
    if plan.params_before != plan.model.parameters or plan.params_after != plan.params_before - gone:
        return "params_before and params_after do not fit the model and the removed layers"
    if plan.agreement is not None and not 0 <= plan.agreement <= len(plan.removed):
        return "agreement must be a number of the removed layers"
    return None
