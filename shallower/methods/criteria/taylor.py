"""Taylor: the first-order change of the loss if the layer's weights were zero, taken weight by weight.

    I(n) = Σ_k Σ_ij | Σ_b W^{k,n}_ij · ∂L_b/∂W^{k,n}_ij |    over every parameter of layer n, norms and biases too

with b the calibration batches and Σ_b L_b the mean loss; the signed products are added over batches first, the absolute
value is taken after. With the first 4 and the last 2 layers protected this is Taylor+.

With ``--units width`` it scores groups, over the rows and columns that are coupled: ``element`` adds | w g | over all
their weights, ``vector`` | Σ w g | over their rows and columns, ``mix`` | w g - ½ w F w |, with g the gradient of the
mean loss and F the mean over the samples of the squares of theirs.

Source: Shortened LLaMA (arXiv 2402.02834); the order of sum and absolute value follows the authors' code. Groups:
LLM-Pruner (arXiv 2305.11627); that ``vector`` takes the absolute value row by row follows the authors' code, and F
comes from batches where these are larger than a sample (our reconstruction).
"""

from dataclasses import dataclass
from typing import Literal

import torch

from ...walk.sums import absolute_sum

EVIDENCE = "gradients"


@dataclass(frozen=True)
class Settings:
    group: Literal["element", "vector", "mix"] = "element"


def single_samples(settings: Settings) -> bool:
    return settings.group == "mix"


def measure(evidence, settings: Settings) -> dict:
    product = evidence.weight.to(torch.float32, copy=True).mul_(evidence.gradient)
    if settings.group != "mix":
        return {"product": product}
    gradient = evidence.gradient.float()
    return {"product": product, "curved": evidence.weight.float().square() * gradient.square(), "batches": 1}


def condense(sums, settings: Settings) -> dict:
    return {"importance": absolute_sum(_values(sums, settings))}


def places(sums, others, settings: Settings) -> dict:
    values = _values(sums, settings)
    if settings.group == "vector":
        return {"importance": values.sum(dim=others).abs()}
    return {"importance": values.abs().sum(dim=others)}


def _values(sums, settings: Settings):
    """The signed change of every weight. A batch's gradient is its share of the mean loss's: times their number it is
    that of its own mean.
    """
    if settings.group != "mix":
        return sums["product"]
    return sums["product"] - 0.5 * float(sums["batches"]) * sums["curved"]


def score(sums, settings: Settings) -> float:
    return float(sums["importance"])
