"""Repair options: how what is left is repaired without a gradient through the model."""

from dataclasses import dataclass, field
from typing import Any

from ..errors import UserError, argument
from ..methods import check_name, find, names, setting_names
from ..settings.calibration import Calibration
from ..settings.fields import option, set_field
from ..settings.quantities import seconds_of

GROUP = "Repair"
FITTED = 256  # samples that a compensation takes by default


@dataclass(frozen=True)
class RepairOptions:
    """How what is left is repaired: a method from ``methods.names("compensation")``, its settings, and which tokens.

    ``calibration`` may name fewer samples than asked for where the texts are short; every eighth sample is held out.
    ``repair_budget``, in seconds, is a setting of methods that train.
    """

    method: str = option(f"repair what is left: {', '.join(names('compensation'))}", "sequential", metavar="NAME")
    settings: dict[str, Any] = field(default_factory=dict)
    calibration: Calibration = field(default_factory=lambda: Calibration(samples=FITTED, at_most=True))
    repair_budget: float | str | None = option(
        "time for a repair that trains, such as 120s, 10m or 2h: as many steps as fit into it",
        None,
        kind=str,
        metavar="TIME",
    )

    def __post_init__(self) -> None:
        check_name("compensation", self.method)
        if self.repair_budget is not None:
            seconds = float(seconds_of(self.repair_budget, "repair_budget"))
            told = f"{seconds:g}s"
            able = [name for name in names("compensation") if "budget" in setting_names(find("compensation", name))]
            if self.method not in able:
                raise UserError(
                    f"{argument('repair_budget')} has no meaning for {self.method}, which is done in one reading; it "
                    f"goes with {', '.join(able)}"
                )
            if both := [name for name in ("steps", "budget") if self.settings.get(name, told) != told]:
                raise UserError(f"{argument('repair_budget')} and the setting {both[0]} say how long: give one")
            set_field(self, "repair_budget", seconds)
            set_field(self, "settings", {**self.settings, "budget": told})
