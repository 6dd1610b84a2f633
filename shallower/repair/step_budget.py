"""Step budget of local training: how many steps each layer gets, fixed or fitted into a time."""

import time

from ..errors import UserError, argument
from ..runtime import distributed
from .case import Case
from .local_training import LayerTraining

CHANGED = 6  # a layer in front of a gap, or that loses something, gets so many times the steps
BEHIND = (2, 2)  # and the first ones behind it: what others gain is little
CHECKS = 11  # held-out losses and walks of about that cost at the end
WALKED = 2.0  # walking both models through a layer, its closed form counted, in units of the closed form and its errors
GIVEN = "steps of layer"  # begins the name under which a journal keeps them
MOST = 2000  # steps of an ordinary layer that a time may give


class StepBudget:
    """Steps of the layers in order.

    Args:
        case: what is repaired; its journal keeps what was given, so that a resumed run gives the same.
        steps: of an ordinary layer, where no time is given.
        seconds: all that the repair may take, its closed forms and checks counted; None for no limit.
        only_changed: train no other layers than those in front of a gap, or that lose something.
    """

    def __init__(self, case: Case, steps: int, seconds: float | None, *, only_changed: bool = False):
        self.case = case
        self.fixed = steps
        self.seconds = seconds
        layers = len(case.model.stack)
        self.weights: dict[int, int] = {}
        since = len(BEHIND)
        for index in case.removal.stays(layers):
            since = -1 if self._changed(index, layers) else since
            if since < 0 or not only_changed:
                self.weights[index] = CHANGED if since < 0 else BEHIND[since] if since < len(BEHIND) else 1
            since += 1
        self.started = self.mark = time.monotonic()
        done = case.part.journal.done
        self.given = any(name.startswith(GIVEN) for name in done)  # steps; then it is too late to refuse

    def _changed(self, index: int, layers: int) -> bool:
        removal = self.case.removal
        return removal.lessens(index) or (
            index + 1 < layers and (removal.gone(index + 1) or removal.lessens(index + 1))
        )

    def reached(self) -> None:
        """Note that the walk is in front of what is done at a layer before its training."""
        self.mark = time.monotonic()

    def steps(self, index: int, training: LayerTraining) -> int:
        """Steps of a layer.

        Raises:
            UserError: the time does not suffice for one step of each layer.
        """
        if self.seconds is None:
            return self.fixed * self.weights[index]
        return self.case.part.journal.memo(f"{GIVEN} {index}", lambda: self._fitted(index, training))

    def _fitted(self, index: int, training: LayerTraining) -> int:
        walked = WALKED * distributed.of_first(time.monotonic() - self.mark)  # by one clock, that all decide alike
        each = distributed.of_first(training.step_seconds())
        rest = {layer: weight for layer, weight in self.weights.items() if layer >= index}
        spent = max(self.case.part.journal.seconds_spent(), time.monotonic() - self.started)
        spent = distributed.of_first(spent)
        closed = walked * (len(rest) - 1) + CHECKS * self.case.check_seconds
        left = self.seconds - spent - closed
        if left < each * len(rest):
            if not self.given:
                need = spent + closed + each * len(rest)
                given = argument("repair_budget", f"{self.seconds:g}s")
                raise UserError(
                    f"{given}: one step of every layer, its closed form and the checks take about {need:.0f} s here; "
                    "give more"
                )
            return 1
        self.given = True
        return max(1, min(MOST * self.weights[index], int(left * self.weights[index] / sum(rest.values()) / each)))
