"""Repair options: how what is left is repaired without training."""

from dataclasses import dataclass, field
from typing import Any

from ..methods import check_name, names
from ..settings.calibration import Calibration
from ..settings.fields import option

GROUP = "Repair"
FITTED = 256  # samples that a compensation takes by default


@dataclass(frozen=True)
class RepairOptions:
    """How what is left is repaired: a method from ``methods.names("compensation")``, its settings, and which tokens.

    ``calibration`` may name fewer samples than asked for where the texts are short; every eighth sample is held out.
    """

    method: str = option(f"repair what is left: {', '.join(names('compensation'))}", "sequential", metavar="NAME")
    settings: dict[str, Any] = field(default_factory=dict)
    calibration: Calibration = field(default_factory=lambda: Calibration(samples=FITTED, at_most=True))

    def __post_init__(self) -> None:
        check_name("compensation", self.method)
