"""Compensation fit: a proposal is taken only if the loss on held-out tokens falls."""

import json
import math
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import cached_property
from statistics import fmean
from types import ModuleType
from typing import Any

from torch import Tensor, nn

from ..anatomy.model import Model
from ..anatomy.patch import Patch
from ..artifacts import NOTHING, Compensation, HeldOutLoss, LayerDrift, Removal
from ..artifacts.compensation import TrainedLayer
from ..artifacts.units import LAYER_WIDTH, SUBLAYER
from ..errors import UserError, argument
from ..runtime import distributed
from ..runtime.progress import parts, say
from ..settings.calibration import Calibration
from ..storage.journal import Journal, JournalPart
from ..walk.removals import all_nll
from ..walk.replay import replay_of
from ..walk.run import dtype_name, journal_of, removed_of, samples_of, timed
from .case import Case, Fitted
from .drift import drift
from .state import RepairState

HELD_OUT = 8  # one sample in so many is not fitted on
CANDIDATES = 7  # candidates that are held against each other at the end, at most
FITTING = 2.5  # layers run for every layer, and the sums and solutions


def fit_compensation(
    model: Model, removal: Removal, method: ModuleType, settings: Any, calibration: Calibration
) -> tuple[Patch, Compensation]:
    """Find the changes of weights that repair the model after a removal.

    None where the held-out loss does not fall.

    Args:
        method: a file of ``methods/compensation``, and its settings.
        calibration: the tokens to fit on; every eighth sample is held out.
    Raises:
        Refusal: the architecture has no weights into which the method's changes fold; names the layer.
    """
    name = method.__name__.rpartition(".")[2]
    samples = samples_of(model, calibration)
    width = _widest(model) if getattr(method, "FITS", "stream") == "inputs" else model.outline.width
    fitted, held_out = _split(samples.tokens, width)
    own = vars(settings) if settings else {}
    layers = model.record.layers
    journal = journal_of(model, samples.record, compensation=name, settings=own, **removed_of(removal))
    with (
        timed(model) as peak,
        model.check_length(fitted.shape[1]),
        journal.part("compensation", layers + 1, lasting=True) as part,
        parts(_costs(layers, len(removal.layers), fitted.numel(), held_out.numel())) as stretch,
    ):
        fit = _Fit(model, removal, fitted, held_out, journal, part, stretch)
        proposal = fit.propose(method, settings)
        patch, losses, drifts = fit.decide(name, proposal)
    notes = json.loads(json.dumps(proposal.notes))  # strengths are keys, which JSON has as text
    by_source = samples.by_source(range(len(fitted), len(samples.tokens)))
    report = Compensation(
        method=name,
        settings=own,
        model=model.record,
        removed=list(removal.layers),
        calibration=samples.record,
        fitted_tokens=fitted.numel(),
        held_out_tokens=held_out.numel(),
        loss=HeldOutLoss(**{state: fmean(values) for state, values in losses.items()}),
        changed=sorted(patch),
        layers=drifts,
        trained=[TrainedLayer(**one) for one in notes.pop("trained", ())],
        notes=notes,
        seconds=journal.before + peak.seconds,
        peak_memory_bytes=peak.bytes,
        dtype=dtype_name(model),
        by_source={
            name: HeldOutLoss(**{state: fmean([values[place] for place in places]) for state, values in losses.items()})
            for name, places in by_source.items()
        },
        fitted_width=width,
        units=_units_gone(model, removal),
    )
    return patch, report


def _units_gone(model: Model, removal: Removal) -> dict[str, int]:
    """Name -> parameters of the units that go, where parts of layers are among them."""
    if removal.kind == "layer":
        return {}
    units = model.units(LAYER_WIDTH if removal.narrows else SUBLAYER)
    return units.sizes(sorted({*range(len(units))} - {*units.stays(removal)}))


