"""Pictures made from artifacts."""

import io

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from .artifacts import Compensation

BEFORE, AFTER, GONE = "#b5542b", "#2b6cb5", "#e8e4dc"


def drift_picture(found: Compensation) -> bytes:
    """PNG: shift and relative error of the stream behind every retained layer, before and after; removed layers are shaded."""
    figure = Figure(figsize=(8, 6), layout="constrained")
    FigureCanvasAgg(figure)
    rows = (("shift", "distance of the mean streams"), ("error", "relative error of the stream"))
    places = [item["layer"] for item in found.layers]
    for number, (key, label) in enumerate(rows, 1):
        axes = figure.add_subplot(2, 1, number)
        for layer in found.removed:
            axes.axvspan(layer - 0.5, layer + 0.5, color=GONE, linewidth=0)
        for name, colour in (("before", BEFORE), ("after", AFTER)):
            axes.plot(places, [item[name][key] for item in found.layers], "o-", color=colour, markersize=3.5, label=name)
        if key == "shift":
            axes.set_yscale("symlog", linthresh=max(1e-6, min(filter(None, _values(found, key)), default=1.0)))
            axes.set_title(
                f"{found.method}: held-out loss {found.loss['before']:.3f} -> {found.loss['after']:.3f}, unpruned {found.loss['dense']:.3f}"
            )
        else:
            axes.set_xlabel("layer (shaded: removed)")
        axes.set_ylabel(label)
        axes.grid(alpha=0.3)
        axes.legend(frameon=False)
    drawn = io.BytesIO()
    figure.savefig(drawn, format="png", dpi=130, metadata={"Software": None})
    return drawn.getvalue()


def _values(found: Compensation, key: str) -> list[float]:
    return [item[name][key] for item in found.layers for name in ("before", "after")]
