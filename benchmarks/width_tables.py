"""Tables and plot of the benchmark of depth and width, from its file alone."""

import io

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from units_tables import heading, models, ratio

CHANCE = {  # task -> what guessing scores
    **dict.fromkeys(("boolq", "piqa", "winogrande"), 0.5),
    **dict.fromkeys(("arc_easy", "arc_challenge", "openbookqa", "hellaswag"), 0.25),
}
STATES = {"tasks": "repaired", "heal": "after LoRA"}
COLOURS = (
    "#0b6bb0",
    "#5aa0d0",
    "#c85200",
    "#8a4a9e",
    "#11785a",
    "#7a7a00",
    "#b0306a",
    "#222222",
    "#c9a000",
    "#4fb0a8",
    "#9a9a9a",
)


def table(content: dict) -> str:
    """The results in Markdown."""
    pieces, settings = content["pieces"], content["settings"]
    samples, length = settings["scoring"]
    fitted = " x ".join(map(str, settings["fitting"]))
    lines = [
        *heading(content, "Depth against width, at equal parameters"),
        f"Geometric mean over {', '.join(content['texts'])} of perplexity as a multiple of the dense model's, as it is "
        f"and behind an arrow repaired (FLAP by its bias, all others by `sequential`, fitted on {fitted} tokens of the "
        f"shipped prose). Scored on {samples} x {length} tokens of wikitext2.valid.txt. In brackets the share of the "
        "parameters that went. … is not measured yet.",
        "",
    ]
    for model in models(pieces):
        lines += [f"## {model}", "", *_damage(pieces, model, settings), "", *_answers(pieces, model, settings)]
        lines += _speeds(pieces, model, settings)
    return "\n".join(lines)


def _ways(pieces: dict, model: str) -> list[str]:
    keys = (key.split(" ") for key in pieces)
    return list(
        dict.fromkeys(way for act, name, *rest in keys if act == "choose" and name == model for way in rest[:1])
    )


def _damage(pieces: dict, model: str, settings: dict) -> list[str]:
    shares = [f"{share:g}" for share in settings["shares"]]
    dense = pieces[f"dense {model}"]["perplexity"]
    lines = [f"| way | {' | '.join(f'{float(share):.0%}' for share in shares)} |", f"|---|{'--:|' * len(shares)}"]
    for way in _ways(pieces, model):
        cells = []
        for share in shares:
            made, repaired = (pieces.get(f"{act} {model} {way} {share}") for act in ("choose", "repair"))
            if made is None:
                cells.append("…")
                continue
            after = _short(ratio(repaired["perplexity"], dense)) if repaired else "…"
            cells.append(f"{_short(ratio(made['perplexity'], dense))} → {after} ({made['share']:.1%})")
        lines.append(f"| {way} | {' | '.join(cells)} |")
    return lines


def _answers(pieces: dict, model: str, settings: dict) -> list[str]:
    """Tasks of what is repaired, and after training, with the perplexity then."""
    share, dense = f"{settings['first']:g}", pieces[f"dense {model}"]["perplexity"]
    found = {"dense": pieces.get(f"tasks {model} dense")}
    for way in _ways(pieces, model):
        found |= {f"{way}, {said}": pieces.get(f"{act} {model} {way} {share}") for act, said in STATES.items()}
    found = {who: piece for who, piece in found.items() if piece}
    if not found:
        return []
    written = [name for name in settings["tasks"] if name not in CHANCE]
    rows = []
    for who, piece in found.items():
        told = {name: one["value"] for name, one in piece["tasks"].items()}
        centred = [(told[name] - CHANCE[name]) / (1 - CHANCE[name]) for name in told if name in CHANCE]
        mean = f"{sum(centred) / len(centred):.3f}" if centred else ""
        times = f"x {_short(ratio(piece['perplexity'], dense))}" if "perplexity" in piece else ""
        rows.append(f"| {who} | {times} | {mean} | {' | '.join(f'{told[name]:.2f}' for name in settings['tasks'])} |")
    items = ", ".join(f"{name} {count}" for name, count in settings["tasks"].items())
    about = (
        f"At {float(share):.0%}, the first items of each task ({items}): accuracy, and the mean of "
        f"{len(settings['tasks']) - len(written)} tasks centred on chance (0 is guessing, 1 all right). LoRA: "
        f"{settings['train_tokens']:,} tokens of two novels."
    )
    head = f"| {float(share):.0%} | perplexity | centred | {' | '.join(settings['tasks'])} |"
    return [about, "", head, f"|---|--:|--:|{'--:|' * len(settings['tasks'])}", *rows, ""]


def _speeds(pieces: dict, model: str, settings: dict) -> list[str]:
    rows = []
    for way in _ways(pieces, model):
        for share in settings["shares"]:
            found = pieces.get(f"speed {model} {way} {share:g}")
            if found:
                by_batch = {row["batch"]: row for row in found["rows"]}
                decode = [f"{by_batch[batch]['decode']:.2f}" for batch in settings["batches"]]
                prefill = [f"{by_batch[batch]['prefill']:.2f}" for batch in settings["batches"]]
                sizes = [f"{found['bytes'] / 1e6:.0f} MB", f"{found['cache']:,}"]
                rows.append(f"| {way} | {share:.0%} | {' | '.join([*decode, *prefill, *sizes])} |")
    if not rows:
        return []
    batches = [f"{act} x {batch}" for act in ("decode", "prefill") for batch in settings["batches"]]
    head = f"| way | share | {' | '.join(batches)} | weights | cache bytes per token |"
    about = "Times as fast as the dense model, by the batch size; written as it loads (plain, or `custom`)."
    return [about, "", head, f"|---|--:|{'--:|' * (len(batches) + 2)}", *rows, ""]


def picture(content: dict) -> bytes:
    """Perplexity repaired against parameters and, where it was measured, against decoding at batch 1, as PNG."""
    pieces = content["pieces"]
    names = models(pieces)
    figure = Figure(figsize=(10, 4 * max(1, len(names))), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(max(1, len(names)), 2, squeeze=False)
    for row, model in zip(axes, names, strict=False):
        dense = pieces[f"dense {model}"]["perplexity"]
        for colour, way in zip(COLOURS, _ways(pieces, model), strict=False):
            points, timed = [], []
            for share in content["settings"]["shares"]:
                made, after, speed = (
                    pieces.get(f"{act} {model} {way} {share:g}") for act in ("choose", "repair", "speed")
                )
                if made and after:
                    value = ratio(after["perplexity"], dense)
                    points.append((1 - made["share"], value))
                    timed += [(1 / speed["rows"][0]["decode"], value)] if speed else []
            for axis, those in zip(row, (points, timed), strict=True):
                if those:
                    axis.plot(*zip(*sorted(those), strict=True), "o-", color=colour, label=way)
        for axis, what in zip(row, ("share of parameters left", "time of a token against dense, batch 1"), strict=True):
            axis.set(title=model, xlabel=what, ylabel="perplexity, x dense (repaired)", yscale="log")
            if axis.has_data():
                axis.legend(fontsize=7)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110, metadata={"Software": None})
    return buffer.getvalue()


def _short(value: float) -> str:
    return f"{value:.2f}" if value < 1000 else f"{value:.3g}"