@dataclass
class _Fit:
    """A repair on its way: what it is fitted on, what it is decided by, and the journal that keeps each step.

    Attributes:
        part: of the journal, for what the method finds.
        stretch: the parts of its progress, by their names in ``_costs``.
    """

    model: Model
    removal: Removal
    fitted: Tensor
    held_out: Tensor
    journal: Journal
    part: JournalPart
    stretch: Callable[[str], AbstractContextManager]

    def losses(self, patch: Patch, removal: Removal | None = None) -> list[float]:
        """Mean NLL of every held-out sample."""
        removal = self.removal if removal is None else removal
        with self.model.patched(patch):
            nll = all_nll(self.model, self.held_out, removal, "held-out loss").double().mean(dim=1)
        return nll.nan_to_num(math.inf, math.inf, math.inf).tolist()

    @cached_property
    def plain(self) -> list[float]:
        """The losses without changes."""
        return self.journal.memo("before", lambda: self.losses({}))

    def propose(self, method: ModuleType, settings: Any) -> Fitted:
        """Proposal of the method; a killed run goes on where it was."""
        layers = self.model.record.layers
        part = self.part
        state = RepairState.of(part.resume(), part)
        state.tensors = {name: tensor.to(self.model.device) for name, tensor in state.tensors.items()}
        with self.stretch("loss before"):
            replay_of(self.model)  # found out once per model, and no part of what a check takes
            started = time.monotonic()
            before = fmean(self.plain)
            seconds = self.journal.memo("check seconds", lambda: time.monotonic() - started)

        def ask(patch: Patch) -> float:
            """Loss; a method asks in the same order whenever it is begun anew, so that the number of the question
            is its name.
            """
            number = state.asked + 1
            state.asked = number
            with self.stretch(f"candidate {min(number, CANDIDATES)}"):
                return self.journal.memo(f"loss {number}", lambda: fmean(self.losses(patch)))

        if state.step <= layers:
            how = {"settings": settings, "check_seconds": seconds, "state": state, "part": part}
            case = Case(self.model, self.removal, self.fitted, self.held_out, ask, before, **how)
            with self.stretch("fitting"):
                fitted = method.fit(case)
            state = RepairState(fitted.patch, conclusion=fitted.notes, files=state.files)
            state.keep(part, layers + 1, {}, now=True)
        return Fitted(state.patch, state.conclusion)

    def decide(self, name: str, proposal: Fitted) -> tuple[Patch, dict[str, list[float]], list[LayerDrift]]:
        """Proposal, or nothing where it does not help; the losses of all three models, and the drift by layer."""
        with self.stretch("loss after"):
            after = self.journal.memo("after", lambda: self.losses(proposal.patch)) if proposal.patch else self.plain
        helps = fmean(after) < fmean(self.plain)
        patch = proposal.patch if helps else {}
        if not patch:
            say(f"{name} does not lower the held-out loss ({fmean(self.plain):.4f} nats): nothing is changed")
        with self.stretch("drift"):
            old = self.journal.memo("drift before", lambda: self._drifts({}))
            new = self.journal.memo("drift after", lambda: self._drifts(patch)) if patch else old
        with self.stretch("dense"):
            dense = self.journal.memo("dense", lambda: self.losses({}, NOTHING))
        drifts = [LayerDrift(one["layer"], one, other) for one, other in zip(old, new, strict=True)]
        return patch, {"dense": dense, "before": self.plain, "after": after if patch else self.plain}, drifts

    def _drifts(self, patch: Patch) -> list[dict[str, Any]]:
        return [vars(one) for one in drift(self.model, self.held_out, self.removal, patch)]


def _costs(layers: int, removed: int, fitted: int, held_out: int) -> dict[str, int | float]:
    """The parts of a repair, and what each costs in layers times tokens."""
    check = (layers - removed) * held_out
    costs: dict[str, int | float] = {"loss before": check, "fitting": FITTING * layers * fitted}
    costs |= {f"candidate {number}": check for number in range(1, CANDIDATES + 1)}
    return costs | {"loss after": check, "drift": 4 * layers * held_out, "dense": layers * held_out}


def _widest(model: Model) -> int:
    """The most inputs that a plain product inside the layers has."""
    stack = model.checkpoint.shapes.get_submodule(model.outline.name)
    sizes = [module.in_features for layer in stack for module in layer.modules() if isinstance(module, nn.Linear)]
    return max(sizes, default=model.outline.width)


def _split(tokens: Tensor, width: int) -> tuple[Tensor, Tensor]:
    """(what is fitted on, what is decided by): every eighth sample is held out."""
    if len(tokens) < 2:
        raise UserError(
            "a compensation needs at least 2 calibration samples, one to fit on and one to decide by: raise "
            f"{argument('samples')}"
        )
    held_out = max(1, len(tokens) // HELD_OUT)
    processes = distributed.size()
    if held_out < processes:
        raise UserError(
            f"{len(tokens)} samples, of which every {HELD_OUT}th is held out, cannot be split among "
            f"{processes} processes: raise {argument('samples')} to {HELD_OUT * processes} or start fewer"
        )
    last = len(tokens) - held_out
    fitted = tokens[:last]
    if fitted.numel() < width:
        least = -(-width // tokens.shape[1]) * HELD_OUT // (HELD_OUT - 1) + 1
        say(
            f"warning: {fitted.numel()} tokens to fit {width} inputs on, which they do not determine: the "
            "regularisation decides the rest, "
            f"and the repair may hold for this text alone; give at least {least} samples of {tokens.shape[1]} tokens"
        )
    return fitted, tokens[last:]
