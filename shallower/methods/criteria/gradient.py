"""Gradient: a layer whose weights the loss hardly pulls at matters little; one backward per decision.

    l1:      I(n) = Σ_W Σ_ij | ∂L/∂W_ij |        over the parameters W of layer n with two or more dimensions
    l2:      I(n) = Σ_W ‖ ∂L/∂W ‖_F
    hidden:  I(n) = mean over tokens of ‖ ∂L/∂h_{n+1} ‖₂
             with h_{n+1} the stream after layer n; no gradient of any weight

with L the mean loss over the calibration tokens: gradients are added over batches first. With ``--iterative`` the
lowest layer goes and the rest is scored anew, which reads closest to "one backward pass per pruning decision".

Source: GradMAP (arXiv 2602.14649), of which only the idea is public: gradient magnitudes, global, one backward per
decision. All three formulas are our reconstruction.
"""

from dataclasses import dataclass
from typing import Literal

from ...walk.sums import absolute_sum, square_sum

EVIDENCE = "gradients"


@dataclass(frozen=True)
class Settings:
    norm: Literal["l1", "l2", "hidden"] = "l1"


def evidence(settings: Settings) -> str:
    return "flows" if settings.norm == "hidden" else EVIDENCE


def measure(evidence, settings: Settings) -> dict:
    if settings.norm == "hidden":
        lengths = evidence.gradient.double().norm(dim=-1)
        return {"length": lengths.sum(), "tokens": lengths.numel()}
    return {"gradient": evidence.gradient if evidence.weight.dim() >= 2 else 0.0}


def condense(sums, settings: Settings) -> dict:
    if settings.norm == "l1":
        return {"importance": absolute_sum(sums["gradient"])}
    return {"importance": square_sum(sums["gradient"]).sqrt()}


def places(sums, others, settings: Settings) -> dict:
    gradient = sums["gradient"]
    return {
        "importance": gradient.abs().sum(dim=others) if settings.norm == "l1" else gradient.square().sum(dim=others)
    }


def score(sums, settings: Settings) -> float:
    return float(sums["length"] / sums["tokens"] if settings.norm == "hidden" else sums["importance"])
