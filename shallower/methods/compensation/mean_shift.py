"""Mean shift: a bias on the down projection of the layer whose mean stream moved furthest moves the mean back, and no
more.

    b_down ← b_down + E[h⁰_l*] - E[h^p_l*],    l* = argmax_l ‖ E[h^p_l] - E[h⁰_l] ‖₂

with h⁰, h^p the streams behind retained layer l in the dense and the pruned model. Only for architectures whose down
projections have biases: a plain checkpoint of another has no place for one. It refuses at the first layer without.

Source: ours, the ablation of the projection of GradMAP (arXiv 2602.14649).
"""

from ...errors import Refusal
from ...repair.case import Case, Fitted, best_of, edits
from ...repair.drift import DriftSums


def fit(case: Case) -> Fitted:
    walk = case.walk()
    for step in walk:
        if not step.touched:
            continue
        writer = step.writers()[-1]
        bias = step.bias(writer)
        if bias is None:
            raise Refusal(
                f"layer {step.index}: {writer.module} has no bias, and a checkpoint of this architecture has "
                "no place for one: "
                "use projection, linear or sequential"
            )
        drift = DriftSums()
        for batch in step.batches():
            drift.add(batch)
        drift.all_sum()
        difference = (drift.same - drift.pruned) / drift.count / writer.scale
        step.note({"difference": difference}, shift=drift.of(step.index).shift, bias=bias)
        walk.state.keep_largest("shift", 1)
    if not walk.notes:
        raise Refusal("no retained layer follows a removed one, so nothing has moved")
    moved = walk.notes[0]
    change = edits("add", walk.sums(moved, "difference"), [(moved["bias"], 0)])
    patch, _, chosen, tried = best_of(case, ({}, None), [(moved["layer"], change)])
    notes = {"layer": moved["layer"], "shift": moved["shift"], "taken": chosen is not None, "tried": tried}
    return Fitted(patch, notes)
