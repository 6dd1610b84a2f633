"""Section on the importance of every layer."""

from collections.abc import Sequence

from ...artifacts import Scores, Units
from ...results.summary import Summary, gigabytes, seconds, settings_of, tokens_used
from ..figures import groups_figure, importance_figure
from ..page import Box, Figure, Section, Text, figure_name


def section(summary: Summary) -> Section | None:
    """Importance per layer, a figure for each set of scores."""
    all_scores = summary.collection.of("scores")
    figures = [_figure(summary, item.record, number) for number, item in enumerate(all_scores, 1)]
    note = "The lower a layer's score, the less the criterion says it is needed."
    main = summary.main
    if main:  # other criteria would choose other layers
        went = "went" if main.pruned else "would go"
        what = "the share of groups" if any(item.record.narrow for item in all_scores) else "the layers"
        by = main.plan.criterion or main.plan.selection
        note += f" Orange: {what} that {went} by {main.name}, chosen by {by}, in the pictures of all criteria."
    return Section("Importance per layer", [Text(note, "note"), Box(figures, "pair")]) if figures else None


def _figure(summary: Summary, scores: Scores, number: int) -> Figure:
    main = summary.main
    removed: Sequence[int] = ()
    if main and scores.model.original == summary.root.original:
        units = Units.named(scores.units, scores.model.layer_parameters)
        removed = sorted(set(range(len(units))) - set(units.stays(main.removal)))
    settings = f" ({settings_of(scores.settings)})" if scores.settings else ""
    tokens = f"{tokens_used(scores.calibration)}; " if scores.calibration else ""
    cost = f"{seconds(scores.seconds)}, peak memory {gigabytes(scores.peak_memory_bytes)}"
    draw = groups_figure if scores.narrow else importance_figure
    drawing = draw(figure_name("importance", number), scores, removed)
    return Figure(drawing, f"{scores.criterion}{settings}: {tokens}{cost}.")
