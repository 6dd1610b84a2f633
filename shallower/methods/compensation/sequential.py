"""Sequential: layer by layer, what writes the stream is fitted anew, so that the pruned model writes the dense
stream.

    min_D  E w ‖ h⁰ - h^p - s D x ‖²  +  λ ‖ D ‖²_F,    W ← W + D        w = 1 / ‖ h⁰ ‖²

with x what enters the down projection W (whose output is scaled by s on its way) in the model repaired so far, h^p the
stream behind it, and h⁰ the dense stream in front of the next retained layer: before a gap that is the end of the
gap, as in linear. Each layer sees what the repaired ones before it make. With ``attention`` the writers in front of
the last are fitted first, to the dense stream in the middle of the layer. For a writer that is no plain product
(experts) it is a map; where a norm stands behind the product (Gemma 2 and 3, OLMo 2) one factor per feature, which the
norm's gain takes: x is then the normed stream and D diagonal.

λ is relative to the mean diagonal of the sums. With ``accept = end`` one λ (0.3) serves all layers in a single reading
of the weights; held-out loss decides whether the first few of the fits are taken, all, all at half strength, or none.
With ``layer`` each fit is taken with the λ that gives the rest of the model, run to its end, the lowest held-out loss,
or not.

Source: ours; the target at gaps is that of ReplaceMe (arXiv 2505.02819).
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from ...anatomy.patch import Patch
from ...anatomy.writers import Writer
from ...repair.case import Case, Fitted, at_first, best_of
from ...repair.paired import LayerStep
from ...repair.suffix import SuffixLoss
from ...repair.writer_fit import WriterFit

FITS = "inputs"  # of the writers; other methods solve for the features of the stream
STRENGTHS = (0.1, 0.3, 1.0)  # λ
SHARES = (0.0, 0.125, 0.25, 0.5, 0.75, 1.0)  # of the fits


@dataclass(frozen=True)
class Settings:
    attention: bool = True
    accept: Literal["end", "layer"] = "end"
    strength: float = 0.0  # λ; 0 chooses


def fit(case: Case) -> Fitted:
    own = case.settings
    tail = case.tail() if own.accept == "layer" else None
    walk = case.walk(middles=own.attention, gains=True)
    for step in walk:
        if step.touched:
            for writer, fits in fits_of(step, own, STRENGTHS if tail else STRENGTHS[1:2]):
                step.note(writer=writer.module, **_take(step, fits, tail))
        if tail is not None:
            tail.pass_on(step.index, walk.patch)
    if tail is not None:
        return Fitted(walk.patch, {"steps": walk.notes})
    patch, _, chosen, tried = best_of(case, ({}, None), at_first(walk.patch, SHARES))
    return Fitted(patch, {"steps": [*walk.notes, {"taken": chosen, "tried": tried}]})


def fits_of(
    step: LayerStep, own: Settings, strengths: tuple[float, ...]
) -> Iterator[tuple[Writer, dict[float, Patch]]]:
    """The writers of a layer that are fitted, in order, with the changes by λ; the one before is taken first."""
    writers = step.writers()
    grid = (own.strength,) if own.strength else strengths
    for place in range(0 if own.attention else len(writers) - 1, len(writers)):
        yield writers[place], _fits(step, writers[: place + 1], grid)


def _fits(step: LayerStep, writers: tuple[Writer, ...], grid: tuple[float, ...]) -> dict[float, Patch]:
    """λ -> the change of the last of these writers that it gives."""
    fit = WriterFit(writers[-1])
    for batch in step.batches(*writers):
        fit.add(batch.features, batch.output, batch.reached, batch.target)
    fit.all_sum()
    module = step.walk.model.module
    return {strength: fit.patch(strength, step.weights(writers[-1]), module) for strength in grid}


def _take(step: LayerStep, fits: dict[float, Patch], tail: SuffixLoss | None) -> dict:
    """Change the layer as the held-out loss says, or, where it is asked at the end only, by the one fit there is."""
    if tail is None:
        step.take(next(iter(fits.values())))
        return {"strength": next(iter(fits))}
    losses = {strength: tail.loss(step.index, step.patch | patch) for strength, patch in fits.items()}
    before = tail.loss(step.index, step.patch)
    best = min(losses, key=losses.get)
    best = best if losses[best] < before else None
    step.take(fits.get(best, {}))
    return {"strength": best, "loss_before": before, "losses": losses}
