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


def fit(case: Case) -> Fitted:
    found = case.findings
    steps = found.notes.setdefault("steps", [])
    scale = steps[-1]["scale_behind"] if steps else 1.0
    for stop in case.walk():
        if scale != 1.0:
            every = [weight for writer in stop.whole_writers() for weight in stop.weights(writer)]
            changes = edits("scale", torch.tensor(scale, dtype=torch.float64), every)
            stop.take(changes)
            found.patch |= changes
        if stop.gap:
            wanted = pruned = 0.0
            for look in stop.looks():
                wanted += float(look.wanted.double().norm(dim=-1).sum())
                pruned += float(look.after.double().norm(dim=-1).sum())
            if not wanted > 0:
                raise Refusal(f"layer {stop.index}: the stream behind the removed run is zero")
            scale = pruned / wanted  # in the units of the scaled layers, so it is the product over all gaps so far
            steps.append({"layer": stop.index, "scale_behind": scale})
    return Fitted(found.patch, {"steps": steps})
