"""Block Influence: a layer that hardly turns the stream matters little.

    BI(n) = 1 - E_tokens[ cos(h_n, h_{n+1}) ]    with h_n the stream before layer n, h_{n+1} after it

Source: ShortGPT (arXiv 2403.03853).
"""

from torch.nn.functional import cosine_similarity

EVIDENCE = "streams"


def measure(evidence) -> dict:
    cosine = cosine_similarity(evidence.before.double(), evidence.after.double(), dim=-1)
    return {"cosine": cosine.sum(), "tokens": cosine.numel()}


def score(sums) -> float:
    return float(1 - sums["cosine"] / sums["tokens"])
