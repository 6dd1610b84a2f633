"""Tables, page and picture of the quality benchmark, from its JSON file alone.

What is not measured yet is left open.
"""

import hashlib
import io
import json
import re
from statistics import mean
from typing import NamedTuple

from harness.machine import BUSY
from harness.store import machines_text, removal
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from shallower.runtime.format import layers

Removed = tuple[int, ...]
OPEN, REFUSED = "…", "refused"
COLOURS = ("#b5542b", "#2b6cb5", "#4a7c3f", "#8a5fa8", "#b08a1e", "#3f8f8f", "#777777")
LINES = (
    "greedy",
    "lowest taylor",
    "lowest block_influence",
    "window angular",
    "lowest gradient l1",
)  # of which the picture has one each


def sets(content: dict, size: int) -> dict[Removed, list[str]]:
    """Every removal of so many layers that is planned, with the plans that chose it."""
    found: dict[Removed, list[str]] = {}
    for key, piece in content["pieces"].items():
        if key.startswith("plan ") and str(size) in piece["removed"]:
            found.setdefault(tuple(piece["removed"][str(size)]), []).append(piece["label"])
    return found


def ratios(content: dict, gone: Removed, method: str = "none", *, long: bool = False) -> list[float] | None:
    """Perplexity / dense perplexity on each text, or None where it is not measured or the method was refused."""
    pieces, texts = content["pieces"], content["long_texts" if long else "texts"]
    dense = [pieces.get(f"plain {text} {removal(())}", {}).get("value") for text in texts]
    if method == "none":
        values = [pieces.get(f"plain {text} {removal(gone)}", {}).get("value") for text in texts]
    else:
        piece = pieces.get(f"{'long' if long else 'repair'} {len(gone)} {method} {removal(gone)}", {})
        values = [piece.get("perplexity", {}).get(text) for text in texts]
    return None if None in (*dense, *values) else [new / old for new, old in zip(values, dense, strict=True)]


def ratio(content: dict, gone: Removed, method: str = "none", *, long: bool = False) -> float | None:
    """Mean of the ratios over the texts."""
    found = ratios(content, gone, method, long=long)
    return mean(found) if found else None


def methods_of(content: dict) -> list[str]:
    """The compensations that were tried, in order."""
    return list(dict.fromkeys(piece["method"] for key, piece in content["pieces"].items() if key.startswith("repair ")))


def cells(content: dict, size: int) -> dict[Removed, dict[str, float | None]]:
    """Mean ratio of every removal that any compensation was tried on, by compensation, ``none`` first."""
    names = methods_of(content)
    tried = {tuple(piece["removed"]) for key, piece in content["pieces"].items() if key.startswith(f"repair {size} ")}
    return {gone: {name: ratio(content, gone, name) for name in ("none", *names)} for gone in sorted(tried)}


class Best(NamedTuple):
    """The best recipe for one number of layers."""

    gone: Removed
    method: str
    ratio: float


def best(
    content: dict, size: int, names: tuple[str, ...] | None = None, labels: tuple[str, ...] | None = None
) -> Best | None:
    """The lowest mean ratio, of some compensations only (``none`` is one), or of plans with one of these
    labels only.
    """
    known = sets(content, size)
    every = [
        Best(gone, name, value)
        for gone, chosen in known.items()
        for name in (names or ("none", *methods_of(content)))
        if (labels is None or set(labels) & set(chosen)) and (value := ratio(content, gone, name)) is not None
    ]
    return min(every, key=lambda one: one.ratio, default=None)


def named(content: dict, gone: Removed) -> str:
    """The plans that chose these layers; many are shortened."""
    labels = sets(content, len(gone)).get(gone) or ["an earlier plan"]
    published = content["settings"]["published"]
    labels = sorted(labels, key=lambda label: label not in published)
    more = f" and {len(labels) - 3} more" if len(labels) > 4 else ""
    return ", ".join(labels[:3] if more else labels) + more


def number(value: float | None) -> str:
    return OPEN if value is None else f"{value:.2f}" if value < 100 else f"{value:.3g}"


def markdown(head: list[str], rows: list[list], left: int = 1) -> str:
    """A table; the first columns stand left, the others right."""
    lines = [head, ["---"] * left + ["--:"] * (len(head) - left), *rows]
    return "\n".join(f"| {' | '.join(map(str, line))} |" for line in lines)


