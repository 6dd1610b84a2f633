"""Selection options: how layers are chosen, what is protected and how long a search may take.

Scoring: by which criterion.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from ..artifacts.units import LAYER, NARROW
from ..errors import UserError
from ..methods import check_name, names
from ..settings.fields import option, set_field
from ..settings.quantities import seconds_of

GROUP = "Which layers go"
# With a run of neighbours the least harm on the worst of many texts, for one forward pass (docs/calibration.md).
CRITERION = "block_influence"
NARROWING = "activation"  # for groups of parts
SUITED = {
    "block_influence": "window",
    "angular": "window",
}  # the selection by default; for other criteria the lowest scores


REPAIRED = "repaired"
OBJECTIVES = ("loss", "kl", REPAIRED)
# By one criterion of groups, MLPs alone: their width costs less than heads (benchmarks/results/width.md).
SUITED_PARTS = {"activation": "mlp"}


def default_criterion(units: str) -> str:
    """The criterion by default for a kind of units."""
    return NARROWING if units in NARROW else CRITERION


@dataclass(frozen=True)
class Scoring:
    """By which criterion layers are scored, and its own settings.

    Attributes:
        criterion: a name from ``methods.names("criteria")``, or several; None is what suits the units.
        settings: of the criterion; on the command line by ``--set``.
        units: what is scored and may go.
    """

    criterion: str | Sequence[str] | None = option(
        f"one or several; by default {CRITERION}, and {NARROWING} with --units width: " + ", ".join(names("criteria")),
        None,
        kind=list,
        metavar="NAME",
    )
    settings: dict[str, Any] = field(default_factory=dict)
    units: str = option(
        "what may go: layer, attention, mlp, sublayer (attention and MLP, each alone), width (KV groups and neurons), "
        "or, in a plan, layer+width",
        LAYER,
        metavar="KIND",
    )

    @property
    def criteria(self) -> str | Sequence[str]:
        """The criterion or criteria, settled."""
        return self.criterion or default_criterion(self.units)


@dataclass(frozen=True)
class SelectionOptions:
    """How layers are chosen: the method of selection and its settings, protection (None: auto), the schedule, and the
    time.

    ``selection`` None is what suits the criterion. ``budget`` is in seconds, for a selection that searches: counted
    from its first loss on, greedy's part included. ``multiple_of`` is a setting of ``uniform``. With ``objective``
    ``repaired`` every candidate is compared as a closed form of its gaps leaves it, on samples that this is not fitted
    on; the best, and what is known without that, are then repaired whole and compared once more. With ``refit``, the
    name of a compensation, the units that stay are scored anew in the model that it has repaired so far.
    """

    selection: str | None = option(
        ", ".join(names("selection")) + "; by default window for block_influence and angular, else lowest",
        None,
        metavar="NAME",
    )
    settings: dict[str, Any] = field(default_factory=dict)
    keep_first: int | str | None = option("layers at the start that never go, or auto", None, kind=str, metavar="N")
    keep_last: int | str | None = option("layers at the end that never go, or auto", None, kind=str, metavar="N")
    iterative: bool = option("score anew after every removal", False)
    refit: str | None = option(
        "with --iterative: repair what is left after every removal before it is scored anew, such as by magnitude "
        "(Prune&Comp) or sequential",
        None,
        metavar="NAME",
    )
    multiple_of: int | None = option(
        "with --units width: as many neurons stay in every MLP as divide by it, such as 32", None, metavar="N"
    )
    objective: str | None = option(
        "what a choice by losses looks at: loss, kl (the divergence from the dense model), or repaired (the loss after "
        "a closed-form repair of every candidate)",
        None,
        metavar="NAME",
    )
    budget: float | str | None = option(
        "time for a selection that searches, such as 120s, 10m or 2h; then the best so far, at least greedy's, "
        "is the result",
        None,
        kind=str,
        metavar="TIME",
    )

    def __post_init__(self) -> None:
        for name in ("keep_first", "keep_last"):
            set_field(self, name, _protected_count(name, getattr(self, name)))
        if self.multiple_of is not None:
            if type(self.multiple_of) is not int or self.multiple_of < 1:
                raise UserError("a number of neurons, 1 or more", multiple_of=self.multiple_of)
            set_field(self, "settings", {**self.settings, "multiple_of": self.multiple_of})
        if self.refit is not None:
            check_name("compensation", self.refit)
        if self.objective not in (None, *OBJECTIVES):
            raise UserError(f"known are {', '.join(OBJECTIVES)}", objective=self.objective)
        if self.objective in ("loss", "kl"):
            set_field(self, "settings", {**self.settings, "objective": self.objective})
        if self.budget is not None:
            set_field(self, "budget", float(seconds_of(self.budget, "budget")))
            if not 0 <= self.budget < math.inf:
                raise UserError("a number of seconds, 0 or more", budget=f"{self.budget:g}")

    def for_criterion(self, criterion: str | None, units: str = LAYER) -> "SelectionOptions":
        """The same with its selection settled: as given, else what suits the criterion, the schedule and the units."""
        if units in NARROW and self.selection in (None, "uniform"):
            suited = SUITED_PARTS.get(criterion or default_criterion(units))
            parts = {"parts": suited} if suited else {}
            return replace(self, selection="uniform", settings=parts | self.settings)
        if self.selection is not None:
            return self
        plain = self.iterative or units != LAYER
        if self.objective == REPAIRED:
            return replace(self, selection="greedy" if plain else "window")
        return replace(self, selection="lowest" if plain else SUITED.get(criterion or CRITERION, "lowest"))


def _protected_count(name: str, given: int | str | None) -> int | None:
    if given is None or given == "auto":
        return None
    if isinstance(given, int) and not isinstance(given, bool) and given >= 0:
        return given
    if not (isinstance(given, str) and given.isascii() and given.isdigit()):
        raise UserError("give a number of layers, or auto", **{name: given})
    return int(given)
