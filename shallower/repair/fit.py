"""Compensation fit: a proposal is taken only if the loss on held-out tokens falls."""

import json
import math
from collections.abc import Sequence
from statistics import fmean
from types import ModuleType
from typing import Any

from torch import Tensor, nn

from ..anatomy.model import Model
from ..anatomy.patch import Patch
from ..artifacts import Compensation, HeldOutLoss, LayerDrift
from ..errors import UserError
from ..runtime.progress import parts, say
from ..settings.calibration import Calibration
from ..walk.removals import all_nll
from ..walk.run import dtype_name, journal_of, samples_of, timed
from .case import Case, Fitted
from .paired import drift
from .state import RepairState

HELD_OUT = 8  # one sample in so many is not fitted on
TRIES = 7  # candidates that are held against each other at the end, at most
FITTING = 2.5  # layers run for every layer, and the sums and solutions


def compensated(
    model: Model, removed: Sequence[int], method: ModuleType, settings: Any, calibration: Calibration
) -> tuple[Patch, Compensation]:
    """Find the changes of weights that repair the model without these layers.

    None where the held-out loss does not fall.

    Args:
        method: a file of ``methods/compensation``, and its settings.
        calibration: the tokens to fit on; every eighth sample is held out.
    Raises:
        Refusal: the architecture has no weights into which the method's changes fold; names the layer.
    """
    name = method.__name__.rpartition(".")[2]
    samples = samples_of(model, calibration)
    tokens, record = samples.tokens, samples.record
    width = _widest(model) if getattr(method, "FITS", "stream") == "inputs" else model.outline.width
    fitted, held_out = _split(tokens, width)
    own = samples.by_source(range(len(fitted), len(tokens)))
    removed = tuple(sorted(removed))

    def losses(patch: Patch, gone: tuple[int, ...] = removed) -> list[float]:
        """Mean NLL of every held-out sample."""
        with model.patched(patch):
            found = all_nll(model, held_out, gone, "held-out loss").double().mean(dim=1)
        return found.nan_to_num(math.inf, math.inf, math.inf).tolist()

    def loss(patch: Patch) -> float:
        return fmean(losses(patch))

    def drifts(patch: Patch) -> list[dict[str, Any]]:
        return [vars(one) for one in drift(model, held_out, removed, patch)]

    layers = model.record.layers
    journal = journal_of(model, record, compensation=name, settings=vars(settings) if settings else {}, removed=removed)
    with (
        timed(model) as peak,
        model.check_length(tokens.shape[1]),
        journal.part("compensation", layers + 1, lasting=True) as part,
        parts(_costs(layers, len(removed), fitted.numel(), held_out.numel())) as stretch,
    ):
        findings = RepairState.of(part.resume(), part)
        findings.tensors = {name: tensor.to(model.device) for name, tensor in findings.tensors.items()}
        with stretch("loss before"):
            plain = journal.memo("before", lambda: losses({}))
            before = fmean(plain)

        def asked(patch: Patch) -> float:
            """The loss; a method asks in the same order whenever it is begun anew, so that the number of the question
            is its name.
            """
            findings.notes["asked"] = number = findings.notes.get("asked", 0) + 1
            with stretch(f"candidate {min(number, TRIES)}"):
                return journal.memo(f"loss {number}", lambda: loss(patch))

        if findings.step <= layers:
            with stretch("fitting"):
                found = method.fit(Case(model, removed, fitted, held_out, asked, before, settings, findings, part))
            findings = RepairState(found.patch, {"fitted": found.notes}, files=findings.files)
            findings.keep(part, layers + 1, {}, now=True)
        found = Fitted(findings.patch, findings.notes["fitted"])
        with stretch("loss after"):
            repaired = journal.memo("after", lambda: losses(found.patch)) if found.patch else plain
        after = fmean(repaired)
        patch = found.patch if after < before else {}
        if not patch:
            say(f"{name} does not lower the held-out loss ({before:.4f} nats): nothing is changed")
        with stretch("drift"):
            old = journal.memo("drift before", lambda: drifts({}))
            new = journal.memo("drift after", lambda: drifts(patch)) if patch else old
        with stretch("dense"):
            dense = journal.memo("dense", lambda: losses({}, ()))
    three = {"dense": dense, "before": plain, "after": repaired if patch else plain}
    report = Compensation(
        method=name,
        settings=vars(settings) if settings else {},
        model=model.record,
        removed=list(removed),
        calibration=record,
        fitted_tokens=fitted.numel(),
        held_out_tokens=held_out.numel(),
        loss=HeldOutLoss(**{state: fmean(values) for state, values in three.items()}),
        changed=sorted(patch),
        layers=[LayerDrift(one["layer"], one, other) for one, other in zip(old, new, strict=True)],
        notes=json.loads(json.dumps(found.notes)),  # strengths are keys, which JSON has as text
        seconds=journal.before + peak.seconds,
        peak_memory_bytes=peak.bytes,
        dtype=dtype_name(model),
        by_source={
            name: HeldOutLoss(**{state: fmean([values[place] for place in places]) for state, values in three.items()})
            for name, places in own.items()
        },
        fitted_width=width,
    )
    return patch, report


def _costs(layers: int, removed: int, fitted: int, held_out: int) -> dict[str, int | float]:
    """The parts of a repair, and what each costs in layers times tokens."""
    check = (layers - removed) * held_out
    costs: dict[str, int | float] = {"loss before": check, "fitting": FITTING * layers * fitted}
    costs |= {f"candidate {number}": check for number in range(1, TRIES + 1)}
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
            "a compensation needs at least 2 calibration samples, one to fit on and one to decide by: raise --samples"
        )
    last = len(tokens) - max(1, len(tokens) // HELD_OUT)
    fitted = tokens[:last]
    if fitted.numel() < width:
        least = -(-width // tokens.shape[1]) * HELD_OUT // (HELD_OUT - 1) + 1
        say(
            f"warning: {fitted.numel()} tokens to fit {width} inputs on, which they do not determine: the "
            "regularisation decides the rest, "
            f"and the repair may hold for this text alone; give at least {least} samples of {tokens.shape[1]} tokens"
        )
    return fitted, tokens[last:]