def sizes_of(content: dict) -> list[int]:
    return sorted(content["settings"]["sizes"])


def goal_table(content: dict) -> str:
    """The best recipe for every size against the best plain published method, and the goals."""
    published, rows = content["settings"]["published"], []
    for size in sizes_of(content):
        top, plain = best(content, size), best(content, size, ("none",), tuple(published))
        if not top or not plain:
            continue
        label = next(label for label in published if label in sets(content, size)[plain.gone])
        recipe = (
            f"{named(content, top.gone)} ({layers([*top.gone])}); {top.method if top.method != 'none' else 'plain'}"
        )
        share, goal = top.ratio / plain.ratio, content["settings"]["goals"].get(str(size), {})
        limits = {"ratio": (top.ratio, ""), "share": (share, " x published")}
        parts = [
            f"<= {goal[name]:.2f}{unit}: {'met' if value <= goal[name] else '**missed**'}"
            for name, (value, unit) in limits.items()
            if name in goal
        ]
        rows.append([size, recipe, f"{published[label]} ({layers([*plain.gone])})", "; ".join(parts) or "-"])
        rows[-1][2:2] = [number(top.ratio)]
        rows[-1][4:4] = [number(plain.ratio), f"{share:.2f}"]
    return markdown(
        ["removed", "best recipe", "ratio", "best plain published", "its ratio", "share", "goal"], rows, left=7
    )


def grid_table(content: dict, size: int) -> str:
    """Plans by compensations."""
    names, rows = methods_of(content), []
    found = sorted(
        cells(content, size).items(),
        key=lambda item: min(value for value in (*item[1].values(), 1e99) if value is not None),
    )
    lowest = min((value for _, row in found for value in row.values() if value is not None), default=0.0)
    for gone, row in found:
        shown = [f"**{number(value)}**" if value == lowest else number(value) for value in row.values()]
        refused = [
            name != "none" and "refused" in content["pieces"].get(f"repair {size} {name} {removal(gone)}", {})
            for name in row
        ]
        cell = [REFUSED if no else text for no, text in zip(refused, shown, strict=True)]
        rows.append([named(content, gone), layers([*gone]), *cell])
    return markdown(["plan", "layers", "none", *names], rows, left=2) if rows else OPEN


def plain_table(content: dict, size: int) -> str:
    """Plans as they are, the best first; removals that are the same stand in one row."""
    texts, rows = list(content["texts"]), []
    for gone, labels in sets(content, size).items():
        values = ratios(content, gone)
        found = [mean(values), *values] if values else [None] * (1 + len(texts))
        rows.append((found[0] if values else 1e99, [", ".join(labels), layers([*gone]), *map(number, found)]))
    return markdown(
        ["plan", "layers", "mean ratio", *texts], [row for _, row in sorted(rows, key=lambda item: item[0])], left=2
    )


def long_table(content: dict) -> str:
    """The best rows at both lengths."""
    rows, texts = [], list(content["long_texts"])
    for size in sizes_of(content):
        for gone in sets(content, size):
            for name in ("none", *methods_of(content)):
                if found := ratios(content, gone, name, long=True):
                    rows.append(
                        [
                            size,
                            named(content, gone),
                            name,
                            number(ratio(content, gone, name)),
                            number(mean(found)),
                            *map(number, found),
                        ]
                    )
    head = [
        "removed",
        "plan",
        "compensation",
        f"at {content['settings']['length']}",
        f"at {content['settings']['long']}",
        *texts,
    ]
    return markdown(head, rows, left=3) if rows else OPEN


def shared(made: list[dict]) -> str:
    """How many cores others used meanwhile: with them, seconds are too many."""
    return f"{mean(piece.get('cores_used_by_others', 0.0) for piece in made):.1f}"


def cost_table(content: dict) -> str:
    """What planning costs: one scoring, or the whole plan where it runs the model."""
    rows = []
    for key, piece in content["pieces"].items():
        if key.startswith("score ") or piece.get("walks"):
            memory = f"{piece['peak_memory_bytes'] / 2**20:.0f}"
            planned = piece.get("planned", "any")
            rows.append([key, planned, f"{piece['seconds']:.2f}", shared([piece]), memory, *map(str, piece["passes"])])
    rows.sort(key=lambda row: float(row[2]))
    return markdown(
        ["piece", "layers planned", "seconds", "shared", "peak memory, MiB", "layer forwards", "layer backwards"], rows
    )


