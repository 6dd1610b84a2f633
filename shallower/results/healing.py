"""Healing and repair figures, read from the artifact.

Losses, perplexities, the gap to the dense model that was closed.
"""

import math
from pathlib import Path

from ..artifacts import Healing, HeldOutLoss

LARGEST_LOSS = 99.0  # nats; beyond them a perplexity is no number that anybody compares


def perplexity_times(loss: HeldOutLoss) -> tuple[float, float]:
    """Perplexity before and after a repair as multiples of the dense model's, from the losses."""
    before, after = (math.exp(min(one - loss.dense, LARGEST_LOSS)) for one in (loss.before, loss.after))
    return before, after


def losses(healing: Healing) -> tuple[float, float]:
    """Means of the training loss over the first and the last tenth of the steps, in nats."""
    values = [row.loss for row in healing.rows if row.loss is not None]
    part = max(1, len(values) // 10)
    return sum(values[:part]) / part, sum(values[-part:]) / part


def own_answers(healing: Healing) -> str:
    """What was trained on of the unpruned model's own answers, in words; nothing where there are none."""
    told = healing.data.answers
    if told is None:
        return ""
    drawn = f"temperature {told.temperature:g}, seed {told.seed}" if told.temperature else "the likeliest tokens"
    return (
        f"{told.answers:,} answers of {Path(told.teacher).name} in its own words, {told.tokens:,} tokens ({drawn}, at "
        f"most {told.longest}; {told.cut:,} cut there, {told.empty:,} empty ones left out)"
    )


def perplexities(healing: Healing, control: bool = False) -> dict[str, list[tuple[int, float]]]:
    """Text -> (step, perplexity) wherever it was measured, of the healed model or of the control."""
    rows = (healing.control or ()) if control else healing.rows
    evaluations = [(row.step, row.eval) for row in rows if row.eval]
    names = evaluations[0][1] if evaluations else ()
    return {name: [(step, one[name].value) for step, one in evaluations if name in one] for name in names}


def gaps(healing: Healing) -> dict[str, tuple[float, float]]:
    """Text -> how much of the gap in log-perplexity to the dense model is closed.

    To it as it was, and to it trained the same.
    """
    shares = {}
    control = perplexities(healing, control=True)
    for name, values in perplexities(healing).items():
        if name in control:
            (before, after), (plain, trained) = (
                [math.log(one[at][1]) for at in (0, -1)] for one in (values, control[name])
            )
            if before > plain:
                shares[name] = (before - after) / (before - plain), 1 - (after - trained) / (before - plain)
    return shares


def gap_closed(healing: Healing, name: str) -> str:
    """That in words; nothing where there is no control."""
    if name not in gaps(healing):
        return ""
    plain, trained = gaps(healing)[name]
    return f"{plain:.0%} of the gap to the dense model, {trained:.0%} of it when that is trained on the same tokens"
