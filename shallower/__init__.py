"""shallower makes decoder language models shallower: score, plan, prune, repair, prove, evaluate, report.

The verbs are plain functions with the names of the command line; see ``stages``.
"""

from .artifacts import Comparison, Compensation, Evaluation, Healing, Inspection, Plan, Pruned, Scores, Speed, Sweep
from .calibration import Calibration
from .errors import Refusal, UserError
from .evaluation.grid import Grid
from .evaluation.perplexity import Protocol
from .evaluation.tasks import Tasks
from .planning import Amount, Choosing
from .repairs import Compensating
from .stages import (
    Compute,
    Training,
    bench,
    card,
    compare,
    compensate,
    drop,
    evaluate,
    heal,
    inspect,
    open_model,
    plan,
    prune,
    report,
    score,
    sweep,
)

__all__ = [
    "Amount",
    "Calibration",
    "Choosing",
    "Comparison",
    "Compensating",
    "Compensation",
    "Compute",
    "Evaluation",
    "Grid",
    "Healing",
    "Inspection",
    "Plan",
    "Protocol",
    "Pruned",
    "Refusal",
    "Scores",
    "Speed",
    "Sweep",
    "Tasks",
    "Training",
    "UserError",
    "bench",
    "card",
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
