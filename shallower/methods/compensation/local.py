"""Local: each retained layer behind the first gap is trained to make the dense stream, with one layer in memory.

    min over the weights of layer l   E_tokens ‖ f_l(x) - h⁰ ‖² / (‖ h⁰ ‖² + ε)

in order, from the solution of ``sequential`` on; x is the stream of the model repaired so far (``input = repaired``) or
the dense one, in which case only layers in front of a gap, and those that lose something, have anything to learn. h⁰ is
the dense stream in front of the next retained layer: before a gap that is the end of the gap. AdamW with a warm-up, a
cosine and clipping, small weights at a rate in proportion; layers in front of a gap, or that lose something, get six
times the steps, the two behind them twice, and where two layers have gained less than 0.3 % the others up to the next
gap take the closed form alone. One sample in sixteen is watched only, and the weights with its least error are kept;
where it rises by 1 % the layer goes back there, at three tenths of the rate. Held-out loss decides how many are taken.

``budget`` (such as 10m) replaces ``steps``: as many as fit into that time, the closed form and the checks counted.

Source: layer-wise reconstruction of a pruned model as in LaCo (ACL 2026 long.1342) and XMerge (arXiv 2609.02083),
inputs of the dense model as in Puzzle's block-local distillation (arXiv 2411.19146). The start, the watched samples,
the steps of each layer and the acceptance are ours.
"""

from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

from ...errors import Refusal, UserError
from ...repair.batch import layer_of
from ...repair.case import Case, Fitted, at_first, best_of
from ...repair.local_training import LayerTraining, LocalRecipe, about, trained_names
from ...repair.paired import LayerStep
from ...repair.step_budget import StepBudget
from ...repair.writer_fit import STRENGTH
from ...settings.quantities import seconds_of
from . import sequential

FITS = "inputs"
LEAST, PATIENCE = 0.997, 2  # of the error; so many layers with less gain end the training until the next gap
SHARES = (0.125, 0.25, 0.5, 0.75, 0.875, 1.0)  # of the layers


@dataclass(frozen=True)
class Settings:
    input: Literal["repaired", "dense"] = "repaired"
    start: Literal["sequential", "none"] = "sequential"
    train: Literal["all", "attention", "mlp", "norms"] = "all"
    loss: Literal["relative", "cosine", "huber"] = "relative"
    steps: int = 50
    budget: str = ""  # of time, such as 10m, instead of steps
    lr: float = 1e-3
    batch_tokens: int = 2048
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("steps", "batch_tokens", "lr"):
            if not getattr(self, name) > 0:
                raise UserError(f"local: {name}={getattr(self, name)}: more than 0 is needed")
        if self.budget and not seconds_of(self.budget, "budget") > 0:
            raise UserError(f"local: budget={self.budget}: more than 0 is needed")


def fit(case: Case) -> Fitted:
    own: Settings = case.settings
    walk = case.walk(middles=own.start == "sequential", gains=True)
    dense = own.input == "dense"
    seconds = seconds_of(own.budget, "budget") if own.budget else None
    budget = StepBudget(case, own.steps, seconds, only_changed=dense)
    recipe = LocalRecipe(own.lr, own.batch_tokens, own.loss, own.seed)
    for step in walk:
        changed = step.gap > 0 or case.removal.lessens(step.index)
        if not step.touched or (dense and not changed):
            continue
        budget.reached()
        names = trained_names(step, own.train)
        training = LayerTraining(step, case.tokens, recipe, names=names, dense=dense)
        facts = {"error_before": training.error()}
        if own.start == "sequential":
            _closed_form(step)
        facts["error_closed_form"] = facts["error"] = training.error()
        if names and (changed or not _idle(walk.notes)):
            steps = budget.steps(step.index, training)
            part = case.part.journal.part("local training", steps, f"layer {step.index}", common=True)
            step.take(training.run(steps, part, step.progress), dear=True)
            facts |= {"steps": steps} | about(training.curve)
        step.note(**facts)
    candidates = at_first(walk.patch, SHARES, "layers", partial(layer_of, stack=case.model.stack.name))
    patch, _, chosen, tried = best_of(case, ({}, None), candidates)
    return Fitted(patch, {"trained": walk.notes, "taken": chosen, "tried": tried})


def _idle(notes: list[dict[str, Any]]) -> bool:
    """Whether the last layers gained nothing worth its time."""
    last = notes[-PATIENCE:]
    return len(last) == PATIENCE and all(one["error"] > LEAST * one["error_closed_form"] for one in last)


def _closed_form(step: LayerStep) -> None:
    """Take what ``sequential`` would."""
    try:
        for _, fits in sequential.fits_of(step, sequential.Settings(strength=STRENGTH), ()):
            step.take(fits[STRENGTH])
    except Refusal as refusal:
        raise Refusal(f"{refusal}; start=none trains without a closed form") from refusal
