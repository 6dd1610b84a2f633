"""Linear: the down projection in front of each removed run also does, as far as a matrix can, what the run did.

    min_P  E ‖ h⁰_end - (h^p - m + P m) ‖²  +  λ ‖ P - I ‖²_F,    W_down ← P W_down,  b_down ← P b_down

with h^p the pruned stream behind the last layer in front of the run, m what its down projection adds, and h⁰_end the
dense stream at the end of the run. Runs are repaired in order, each on the streams that the repairs before it make;
λ is chosen by the pruned model's loss on held-out tokens.

Source: ReplaceMe (arXiv 2505.02819), place and target. Regularising towards the identity instead of towards zero, λ by
held-out loss, and several runs in order are our reconstruction.
"""

from dataclasses import dataclass

from ...repair.case import Case, Fitted, best_of, edits
from ...repair.ridge import GRID, Normal, map_of


@dataclass(frozen=True)
class Settings:
    strength: float = 0.0  # λ; 0 chooses


def fit(case: Case) -> Fitted:
    walk = case.walk()
    for step in walk:
        if not step.gap:
            continue
        writer = step.writers()[-1]
        normal = Normal()
        for batch in step.batches(writer):
            normal.add(batch.output, batch.wanted - batch.after)
        normal.all_sum()
        grid = [case.settings.strength] if case.settings.strength else GRID
        candidates = {strength: edits("map", map_of(normal, strength), step.weights(writer)) for strength in grid}
        _, loss, chosen, tried = best_of(case, (walk.patch, walk.state.loss), candidates.items())
        step.take(candidates.get(chosen, {}), loss)
        step.note(strength=chosen, tried=tried)
    return Fitted(walk.patch, {"steps": walk.notes})
