"""shallower makes decoder language models shallower: score, plan, prune, repair, prove, evaluate, report.

The verbs are plain functions with the names of the command line; see ``stages``.
"""

from .artifacts import Compensation, Evaluation, Inspection, Plan, Pruned, Scores
from .calibration import Calibration
from .errors import Refusal, UserError
from .evaluation.perplexity import Protocol
from .planning import Amount, Choosing
from .repairs import Compensating
from .stages import Compute, card, compensate, drop, evaluate, inspect, open_model, plan, prune, report, score

__all__ = [
    "Amount",
    "Calibration",
    "Choosing",
    "Compensating",
    "Compensation",
    "Compute",
    "Evaluation",
    "Inspection",
    "Plan",
    "Protocol",
    "Pruned",
    "Refusal",
    "Scores",
    "UserError",
    "card",
    "compensate",
    "drop",
    "evaluate",
    "inspect",
    "open_model",
    "plan",
    "prune",
    "report",
    "score",
]
