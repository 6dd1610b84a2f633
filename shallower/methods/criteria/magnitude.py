"""Magnitude: layers whose weights are small matter least.

    I(n) = Σ_k Σ_ij |W^{k,n}_ij|    over every parameter of layer n, norms and biases too; no data.

Source: Shortened LLaMA (arXiv 2402.02834), criterion Mag; which parameters count follows the authors' code.
"""

EVIDENCE = "weights"


def measure(evidence) -> dict:
    return {"absolute": sum(weight.abs().double().sum() for weight in evidence.weights.values())}


def places(sums, others) -> dict:
    return {"importance": sums["weight"].abs().double().sum(dim=others)}


def score(sums) -> float:
    return float(sums["absolute"])
