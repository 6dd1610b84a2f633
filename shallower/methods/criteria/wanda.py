"""Wanda: the weights of a column times the size of what enters it, by the groups of a part (Wanda-sp).

    I(n) = Σ_j mean_i |W_ij| · ‖X_j‖₂    over the columns j of group n of a last product (o_proj, down_proj)

with ‖X_j‖₂² the mean over the samples of the squared norm over their tokens.

Experts count as one wide product, whose columns get zeros from tokens that are sent elsewhere (our reconstruction).

Source: Wanda (arXiv 2306.11695) as FLAP's authors (arXiv 2312.11983) make it structured, Wanda-sp; which mean is taken
follows their code. One-shot on the dense model, where theirs lets layer l+1 see the pruned layer l.
"""

EVIDENCE = "inputs"
POOL = "sum"


def measure(evidence) -> dict:
    features = evidence.features.float()
    return {"square": features.square().sum(dim=(0, 1)), "samples": features.shape[0]}


def features(sums, matrix, part):
    return matrix.float().abs().mean(dim=0).double().cpu() * (sums["square"] / sums["samples"]).sqrt()


def score(sums) -> float:
    return float(sums["importance"])
