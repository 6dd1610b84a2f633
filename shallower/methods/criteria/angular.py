"""Angular distance: how far a run of layers turns the stream at the last token.

    d(s, n) = E_samples[ arccos( cos(h_s, h_{s+n}) ) / π ]    at the last position of each sample

Every run of every length is measured in one pass; a layer's score is the run of length 1, and the selection ``window``
removes the run with the smallest angle.

Source: The Unreasonable Ineffectiveness of the Deeper Layers (arXiv 2403.17887).
"""

import math

from torch.nn.functional import cosine_similarity

EVIDENCE = "streams"
SPANS = True
POSITIONS = "last"


def measure(evidence) -> dict:
    cosine = cosine_similarity(evidence.before.double(), evidence.after.double(), dim=-1).clamp(-1, 1)
    return {"angle": cosine.arccos().sum() / math.pi, "samples": cosine.numel()}


def score(sums) -> float:
    return float(sums["angle"] / sums["samples"])
