"""Section on the repair without training: what it changed, and the drift of the stream before and after."""

from ...artifacts import Compensation, HeldOutLoss
from ...results.healing import perplexity_times
from ...results.summary import Summary, gigabytes, seconds, settings_of, tokens_used
from ..figures import drift_figure
from ..page import Box, Facts, Figure, Part, Section, Text, numbered

CAPTION = (
    "The stream behind each retained layer, on held-out tokens; where it is equal to the dense one nothing is drawn."
)


def section(summary: Summary) -> Section | None:
    """Every repair under its method and path."""
    parts: list[Part] = []
    for number, item in enumerate(summary.collection.of("compensation"), 1):
        figure = Figure(drift_figure(item.record, numbered("repair", number)), CAPTION)
        parts += [Text(f"{item.record.method}, {item.path}", "heading"), Box([figure, _repaired(item.record)], "pair")]
    return Section("Repair without training", parts) if parts else None


def _repaired(found: Compensation) -> Box:
    names = Box([Text(", ".join(found.changed))], "details", "the changed weights") if found.changed else None
    return Box([_facts(found), names])


def _facts(found: Compensation) -> Facts:
    dense, before, after = found.loss.dense, found.loss.before, found.loss.after
    several = found.by_source.items() if len(found.by_source) > 1 else ()
    used = f"{found.fitted_tokens} fitted on, {found.held_out_tokens} held out; {tokens_used(found.calibration)}"
    nothing = "nothing: it did not lower the held-out loss"
    return Facts(
        {
            "held-out loss": f"{before:.4f} → {after:.4f} nats, dense {dense:.4f}",
            "against the dense": f"{_times(found.loss)} in perplexity, on held-out text",
            **{f"on {name}": _times(loss) for name, loss in several},
            "of the gap": f"{(before - after) / (before - dense):.0%} closed" if before > dense else None,
            "changed": f"{len(found.changed)} weights" if found.changed else nothing,
            "settings": settings_of(found.settings),
            "tokens": used,
            "cost": f"{seconds(found.seconds)}, peak memory {gigabytes(found.peak_memory_bytes)}, {found.dtype}",
        }
    )


def _times(loss: HeldOutLoss) -> str:
    """Perplexity before and after the repair as multiples of the dense model's."""
    before, after = perplexity_times(loss)
    return f"× {before:.3f} → × {after:.3f}"
