"""Tables and plot of the benchmark of units, from its file alone."""

import io
import math
from collections.abc import Iterator
from statistics import mean, median

from harness.store import machines_text, versions_text
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

COLOURS = {"layer": "#0b6bb0", "attention": "#c85200", "mlp": "#11785a", "sublayer": "#8a4a9e"}
GOALS = {"losses": 1.15, "decode": 0.9}


def ratio(values: dict[str, float], dense: dict[str, float]) -> float:
    """Geometric mean over the texts of perplexity as a multiple of the dense model's."""
    return math.exp(mean(math.log(value / dense[name]) for name, value in values.items()))


def models(pieces: dict) -> list[str]:
    """Names of the models in a file."""
    return [key.removeprefix("dense ") for key in pieces if key.startswith("dense ")]


def chosen(pieces: dict, model: str) -> Iterator[tuple[str, str, dict]]:
    """(kind of unit, way, rows by share, each with its repair) of one model."""
    found: dict[tuple[str, str], dict] = {}
    for key, piece in pieces.items():
        act, *names = key.split(" ")
        if act == "choose" and names[0] == model:
            repair = f"repair {' '.join(names[:3])}"
            rows = {share: (row, pieces.get(f"{repair} {share}") or {}) for share, row in piece["rows"].items()}
            found.setdefault((names[1], names[2]), {}).update(rows)
    yield from ((kind, way, rows) for (kind, way), rows in found.items())


def heading(content: dict, title: str) -> list[str]:
    """The first lines of a page: its title, and on what and with what it was measured."""
    about = versions_text(content)
    return [f"# {title}", "", f"{machines_text(content)}, fp32; {about}; {content['date']}.", ""]


def table(content: dict) -> str:
    """The results in Markdown."""
    pieces, settings = content["pieces"], content["settings"]
    samples, length = settings["scoring"]
    fitted = " x ".join(map(str, settings["fitting"]))
    lines = [
        *heading(content, "Units: layers, attention, MLP and both"),
        f"Geometric mean over {', '.join(content['texts'])} of perplexity as a multiple of the dense model's, as it is "
        f"and behind an arrow repaired by `sequential` (fitted on {fitted} tokens of the shipped prose). Chosen on "
        f"{samples} x {length} tokens of wikitext2.valid.txt. A share stands for the whole layers that come nearest to "
        "it, the others are cut where they come nearest to the parameters of these; what goes stands in brackets. "
        "A kind of which that much cannot go has no figure.",
        "",
    ]
    for model in models(pieces):
        lines += [f"## {model}", "", *_damage(pieces, model, settings), "", *_reached(pieces, model), ""]
        lines += [*_answers(pieces, model), *_speeds(pieces, model)]
    return "\n".join(lines)


def _damage(pieces: dict, model: str, settings: dict) -> Iterator[str]:
    dense = pieces[f"dense {model}"]["perplexity"]
    further = (share for _, _, rows in chosen(pieces, model) for share in rows)
    shares = sorted({*further, *(f"{share:g}" for share in settings["shares"])})
    yield f"| units | chosen by | {' | '.join(f'{float(share):.0%}' for share in shares)} |"
    yield f"|---|---|{'--:|' * len(shares)}"
    for kind, way, rows in chosen(pieces, model):
        yield f"| {kind} | {way} | {' | '.join(_cell(rows.get(share), dense) for share in shares)} |"


def _cell(both: tuple[dict, dict] | None, dense: dict[str, float]) -> str:
    if both is None:
        return "-"
    plain, repaired = (_short(ratio(row["perplexity"], dense)) if row else "…" for row in both)
    return f"{plain} → {repaired} ({both[0]['share']:.1%})"


def _short(value: float) -> str:
    return f"{value:.2f}" if value < 1000 else f"{value:.3g}"


def _reached(pieces: dict, model: str) -> Iterator[str]:
    """The best repaired set of layers and of parts at every share."""
    dense, best = pieces[f"dense {model}"]["perplexity"], {}
    for kind, way, rows in chosen(pieces, model):
        for share, (_, row) in rows.items():
            if row:
                side = best.setdefault(share, {}).setdefault("layers" if kind == "layer" else "parts", [])
                side.append((ratio(row["perplexity"], dense), f"{kind} by {way}"))
    for share, sides in sorted(best.items()):
        if len(sides) == 2:
            (one, _), (other, by) = min(sides["layers"]), min(sides["parts"])
            word = "at or below" if other <= one else "**above**"
            yield (
                f"At {float(share):.0%}, repaired: the best whole layers x {_short(one)}, the best parts x "
                f"{_short(other)} ({by}), {word}."
            )


