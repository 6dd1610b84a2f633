"""Models that a benchmark measures, what decides its results, and what every one of its pieces begins with."""

import os
from pathlib import Path

from shallower import Calibration, Protocol, open_model
from shallower.anatomy.model import Model
from shallower.cli.demo import demo_model
from shallower.evaluation.perplexity import evaluation_segments
from shallower.runtime.provenance import versions

from .machine import machine
from .store import CALIBRATION, FP32, TEXTS

SECOND = "SHALLOWER_SECOND_MODEL"


def sources() -> list[Path]:
    """The models: the demo's, and a second one where it is named."""
    return [demo_model(), *([Path(os.environ[SECOND])] if os.environ.get(SECOND) else [])]


def about(settings: dict) -> dict:
    """All that decides the results."""
    return {"settings": settings, "texts": list(TEXTS), "versions": versions(), "machine": machine()}


class Measured:
    """One model, the tokens that it is scored on, and the texts that it is evaluated on."""

    def __init__(self, source: Path, data: Path, settings: dict):
        self.source, self.data, self.settings = source, data, settings
        self.model: Model = open_model(source, FP32)
        samples, length = settings["scoring"]
        self.calibration = Calibration(text=str(data / CALIBRATION), samples=samples, length=length)

    @property
    def texts(self) -> dict:
        """The texts that perplexity is measured on."""
        protocol = Protocol(length=self.settings["length"], max_tokens=self.settings["tokens"])
        return evaluation_segments(self.model, [self.data / name for name in TEXTS], None, protocol)
