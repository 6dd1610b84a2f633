"""Training schedule: a token budget becomes steps, a batch and a learning rate per step."""

import math
from dataclasses import dataclass, replace

from ..artifacts import Recipe

PAPER_STEPS = 2000  # a budget that gives fewer steps of the recipe's batch gets a smaller batch
LEAST_BATCH = 2048  # tokens; below that the gradient is mostly noise
WARMUP_SHARE = 0.05


@dataclass(frozen=True)
class Schedule:
    """The recipe fitted to a token budget: ``steps`` batches of ``batch`` sequences of ``length`` tokens."""

    recipe: Recipe
    steps: int
    batch: int
    length: int

    def lr(self, step: int) -> float:
        """The learning rate of a step, counted from 0; the warm-up's first step is above zero."""
        recipe = self.recipe
        if step < recipe.warmup:
            return recipe.lr * (step + 1) / recipe.warmup
        done = (step - recipe.warmup) / max(1, self.steps - recipe.warmup)
        left = 1 - done if recipe.schedule == "linear" else (1 + math.cos(math.pi * done)) / 2
        return recipe.lr * (recipe.floor + (1 - recipe.floor) * left)


def fit_schedule(
    recipe: Recipe, tokens: int, length: int, batch_tokens: int | None = None
) -> tuple[Schedule, list[str]]:
    """The schedule for a budget, and what was changed of the recipe.

    Args:
        tokens: to train on, repetitions counted.
        length: tokens per sequence.
        batch_tokens: tokens of the global batch; None: the recipe's, or less where the budget is small.
    """
    changes = []
    batch = max(1, (batch_tokens or recipe.batch_tokens) // length)
    if batch_tokens is None and tokens < PAPER_STEPS * recipe.batch_tokens:
        batch = max(1, min(batch, max(tokens // PAPER_STEPS, LEAST_BATCH) // length))
        if batch * length < recipe.batch_tokens // length * length:
            changes.append(
                f"batch {batch * length} tokens (the recipe's {recipe.batch_tokens} would give fewer than "
                f"{PAPER_STEPS} steps)"
            )
    steps = math.ceil(tokens / (batch * length))
    if steps < PAPER_STEPS and recipe.warmup > WARMUP_SHARE * steps:
        warmup = math.ceil(WARMUP_SHARE * steps)
        changes.append(
            f"warm-up {warmup} steps (the recipe's {recipe.warmup} are more than {WARMUP_SHARE:.0%} of {steps})"
        )
        recipe = replace(recipe, warmup=warmup)
    return Schedule(recipe, steps, batch, length), changes