def _answers(pieces: dict, model: str) -> Iterator[str]:
    made = {"dense": pieces[f"dense {model}"]["tasks"]}
    for kind, way, rows in chosen(pieces, model):
        answers = {share: row["tasks"] for share, (_, row) in rows.items() if "tasks" in row}
        made |= {f"{kind} by {way}, {float(share):.0%}": found for share, found in answers.items()}
    if len(made) > 1:
        names = list(made["dense"])
        heads = (f"{name} ({made['dense'][name]['count']} items)" for name in names)
        yield f"| repaired | {' | '.join(heads)} |"
        yield f"|---|{'--:|' * len(names)}"
        for who, found in made.items():
            cells = (_answer(**found[name]) for name in names)
            yield f"| {who} | {' | '.join(cells)} |"
        yield ""


def _answer(count: int, **metric: float) -> str:
    """A share of right answers with its standard error."""
    [value] = metric.values()
    return f"{value:.3f} ± {math.sqrt(value * (1 - value) / max(1, count - 1)):.3f}"


def _speeds(pieces: dict, model: str) -> Iterator[str]:
    if piece := pieces.get(f"losses {model}"):
        times = [one / other for one, other in zip(piece["ours"], piece["ideal"], strict=True)]
        met = "met" if median(times) <= GOALS["losses"] else "**missed**"
        yield (
            f"All {piece['parts']} losses of one part left out: {median(piece['ours']):.1f} s, {median(times):.2f} x "
            f"the {median(piece['ideal']):.1f} s of the forwards that they need, each timed alone (at most "
            f"{GOALS['losses']}: {met})."
        )
        yield ""
    found = {key.split(" ")[2]: piece for key, piece in pieces.items() if key.startswith(f"speed {model} ")}
    if found:
        yield "| without | decoding | by bytes read | share of it | prefill | cache bytes per token |"
        yield "|---|--:|--:|--:|--:|--:|"
    for kind, piece in found.items():
        decode, ideal, cache = piece["decode"], piece["ideal"], piece["cache"]
        share = f"{decode / ideal:.2f}{'' if decode >= GOALS['decode'] * ideal else ' (**missed**)'}"
        count = f"{len(piece['units'])} {'layers' if kind == 'layer' else 'MLPs' if kind == 'mlp' else 'attentions'}"
        yield (
            f"| {count} | {decode:.2f} x | {ideal:.2f} x | {share} | {piece['prefill']:.2f} x | "
            f"{cache['with']:,} -> {cache['without']:,} |"
        )
    if found:
        yield ""


def _dearness(entry: tuple[str, str, dict]) -> int:
    return ("taylor", "perplexity", "greedy").index(entry[1])


def picture(content: dict) -> bytes:
    """Damage by share of parameters, a panel per model: dashed as it is, drawn through repaired; by the dearest way
    that is there.
    """
    pieces, names = content["pieces"], models(content["pieces"])
    figure = Figure(figsize=(5.2 * max(1, len(names)), 4.0), layout="constrained")
    for axes, model in zip(figure.subplots(1, max(1, len(names)), squeeze=False)[0], names, strict=False):
        dense = pieces[f"dense {model}"]["perplexity"]
        found = {kind: (way, rows) for kind, way, rows in sorted(chosen(pieces, model), key=_dearness)}
        for kind, (way, rows) in found.items():
            for repaired, line in enumerate(("--", "-")):
                known = [(both[0]["share"], both[repaired]) for both in rows.values() if both[repaired]]
                points = [(100 * share, ratio(row["perplexity"], dense)) for share, row in known]
                label = None if repaired else f"{kind} by {way}"
                along, up = zip(*points, strict=True) if points else ((), ())
                axes.plot(along, up, line, marker="o", color=COLOURS[kind], label=label)
        axes.set(title=model, xlabel="parameters removed, %", ylabel="perplexity / dense", yscale="log")
        axes.grid(alpha=0.3)
        if axes.lines:
            axes.legend(title="dashed: as it is; through: repaired", fontsize=8, title_fontsize=8)
    buffer = io.BytesIO()
    FigureCanvasAgg(figure).print_png(buffer)
    return buffer.getvalue()
