"""Section on healing by training: how models were trained further, and the losses meanwhile."""

from pathlib import Path

from ...artifacts import Healing
from ...results.healing import gap_closed, gaps, losses, own_answers, perplexities
from ...results.summary import Summary, gigabytes, seconds, settings_of
from ...runtime.format import millions
from ..figures import learning_figure, progress_figure
from ..page import Block, Box, Facts, Figure, Section, Text, figure_name

CAPTION = "Mean NLL of the next token: on what is trained on, and on texts that are not."


def section(summary: Summary) -> Section | None:
    """All healed models side by side, then every one under its method and path."""
    parts: list[Block] = [*_side_by_side(summary)]
    for number, (paths, item) in enumerate(summary.collection.distinct("healing").items(), 1):
        figure = Figure(learning_figure(item.record, figure_name("healing", number)), CAPTION)
        parts += [Text(f"{item.record.method}, {paths}", "heading"), Box([figure, _facts(item.record)], "pair")]
    return Section("Healing by training", parts) if parts else None


def _side_by_side(summary: Summary) -> list[Box]:
    """All healed models in one figure, against tokens and against seconds, for every text that two of them were
    measured on.
    """
    items = [
        (f"{item.record.method}, {Path(item.path).parent}", item.record)
        for item in summary.collection.distinct("healing").values()
    ]
    texts = dict.fromkeys(name for _, healing in items for name in perplexities(healing))
    parts: list[Box] = []
    for text in texts:
        healings = [(label, healing) for label, healing in items if text in perplexities(healing)]
        if len(healings) > 1:
            names = {by: figure_name(f"healing-{by}", len(parts) + 1) for by in ("tokens", "seconds")}
            drawings = (progress_figure(healings, text, by, name) for by, name in names.items())
            caption = f"Perplexity of {text} by what it cost."
            parts.append(Box([Figure(drawing, caption) for drawing in drawings], "pair"))
    return parts


def _facts(healing: Healing) -> Facts:
    first, last = losses(healing)
    curves = perplexities(healing).items()
    return Facts(
        {
            "taught by": healing.teacher,
            "trained": f"{millions(healing.trained_parameters)} of {millions(healing.model.parameters)} parameters",
            "on": f"{millions(healing.train_tokens)} tokens of {healing.data.source}, {healing.steps} steps",
            "answers": own_answers(healing),
            "training loss": f"{first:.4f} → {last:.4f} nats, first and last tenth of the steps",
            **{f"perplexity {name}": f"{curve[0][1]:.2f} → {curve[-1][1]:.2f}" for name, curve in curves},
            **{f"gap closed, {name}": gap_closed(healing, name) for name in gaps(healing)},
            "settings": settings_of(healing.settings),
            "files": f"reloaded from disk, logits equal {healing.reloaded.logits} to the trained model's",
            "cost": f"{seconds(healing.seconds)}, peak memory {gigabytes(healing.peak_memory_bytes)}, {healing.dtype}",
        }
    )
