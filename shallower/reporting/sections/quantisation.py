"""Section on quantisation: how models were rounded to few bits, and what that cost on held-out samples."""

from ...artifacts import Quantised
from ...results.summary import Summary, seconds, tokens_used
from ...runtime.format import byte_count
from ..page import Block, Facts, Section, Text


def section(summary: Summary) -> Section | None:
    """Every quantised model under its method and path."""
    parts: list[Block] = []
    for paths, item in summary.collection.distinct("quantised").items():
        parts += [Text(f"{item.record.method}, {paths}", "heading"), _facts(item.record)]
    return Section("Quantisation", parts) if parts else None


def _facts(quantised: Quantised) -> Facts:
    proof = quantised.proof
    before, after = quantised.weight_bytes_before, quantised.weight_bytes
    return Facts(
        {
            "rounded": f"{quantised.projections} projections to {quantised.bits} bits in groups of "
            f"{quantised.group_size}, the rest stored in {quantised.dtype}",
            "weights": f"{byte_count(before)} → {byte_count(after)}",
            "on": f"{tokens_used(quantised.calibration)}, {quantised.fitted_tokens} tokens of them fitted on",
            "against the model before": f"KL {proof.divergence:.3g} nats per token, perplexity "
            f"{proof.perplexity_before:.2f} → {proof.perplexity_after:.2f} (×{proof.ratio:.3f}), the same likeliest "
            f"token behind {proof.same_next:.0%} of {proof.tokens} held-out tokens",
            "files": f"reloaded with plain weights by {proof.by}",
            "cost": seconds(quantised.seconds),
        }
    )
