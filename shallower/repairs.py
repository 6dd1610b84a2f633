"""Fit a compensation, and take it only if the loss on held-out tokens falls."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from . import methods
from .anatomy.model import Model
from .anatomy.patch import Patch
from .artifacts import Compensation
from .calibration import Calibration
from .compensation import Case, Fitted
from .errors import UserError
from .progress import say
from .runs import dtype_name, journal_of, timed, tokens_of
from .walk.findings import Findings
from .walk.losses import all_nll
from .walk.paired import drift

FITTED = 256  # samples that a compensation takes by default
HELD_OUT = 8  # one sample in so many is not fitted on


@dataclass(frozen=True)
class Compensating:
    """How what is left is repaired: a method from ``methods.names("compensation")``, its settings, and which tokens."""

    method: str = "sequential"
    settings: dict[str, str] = field(default_factory=dict)
    calibration: Calibration = field(default_factory=lambda: Calibration(samples=FITTED, at_most=True))

    def __post_init__(self) -> None:
        methods.configure(methods.find("compensation", self.method), self.settings)


def compensated(model: Model, removed: Sequence[int], how: Compensating) -> tuple[Patch, Compensation]:
    """Find the changes of weights that repair the model without these layers; none where the held-out loss does not fall.

    Raises:
        Refusal: the architecture has no weights into which the method's changes fold; names the layer.
    """
    method = methods.find("compensation", how.method)
    settings = methods.configure(method, how.settings)
    tokens, record = tokens_of(model, how.calibration)
    fitted, held_out = _split(model, tokens)
    removed = tuple(sorted(removed))

    def loss(patch: Patch, gone: tuple[int, ...] = removed) -> float:
        with model.patched(patch):
            value = float(all_nll(model, held_out, gone, "held-out loss").double().mean())
        return value if math.isfinite(value) else math.inf

    def drifts(patch: Patch) -> list[dict[str, Any]]:
        return [vars(one) for one in drift(model, held_out, removed, patch)]

    layers = model.record.layers
    journal = journal_of(model, record, compensation=how.method, settings=vars(settings) if settings else {}, removed=removed)
    with timed(model) as peak, model.given(tokens.shape[1]), journal.part("compensation", layers + 1, lasting=True) as part:
        findings = Findings.of(part.resume(), part)
        before = journal.memo("before", lambda: loss({}))

        def asked(patch: Patch) -> float:
            """The loss; a method asks in the same order whenever it is begun anew, so that the number of the question is its name."""
            findings.notes["asked"] = number = findings.notes.get("asked", 0) + 1
            return journal.memo(f"loss {number}", lambda: loss(patch))

        if findings.step <= layers:
            found = method.fit(Case(model, removed, fitted, held_out, asked, before, settings, findings, part))
            findings = Findings(found.patch, {"fitted": found.notes}, files=findings.files)
            findings.keep(part, layers + 1, {}, now=True)
        found = Fitted(findings.patch, findings.notes["fitted"])
        after = journal.memo("after", lambda: loss(found.patch)) if found.patch else before
        patch = found.patch if after < before else {}
        if not patch:
            say(f"{how.method} does not lower the held-out loss ({before:.4f} nats): nothing is changed")
        old = journal.memo("drift before", lambda: drifts({}))
        new = journal.memo("drift after", lambda: drifts(patch)) if patch else old
    dense = journal.memo("dense", lambda: loss({}, ()))
    report = Compensation(
        method=how.method,
        settings=vars(settings) if settings else {},
        model=model.record,
        removed=list(removed),
        calibration=record,
        fitted_tokens=fitted.numel(),
        held_out_tokens=held_out.numel(),
        loss={"dense": dense, "before": before, "after": min(before, after)},
        changed=sorted(patch),
        layers=[{"layer": one["layer"], "before": one, "after": other} for one, other in zip(old, new, strict=True)],
        notes=found.notes,
        seconds=journal.before + peak.seconds,
        peak_memory_bytes=peak.bytes,
        dtype=dtype_name(model),
    )
    return patch, report


def brief(report: Compensation) -> dict[str, Any]:
    """What ``shallower.json`` tells of a compensation; the rest is in the file beside it."""
    return {name: getattr(report, name) for name in ("method", "settings", "calibration", "loss", "changed")}


def _split(model: Model, tokens: Tensor) -> tuple[Tensor, Tensor]:
    """(what is fitted on, what is decided by): every eighth sample is held out."""
    if len(tokens) < 2:
        raise UserError("a compensation needs at least 2 calibration samples, one to fit on and one to decide by: raise --samples")
    last = len(tokens) - max(1, len(tokens) // HELD_OUT)
    fitted, width = tokens[:last], model.outline.width
    if fitted.numel() < width:
        least = -(-width // tokens.shape[1])
        say(
            f"{fitted.numel()} tokens to fit {width} features on: at least {least} samples of {tokens.shape[1]} would determine them; "
            "the regularisation decides the rest"
        )
    return fitted, tokens[last:]
