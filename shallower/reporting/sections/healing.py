"""Section on healing by training: how models were trained further, and the losses meanwhile."""

from pathlib import Path

from ...artifacts import Healing
from ...results.healing import gap_closed, gaps, losses, perplexities
from ...results.summary import Summary, gigabytes, seconds, settings_of
from ...runtime.format import millions
from ..figures import learning_figure, progress
from ..page import Box, Facts, Figure, Part, Section, Text, numbered

CAPTION = "Mean NLL of the next token: on what is trained on, and on texts that are not."


def section(summary: Summary) -> Section | None:
    """All healed models side by side, then every one under its method and path."""
    parts: list[Part] = [*_beside(summary)]
    for number, item in enumerate(summary.collection.of("healing"), 1):
        figure = Figure(learning_figure(item.record, numbered("healing", number)), CAPTION)
        parts += [Text(f"{item.record.method}, {item.path}", "heading"), Box([figure, _trained(item.record)], "pair")]
    return Section("Healing by training", parts) if parts else None


def _beside(summary: Summary) -> list[Box]:
    """All healed models in one figure, against tokens and against seconds, for every text that two of them were
    measured on.
    """
    items = [
        (f"{item.record.method}, {Path(item.path).parent}", item.record) for item in summary.collection.of("healing")
    ]
    texts = dict.fromkeys(name for _, found in items for name in perplexities(found))
    parts: list[Box] = []
    for text in texts:
        both = [(label, found) for label, found in items if text in perplexities(found)]
        if len(both) > 1:
            names = {by: numbered(f"healing-{by}", len(parts) + 1) for by in ("tokens", "seconds")}
            drawn = (progress(both, text, by, name) for by, name in names.items())
            parts.append(Box([Figure(one, f"Perplexity of {text} by what it cost.") for one in drawn], "pair"))
    return parts


def _trained(found: Healing) -> Facts:
    first, last = losses(found)
    curves = perplexities(found).items()
    return Facts(
        {
            "taught by": found.teacher,
            "trained": f"{millions(found.trained_parameters)} of {millions(found.model.parameters)} parameters",
            "on": f"{millions(found.train_tokens)} tokens of {found.data.source}, {found.steps} steps",
            "training loss": f"{first:.4f} → {last:.4f} nats, first and last tenth of the steps",
            **{f"perplexity {name}": f"{curve[0][1]:.2f} → {curve[-1][1]:.2f}" for name, curve in curves},
            **{f"gap closed, {name}": gap_closed(found, name) for name in gaps(found)},
            "settings": settings_of(found.settings),
            "files": f"reloaded from disk, logits equal {found.reloaded.logits} to the trained model's",
            "cost": f"{seconds(found.seconds)}, peak memory {gigabytes(found.peak_memory_bytes)}, {found.dtype}",
        }
    )
