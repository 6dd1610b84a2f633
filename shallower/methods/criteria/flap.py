"""FLAP: how much what enters a column varies, times the column's weights; standardised in each part.

    I(n) = mean_j (S_j - mean S) / std S    over the columns j of group n of a last product (o_proj, down_proj)
    with S_j = Var(X_j) · ‖W_:j‖²₂, in attentions squared, and mean and std over the part

so that the groups of all layers can be held against each other (selection ``standardised``). What does not vary can be
given back by a bias (compensation ``bias``).

Experts count as one wide product, whose columns get zeros from tokens that are sent elsewhere (our reconstruction).

Source: FLAP (arXiv 2312.11983), metric WIFV; the square in attentions and the standardising before the mean over a
head's channels follow the authors' code. The variance is over all tokens.
"""

from ...artifacts.removal import ATTENTION

EVIDENCE = "inputs"
POOL = "mean"


def measure(evidence) -> dict:
    features = evidence.features.double()
    return {
        "square": features.square().sum(dim=(0, 1)),
        "sum": features.sum(dim=(0, 1)),
        "tokens": features.shape[0] * features.shape[1],
    }


def features(sums, matrix, part):
    count = float(sums["tokens"])
    variance = (sums["square"] - sums["sum"].square() / count) / max(1.0, count - 1)
    values = variance.clamp_min(0) * matrix.float().square().sum(dim=0).double().cpu()
    values = values.square() if part == ATTENTION else values
    return (values - values.mean()) / values.std().clamp_min(1e-300)


def score(sums) -> float:
    return float(sums["importance"])
