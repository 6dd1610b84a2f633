"""Gate: the first-order change of the loss when the layer's contribution is switched off.

    I(n) = - Σ_tokens ⟨ ∂L/∂h_{n+1}, h_{n+1} - h_n ⟩    with h_n the stream before layer n, h_{n+1} after it

Think of the layer as h + g · (layer(h) - h): this is the loss at g = 0 less the loss at g = 1, to first order. The sign
counts: a layer whose switching off lowers the loss scores below zero. One backward, no gradient of any weight.

Source: ours.
"""

EVIDENCE = "flows"


def measure(evidence) -> dict:
    contribution = (evidence.after - evidence.before).double()
    return {"change": -(evidence.gradient.double() * contribution).sum()}


def score(sums) -> float:
    return float(sums["change"])
