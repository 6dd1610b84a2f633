"""Projection: one matrix, folded into the down projection of the layer whose mean stream moved furthest, moves it back.

    shift(l) = ‖ E[h^p_l] - E[h⁰_l] ‖₂,    l* = argmax_l shift(l)    (relative: as a share of ‖ E[h⁰_l] ‖₂)
    min_P  E ‖ h⁰ - (h^p - m + P m) ‖²  +  λ ‖ P - I ‖²_F,    W_down ← P W_down,  b_down ← P b_down

with h⁰, h^p the streams behind retained layer l in the dense and the pruned model and m what the down projection
adds in the pruned one. Solved in closed form from sums; λ is relative to the mean diagonal of E[mᵀm] and chosen by the
pruned model's loss on held-out tokens. With ``top_k`` the layers follow in the order of their shift, each taken only
if it helps.

Source: GradMAP (arXiv 2602.14649), of which only the idea is public: largest mean shift, one projection matrix, MSE
plus regularisation, folded into the down projection. The formulas and the choice of λ are our reconstruction.
"""

from dataclasses import dataclass
from typing import Literal

from ...errors import Refusal
from ...repair.case import Case, Fitted, best_of, edits
from ...repair.drift import DriftSums
from ...repair.ridge import GRID, Normal, map_of


@dataclass(frozen=True)
class Settings:
    shift: Literal["absolute", "relative"] = "absolute"
    top_k: int = 1
    strength: float = 0.0  # λ; 0 chooses


def fit(case: Case) -> Fitted:
    walk = case.walk()
    for step in walk:
        if not step.touched:
            continue
        try:
            writer = step.writers()[-1]
        except Refusal as refusal:
            step.note(refused=str(refusal))
            continue
        normal = Normal()
        drift = DriftSums()
        for batch in step.batches(writer):
            normal.add(batch.output, batch.same - batch.after)
            drift.add(batch)
        normal.all_sum()
        moved = drift.all_sum().of(step.index)
        size = moved.shift if case.settings.shift == "absolute" else moved.relative_shift
        sums = {"left": normal.left, "right": normal.right}
        step.note(sums, shift=size, weights=[list(weight) for weight in step.weights(writer)])
        walk.state.keep_largest("shift", max(1, case.settings.top_k))  # no more sums than needed
    refused = {str(note["layer"]): note["refused"] for note in walk.notes if "refused" in note}
    best = sorted((note for note in walk.notes if "shift" in note), key=lambda note: (-note["shift"], note["layer"]))
    if not best:
        raise Refusal(next(iter(refused.values()), "no retained layer follows a removed one, so nothing has moved"))
    patch = {}
    loss = None
    steps = []
    for note in best:
        normal = Normal(walk.sums(note, "left"), walk.sums(note, "right"))
        weights = note["weights"]
        grid = [case.settings.strength] if case.settings.strength else GRID
        candidates = ((strength, edits("map", map_of(normal, strength), weights)) for strength in grid)
        patch, loss, chosen, tried = best_of(case, (patch, loss), candidates)
        steps.append({"layer": note["layer"], "shift": note["shift"], "strength": chosen, "tried": tried})
    return Fitted(patch, {"steps": steps, "refused": refused})
