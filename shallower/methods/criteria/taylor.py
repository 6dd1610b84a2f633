"""Taylor: the first-order change of the loss if the layer's weights were zero, taken weight by weight.

    I(n) = Σ_k Σ_ij | Σ_b W^{k,n}_ij · ∂L_b/∂W^{k,n}_ij |    over every parameter of layer n, norms and biases too

with b the calibration batches and Σ_b L_b the mean loss; the signed products are added over batches first, the absolute
value is taken after. With the first 4 and the last 2 layers protected this is Taylor+.

Source: Shortened LLaMA (arXiv 2402.02834); the order of sum and absolute value follows the authors' code.
"""

import torch

from ...walk.sums import absolute_sum

EVIDENCE = "gradients"


def measure(evidence) -> dict:
    product = evidence.weight.to(torch.float32, copy=True)
    return {"product": product.mul_(evidence.gradient)}


def condense(sums) -> dict:
    return {"importance": absolute_sum(sums["product"])}


def score(sums) -> float:
    return float(sums["importance"])
