"""Section on the repair of what is left: what it changed, and the drift of the stream before and after."""

from ...artifacts import Compensation, HeldOutLoss
from ...results.healing import perplexity_times
from ...results.summary import Summary, gigabytes, seconds, settings_of, tokens_used
from ..figures import drift_figure, local_curves_figure, trained_layers_figure
from ..page import Block, Box, Facts, Figure, Section, Text, figure_name

CAPTION = (
    "The stream behind each retained layer, on held-out tokens; where it is equal to the dense one nothing is drawn."
)


TRAINED = "Where the stream should be is what the dense model has in front of the next retained layer."
CURVES = "The layers with the most steps; the weights with the least error are kept."


def section(summary: Summary) -> Section | None:
    """Every repair under its method and path."""
    parts: list[Block] = []
    for number, (paths, item) in enumerate(summary.collection.distinct("compensation").items(), 1):
        figure = Figure(drift_figure(item.record, figure_name("repair", number)), CAPTION)
        parts += [Text(f"{item.record.method}, {paths}", "heading"), Box([figure, _details(item.record)], "pair")]
        parts += _training(item.record, number)
    return Section("Repair", parts) if parts else None


def _training(compensation: Compensation, number: int) -> list[Block]:
    """What local training made of each layer, where there was any."""
    if not any(one.curve for one in compensation.trained):
        return []
    layers = trained_layers_figure(compensation, figure_name("trained-layers", number))
    curves = local_curves_figure(compensation, figure_name("local-training", number))
    return [Box([Figure(layers, TRAINED), Figure(curves, CURVES)], "pair")]


def _details(compensation: Compensation) -> Box:
    names = (
        Box([Text(", ".join(compensation.changed))], "details", "the changed weights") if compensation.changed else None
    )
    return Box([_facts(compensation), names])


def _facts(compensation: Compensation) -> Facts:
    loss = compensation.loss
    dense, before, after = loss.dense, loss.before, loss.after
    several = compensation.by_source.items() if len(compensation.by_source) > 1 else ()
    tokens = f"{compensation.fitted_tokens} fitted on, {compensation.held_out_tokens} held out"
    memory = gigabytes(compensation.peak_memory_bytes)
    nothing = "nothing: it did not lower the held-out loss"
    return Facts(
        {
            "held-out loss": f"{before:.4f} → {after:.4f} nats, dense {dense:.4f}",
            "against the dense": f"{_times(loss)} in perplexity, on held-out text",
            **{f"on {name}": _times(part) for name, part in several},
            "of the gap": f"{(before - after) / (before - dense):.0%} closed" if before > dense else None,
            "changed": f"{len(compensation.changed)} weights" if compensation.changed else nothing,
            "settings": settings_of(compensation.settings),
            "tokens": f"{tokens}; {tokens_used(compensation.calibration)}",
            "cost": f"{seconds(compensation.seconds)}, peak memory {memory}, {compensation.dtype}",
        }
    )


def _times(loss: HeldOutLoss) -> str:
    """Perplexity before and after the repair as multiples of the dense model's."""
    before, after = perplexity_times(loss)
    return f"× {before:.3f} → × {after:.3f}"
