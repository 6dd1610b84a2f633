"""Loss guard, against a loss that is not finite or diverges."""

import math
from collections import deque

from ..errors import UserError, argument
from .checkpoints import Checkpointer

MEAN_STEPS = 10  # steps whose mean loss is compared
DIVERGED = 1.5  # a mean that is so many times the best one, and one nat more, is beyond repair


class LossGuard:
    """Stops a run whose loss is not finite or diverges."""

    def __init__(self, checkpointer: Checkpointer):
        self.checkpointer = checkpointer
        self.recent: deque[float] = deque(maxlen=MEAN_STEPS)
        self.best = math.inf

    def check(self, step: int, loss: float, norm: float) -> None:
        if not math.isfinite(loss) or not math.isfinite(norm):
            what = "loss" if not math.isfinite(loss) else "gradient"
            advice = f"lower {argument('lr')} or compute in fp32"
            raise UserError(f"the {what} at step {step} is not finite: {advice}{self._last_kept()}")
        self.recent.append(loss)
        if len(self.recent) == MEAN_STEPS:
            mean = sum(self.recent) / MEAN_STEPS
            self.best = min(self.best, mean)
            if mean > DIVERGED * self.best + 1:
                raise UserError(
                    f"the loss diverges: {mean:.2f} nats over the last {MEAN_STEPS} steps up to {step}, "
                    f"{self.best:.2f} before: "
                    f"lower {argument('lr')}{self._last_kept()}"
                )

    def _last_kept(self) -> str:
        steps = list(self.checkpointer.steps().items())
        return (
            f"; the weights of step {steps[-1][0]} are kept in {steps[-1][1]}"
            if steps
            else "; no checkpoint had been due yet"
        )
