"""shallower makes decoder language models shallower: score, plan, prune, repair, prove, evaluate, report.

The verbs are plain functions with the names of the command line; see ``stages``.
"""

from .artifacts import Comparison, Compensation, Evaluation, Inspection, Plan, Pruned, Scores
from .calibration import Calibration
from .errors import Refusal, UserError
from .evaluation.perplexity import Protocol
from .evaluation.tasks import Tasks
from .planning import Amount, Choosing
from .repairs import Compensating
from .stages import Compute, card, compare, compensate, drop, evaluate, inspect, open_model, plan, prune, report, score, sweep

__all__ = [
    "Amount",
    "Calibration",
    "Choosing",
    "Comparison",
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
    "Tasks",
    "UserError",
    "card",
    "compare",
    "compensate",
    "drop",
    "evaluate",
    "inspect",
    "open_model",
    "plan",
    "prune",
    "report",
    "score",
    "sweep",
]
