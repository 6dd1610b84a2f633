"""shallower makes decoder language models shallower: score, plan, prune, repair, prove, evaluate, report.

The verbs are plain functions with the names of the command line, a file each in ``stages``; what can be set is in
``settings``. Nothing heavy is imported before it is asked for.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .artifacts import (
        Comparison,
        Compensation,
        Evaluation,
        Healing,
        Inspection,
        Plan,
        Pruned,
        PrunedGguf,
        Quantised,
        Scores,
        Speed,
        Sweep,
    )
    from .errors import Refusal, UserError
    from .settings.amount import Amount
    from .settings.answering import Answering
    from .settings.calibration import Calibration
    from .settings.compute import Compute
    from .settings.evaluation import Answers, Protocol, Tasks
    from .settings.export import ExportSettings
    from .settings.page import PageSettings
    from .settings.quantisation import Quantisation
    from .settings.speed import Grid
    from .settings.training import Training
    from .settings.writing import Writing
    from .stages.bench import bench
    from .stages.common import load, open_model
    from .stages.compare import compare
    from .stages.doctor import doctor
    from .stages.evaluate import evaluate
    from .stages.export import export
    from .stages.heal import heal
    from .stages.inspect import inspect
    from .stages.inspect_gguf import inspect_gguf
    from .stages.plan import drop, plan
    from .stages.prune import compensate, prune
    from .stages.prune_gguf import drop_gguf, prune_gguf
    from .stages.quantize import quantize
    from .stages.repair_options import RepairOptions
    from .stages.report import card, report
    from .stages.score import score
    from .stages.selection_options import SelectionOptions
    from .stages.shrink import shrink
    from .stages.sweep import sweep
    from .webapp.server import app

_PLACES = {
    "artifacts": "Comparison Compensation Evaluation Healing Inspection Plan Pruned PrunedGguf Quantised Scores "
    "Speed Sweep",
    "errors": "Refusal UserError",
    "settings.amount": "Amount",
    "settings.answering": "Answering",
    "settings.calibration": "Calibration",
    "settings.compute": "Compute",
    "settings.evaluation": "Answers Protocol Tasks",
    "settings.export": "ExportSettings",
    "settings.page": "PageSettings",
    "settings.quantisation": "Quantisation",
    "stages.repair_options": "RepairOptions",
    "stages.selection_options": "SelectionOptions",
    "settings.speed": "Grid",
    "settings.training": "Training",
    "settings.writing": "Writing",
    "stages.bench": "bench",
    "stages.common": "load open_model",
    "stages.compare": "compare",
    "stages.doctor": "doctor",
    "stages.evaluate": "evaluate",
    "stages.export": "export",
    "stages.heal": "heal",
    "stages.inspect": "inspect",
    "stages.inspect_gguf": "inspect_gguf",
    "stages.plan": "drop plan",
    "stages.prune": "compensate prune",
    "stages.prune_gguf": "drop_gguf prune_gguf",
    "stages.quantize": "quantize",
    "stages.report": "card report",
    "stages.score": "score",
    "stages.shrink": "shrink",
    "stages.sweep": "sweep",
    "webapp.server": "app",
}
_WHERE = {name: module for module, names in _PLACES.items() for name in names.split()}
__all__ = sorted(_WHERE)


def __getattr__(name: str) -> Any:
    if name not in _WHERE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    found = getattr(importlib.import_module(f".{_WHERE[name]}", __name__), name)
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
