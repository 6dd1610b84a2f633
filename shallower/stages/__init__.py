"""The verbs as plain functions: the public Python API, and the only place that strings the parts together."""

from .healing import EVAL_TOKENS, Training, heal
from .measuring import bench, compare, evaluate, sweep
from .opening import Compute, Source, check_same_model, open_model
from .pruning import compensate, drop, inspect, plan, prune, score
from .telling import card, report

__all__ = [
    "EVAL_TOKENS",
    "Compute",
    "Source",
    "Training",
    "bench",
    "card",
    "check_same_model",
    "compare",
    "compensate",
    "drop",
    "evaluate",
    "heal",
    "inspect",
    "open_model",
    "plan",
    "prune",
    "report",
    "score",
    "sweep",
]