def parts_of(made: list[dict]) -> tuple[str, str]:
    """Seconds of the pass over the fitting tokens and of solving, where they were told apart; deciding is the rest."""
    told = [piece for piece in made if "solving_seconds" in piece]
    if not told:
        return OPEN, OPEN
    passed = mean(piece["seconds"] - piece["solving_seconds"] - piece["deciding_seconds"] for piece in told)
    return f"{passed:.0f}", f"{mean(piece['solving_seconds'] for piece in told):.1f}"


def repair_table(content: dict) -> str:
    """What each compensation costs and changes, by size."""
    rows = []
    for size in sizes_of(content):
        for name in methods_of(content):
            made = [
                piece
                for key, piece in content["pieces"].items()
                if key.startswith(f"repair {size} {name} ") and "seconds" in piece
            ]
            if made:
                quiet = [piece for piece in made if piece.get("cores_used_by_others", 0.0) < BUSY] or made
                took = mean(piece["seconds"] for piece in quiet)
                peak = max(piece["peak_memory_bytes"] for piece in made) / 2**20
                fell = mean(piece["loss"]["after"] - piece["loss"]["before"] for piece in made)
                tested, changed = (
                    mean(piece["evaluation_seconds"] for piece in quiet),
                    mean(piece["changed"] for piece in made),
                )
                seconds = [f"{took:.0f}", *parts_of(quiet), f"{tested:.0f}", shared(quiet)]
                rows.append([size, name, len(made), *seconds, f"{peak:.0f}", f"{changed:.0f}", f"{fell:+.3f}"])
    head = [
        "removed",
        "compensation",
        "plans",
        "seconds to fit",
        "its pass",
        "solving",
        "to evaluate",
        "shared",
        "peak memory, MiB",
        "changed weights",
        "held-out loss, nats",
    ]
    return markdown(head, rows, left=2) if rows else OPEN


def refusals(content: dict) -> str:
    """Every refusal once, whatever layer it names."""
    refused = [(piece["method"], piece["refused"]) for piece in content["pieces"].values() if "refused" in piece]
    found = {(name, re.sub(r"^layer \d+: ", "", message)): message for name, message in reversed(refused)}
    every = "\n".join(f"- `{name}`: {message}" for (name, _), message in reversed(found.items()))
    return f" Refused:\n\n{every}" if every else ""


def parts(content: dict) -> list[str]:
    """All sections."""
    settings, used, fitting = (content[name] for name in ("settings", "calibration", "fitting"))
    fits = settings["fitting"]
    sources = ", ".join(name.removeprefix("books/") for name in fitting["sources"])
    found = [
        f"{content['model']['source']} ({content['layers']} layers) in fp32; {machines_text(content)}, "
        f"torch {content['versions']['torch']}, begun {content['date']}. Evaluated on {settings['tokens']} "
        "tokens each of "
        f"{', '.join(content['texts'])}, in segments of {settings['length']}; a ratio is perplexity / dense "
        "perplexity, a mean ratio the "
        f"mean over these texts, lower is better. Plans are made on {used['samples']} x {used['length']} "
        f"tokens of {used['source']}; "
        f"compensations are fitted and accepted on {fits['samples']} x {fits['length']} tokens of {sources}, "
        "of which the last eighth is held out.",
        f"## Goals\n\n{goal_table(content)}",
        f"## Repaired\n\nMean ratio.{refusals(content)}",
    ]
    found += [f"### {size} removed\n\n{grid_table(content, size)}" for size in sizes_of(content)]
    found.append(f"### On longer segments\n\n{long_table(content)}")
    found += [
        f"{'## Plain' if not n else ''}\n\n### {size} removed\n\n{plain_table(content, size)}".strip()
        for n, size in enumerate(sizes_of(content))
    ]
    found.append(
        "## Cost\n\nOf planning: a forward is one layer run over all scoring tokens, a backward the same with "
        "gradients. They are "
        "counted, not timed: criteria on streams need N forwards, those on gradients N, N more to run each "
        "layer again, and N backwards, "
        "for each decision; the losses of removals one for every distinct beginning of the removals that ends "
        "in a layer that runs. "
        "The head is left out. `shared` is how many cores other work took meanwhile: what is far from 0 says "
        "too many seconds. "
        f"Searches include greedy's part and end after {settings['budget']:.0f} s.\n\n{cost_table(content)}"
    )
    found.append(
        "Of compensating, mean over the plans (memory: the most; seconds: of those during which other work "
        "took little); a fit is its "
        f"pass over the fitting tokens, solving, and deciding by held-out tokens:\n\n{repair_table(content)}"
    )
    if any(OPEN in part for part in found):
        found[0] += f" `{OPEN}` is not measured yet."
    return found


