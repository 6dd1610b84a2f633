"""Perplexity: how well the model predicts without the layer.

    I(n) = exp( mean NLL of the model with layer n removed )    over all predicted calibration tokens

All N removals are walked together, sharing what they have in common, so the cost is N(N+1)/2 layer forwards.

Source: Shortened LLaMA (arXiv 2402.02834), criterion PPL.
"""

import math

EVIDENCE = "losses"


def measure(evidence) -> dict:
    return {"nll": evidence.nll, "tokens": evidence.tokens}


def score(sums) -> float:
    return math.exp(min(700.0, float(sums["nll"] / sums["tokens"])))
