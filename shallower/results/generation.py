"""Generation figures for people, and as results by prompt that can be held against others."""

from pathlib import Path

from ..artifacts import Agreement, Draft, TaskResult
from ..evaluation.agreement import FIRST

FIGURES = {  # column -> (its value on one prompt, whether lower is better)
    "divergence": (lambda item: item.divergence / max(1, item.tokens), True),
    "first token": (lambda item: float(item.first), False),
    f"first {FIRST}": (lambda item: item.common, False),
    "repetition": (lambda item: float(item.repeats), True),
}


def agreement_lines(found: Agreement) -> list[str]:
    """The figures of an agreement in two sentences."""
    return [
        f"against {Path(found.against).name} on {found.count} prompts: KL {found.divergence:.4f} nats per token of its "
        f"answers, of which {found.next_token:.0%} are the likeliest here too; {found.first_token:.0%} of the answers "
        f"begin with the same token, and {found.first_32:.0%} of their first {FIRST} tokens are the same up to the "
        "first that differs",
        f"{found.repetition:.0%} of the answers end in repetition ({found.dense_repetition:.0%} of those of "
        f"{Path(found.against).name}; {found.longest} tokens at most)",
    ]


def draft_lines(found: Draft) -> list[str]:
    """The figures of a draft in two sentences."""
    tied = f", {found.tied} part from it where two tokens are equally likely up to rounding" if found.tied else ""
    return [
        f"as a draft of {Path(found.target).name}: {found.acceptance_length:.2f} tokens per pass with "
        f"{found.draft_tokens} drafted, {found.tokens_per_second:.1f} tokens/s against "
        f"{found.plain_tokens_per_second:.1f} alone (x {found.speedup:.2f}, median of {found.prompts} prompts)",
        f"{found.identical} of {found.prompts} answers are token by token those that it writes alone{tied}",
    ]


def by_prompt(found: Agreement) -> dict[str, TaskResult]:
    """Column -> the figure with its value on every prompt; equal hashes may be held against each other."""
    about = {"count": found.count, "hash": f"{found.prompts} {found.fingerprint} {found.longest} {found.template}"}
    return {
        name: TaskResult(
            value=sum(values) / len(values),
            metric="loss" if lower else "agreement",
            items=values,
            **about,
        )
        for name, (value, lower) in FIGURES.items()
        if (values := [value(item) for item in found.items])
    }