def tables(content: dict) -> str:
    """Everything in Markdown."""
    return "\n\n".join(["# Quality", *parts(content)]) + "\n"


def page(content: dict, reading: str) -> str:
    """docs/quality.md: the picture, the reading, which is kept as it was written, and the tables."""
    about, goals, *rest = parts(content)
    head = [
        "# Quality",
        "Made by `make docs` from the results of `make bench-quality`, all but the reading.",
        about,
        goals,
    ]
    picture = "![Mean ratio against layers removed](quality.png)"
    return "\n\n".join([*head, picture, f"<!-- reading -->\n{reading}<!-- /reading -->", *rest]) + "\n"


def lines(content: dict) -> dict[str, dict]:
    """Name -> colour, whether repaired, and the mean ratio by number of layers removed: what the picture shows."""
    found, published = {}, content["settings"]["published"]
    for label, colour in zip(LINES, COLOURS, strict=False):
        removals = {
            size: gone for size in sizes_of(content) for gone, labels in sets(content, size).items() if label in labels
        }
        for name in ("none", *methods_of(content)[:1]):
            values = {
                size: value for size, gone in removals.items() if (value := ratio(content, gone, name)) is not None
            }
            if values:
                title = f"{published.get(label, label)}" + (f" + {name}" if name != "none" else "")
                found[title] = {"colour": colour, "repaired": name != "none", "values": values}
    tops = {size: top.ratio for size in sizes_of(content) if (top := best(content, size))}
    return found | ({"best recipe": {"colour": "#000000", "repaired": True, "values": tops}} if tops else {})


def digest(content: dict) -> str:
    """Of what the picture shows; it stands in the file, so that a test sees an old picture."""
    return hashlib.sha256(
        json.dumps([lines(content), content["settings"]["goals"]], sort_keys=True).encode()
    ).hexdigest()[:32]


def picture(content: dict) -> bytes:
    """PNG: mean ratio against layers removed; plain plans dashed, repaired ones whole, the goals as crosses."""
    figure = Figure(figsize=(8, 5.5), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    for title, line in lines(content).items():
        points = {0: 1.0} | line["values"]
        style = {
            "linestyle": "-" if line["repaired"] else "--",
            "color": line["colour"],
            "linewidth": 2.4 if title == "best recipe" else 1.4,
        }
        axes.plot(list(points), list(points.values()), marker="o", markersize=4, label=title, **style)
    for size, goal in content["settings"]["goals"].items():
        axes.plot(int(size), goal["ratio"], marker="x", markersize=9, color="#000000", linestyle="none")
    axes.set_yscale("log")
    highest = max((value for line in lines(content).values() for value in line["values"].values()), default=2.0)
    axes.set_yticks(ticks := [1, 1.2, 1.4, 1.7, 2, 2.5, 3, 4, 6, 10, 15])
    axes.set_yticklabels(map(str, ticks))
    axes.minorticks_off()
    axes.set_ylim(0.97, 1.1 * min(highest, 15))
    axes.set_xticks([0, *sizes_of(content)])
    axes.set_xlabel(f"layers removed, of {content['layers']} (x: goals)")
    axes.set_ylabel("perplexity / dense perplexity, mean of the texts")
    axes.grid(alpha=0.3)
    axes.legend(frameon=False, fontsize=8)
    drawn = io.BytesIO()
    figure.savefig(drawn, format="png", dpi=130, metadata={"Software": None, "Description": digest(content)})
    return drawn.getvalue()
