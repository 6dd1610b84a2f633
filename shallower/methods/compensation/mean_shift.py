"""Mean shift: a bias on the down projection of the layer whose mean stream moved furthest moves the mean back, and no
more.

    b_down ← b_down + E[h⁰_l*] - E[h^p_l*],    l* = argmax_l ‖ E[h^p_l] - E[h⁰_l] ‖₂

with h⁰, h^p the streams behind retained layer l in the dense and the pruned model. Only for architectures whose down
projections have biases: a plain checkpoint of another has no place for one. It refuses at the first layer without.

Source: ours, the ablation of the projection of GradMAP (arXiv 2602.14649).
"""

from ...errors import Refusal
from ...repair.case import Case, Fitted, best_of, edits
from ...repair.paired import DriftSums


def fit(case: Case) -> Fitted:
    found = case.findings
    for stop in case.walk():
        if not stop.touched:
            continue
        writer = stop.writers()[-1]
        bias = stop.bias(writer)
        if bias is None:
            raise Refusal(
                f"layer {stop.index}: {writer.module} has no bias, and a checkpoint of this architecture has "
                "no place for one: "
                "use projection, linear or sequential"
            )
        drift = DriftSums()
        for look in stop.looks():
            drift.add(look)
        moved = drift.of(stop.index)
        if moved.shift > found.notes.get("shift", -1.0):
            found.notes |= {"layer": moved.layer, "shift": moved.shift, "bias": bias}
            found.tensors["difference"] = (drift.same - drift.pruned) / drift.count / writer.scale
    if "bias" not in found.notes:
        raise Refusal("no retained layer follows a removed one, so nothing has moved")
    layer, shift, bias = (found.notes[name] for name in ("layer", "shift", "bias"))
    patch, _, chosen, tried = best_of(
        case, ({}, case.before), [(layer, edits("add", found.tensors["difference"], [(bias, 0)]))]
    )
    return Fitted(patch, {"layer": layer, "shift": shift, "taken": chosen is not None, "tried": tried})
