"""shallower makes decoder language models shallower: score, plan, prune, prove, evaluate.

The verbs are plain functions with the names of the command line; see ``stages``.
"""

from .artifacts import Evaluation, Inspection, Plan, Pruned, Scores
from .calibration import Calibration
from .errors import Refusal, UserError
from .evaluation.perplexity import Protocol
from .planning import Amount, Choosing
from .stages import Compute, drop, evaluate, inspect, open_model, plan, prune, score

__all__ = [
    "Amount",
    "Calibration",
    "Choosing",
    "Compute",
    "Evaluation",
    "Inspection",
    "Plan",
    "Protocol",
    "Pruned",
    "Refusal",
    "Scores",
    "UserError",
    "drop",
    "evaluate",
    "inspect",
    "open_model",
    "plan",
    "prune",
    "score",
]
