"""Linear: the down projection in front of each removed run also does, as far as a matrix can, what the run did.

    min_P  E ‖ h⁰_end - (h^p - m + P m) ‖²  +  λ ‖ P - I ‖²_F,    W_down ← P W_down,  b_down ← P b_down

with h^p the pruned stream behind the last layer in front of the run, m what its down projection adds, and h⁰_end the
dense stream at the end of the run. Runs are repaired in order, each on the streams that the repairs before it make;
λ is chosen by the pruned model's loss on held-out tokens.

With ``loss = cosine`` Adam begins at the chosen P and turns the stream towards the dense one, whatever its length:

    min_P  E [ 1 - cos(h⁰_end, h^p - m + P m) ]  +  λ s ‖ P - I ‖²_F / 2        s = E ‖ m ‖² / ‖ h⁰_end ‖² / width

in up to ten passes over the rows, of which 1 GiB at most is kept in memory: of more tokens an evenly spread part is
looked at. A pass that raises the objective is undone; held-out loss decides whether the result is taken.

Source: ReplaceMe (arXiv 2505.02819), place, target, and the cosine by Adam. Regularising towards the identity instead
of towards zero, λ by held-out loss, the start and end of Adam, and several runs in order are our reconstruction.
"""

from dataclasses import dataclass
from typing import Any, Literal

from ...anatomy.patch import Patch
from ...anatomy.writers import Writer
from ...errors import UserError
from ...repair.case import Case, Fitted, best_of, edits
from ...repair.cosine_map import PASSES, CosineMap, Map
from ...repair.paired import LayerStep
from ...repair.ridge import GRID, Normal, map_of
from ...runtime import distributed

Taken = tuple[Patch, float, dict[str, Any]]  # the change of a layer, the loss with it, and what is told of it


@dataclass(frozen=True)
class Settings:
    strength: float = 0.0  # λ; 0 chooses
    loss: Literal["squares", "cosine"] = "squares"
    seed: int = 0  # of the order of the rows


def fit(case: Case) -> Fitted:
    own: Settings = case.settings
    if own.loss == "cosine" and distributed.size() > 1:
        raise UserError("linear: loss=cosine goes over its rows in one process: start it without torchrun")
    walk = case.walk()
    for step in walk:
        if not step.gap:
            continue
        writer = step.writers()[-1]
        normal = Normal()
        rows = CosineMap(case.tokens.numel(), own.seed) if own.loss == "cosine" else None
        for batch in step.batches(writer):
            normal.add(batch.output, batch.wanted - batch.after)
            if rows is not None:
                rows.add(batch)
        normal.all_sum()
        grid = [own.strength] if own.strength else GRID
        maps = {strength: map_of(normal, strength) for strength in grid}
        change, loss, facts = _best(case, step, writer, maps)
        if rows is not None:
            best = min(facts["tried"], key=lambda one: one["loss"])["candidate"]
            change, loss, told = _cosine(case, step, writer, rows, (maps[best], best))
            facts = {"squares": facts["tried"], **told}
        step.take(change, loss)
        step.note(**facts)
    return Fitted(walk.patch, {"steps": walk.notes})


def _best(case: Case, step: LayerStep, writer: Writer, maps: dict[float, Map]) -> Taken:
    """That of these maps by λ with the lowest held-out loss, or none."""
    candidates = {strength: edits("map", found, step.weights(writer)) for strength, found in maps.items()}
    state = step.walk.state
    _, loss, chosen, tried = best_of(case, (state.patch, state.loss), candidates.items())
    return candidates.get(chosen, {}), loss, {"strength": chosen, "tried": tried}


def _cosine(case: Case, step: LayerStep, writer: Writer, rows: CosineMap, start: tuple[Map, float]) -> Taken:
    """The map that Adam makes of one of least squares, or none."""
    part = case.part.journal.part("cosine map", PASSES, f"layer {step.index}")
    found, curve = rows.lowered(*start, part, step.progress)
    change, loss, facts = _best(case, step, writer, {start[1]: found})
    return change, loss, facts | {"objective": curve}
