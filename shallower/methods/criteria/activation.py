"""Activation: groups of a part that bring little to its last product matter least.

    l2:    I(n) = Σ_j mean over samples of ‖ X_j over the sample's tokens ‖₂
    mean:  I(n) = Σ_j mean over tokens of | X_j |

over the columns j of group n of a last product (o_proj, down_proj), with X_j what enters there.

Experts count as one wide product, whose columns get zeros from tokens that are sent elsewhere (our reconstruction).

Source: ``l2`` is stage 1 of 2SSP (arXiv 2501.17771), ``mean`` the importance of Minitron (arXiv 2407.14679), where the
mean is over batch and sequence; heads by the sum of their channels are our reconstruction.
"""

from dataclasses import dataclass
from typing import Literal

EVIDENCE = "inputs"
POOL = "sum"


@dataclass(frozen=True)
class Settings:
    norm: Literal["l2", "mean"] = "l2"


def measure(evidence, settings: Settings) -> dict:
    features = evidence.features.float()
    if settings.norm == "mean":
        return {"size": features.abs().sum(dim=(0, 1)), "count": features.shape[0] * features.shape[1]}
    return {"size": features.norm(dim=1).sum(dim=0), "count": features.shape[0]}


def features(sums, matrix, part, settings: Settings):
    return sums["size"] / float(sums["count"])


def score(sums, settings: Settings) -> float:
    return float(sums["importance"])
