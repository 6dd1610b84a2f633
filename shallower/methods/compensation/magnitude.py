"""Magnitude: after each removed run one number restores the length of the stream that the layers behind it add to.

    α = E ‖ h⁰_end ‖ / E ‖ h^p ‖

with h^p the pruned stream in front of the gap and h⁰_end the dense one behind the run. The published form
multiplies by α all weights that write the stream in front of the gap, embedding included, and undoes it for a tied
head. Layers read the stream through norms that do not see its length, so dividing all that is written behind the gap
by α is the same model; it touches neither embedding nor head nor final norm. Several gaps multiply.

Source: Prune&Comp (arXiv 2507.18212); dividing behind the gap instead of multiplying in front of it is our
reconstruction.
"""

import torch

from ...errors import Refusal
from ...repair.case import Case, Fitted, edits
from ...runtime import distributed


def fit(case: Case) -> Fitted:
    walk = case.walk()
    for step in walk:
        scale = walk.notes[-1]["scale_behind"] if walk.notes else 1.0
        if scale != 1.0:
            every = [weight for writer in step.whole_writers() for weight in step.weights(writer)]
            step.take(edits("scale", torch.tensor(scale, dtype=torch.float64), every))
        if step.gap:
            lengths = torch.zeros(2, dtype=torch.float64)
            for batch in step.batches():
                both = (float(stream.double().norm(dim=-1).sum()) for stream in (batch.wanted, batch.after))
                lengths += torch.tensor([*both], dtype=torch.float64)
            wanted, pruned = distributed.all_sum(lengths).tolist()
            if not wanted > 0:
                raise Refusal(f"layer {step.index}: the stream behind the removed run is zero")
            step.note(scale_behind=pruned / wanted)  # of scaled layers, so it is the product over all gaps so far
    return Fitted(walk.patch, {"steps": walk.notes})
