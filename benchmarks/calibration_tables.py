"""Tables of the calibration benchmark, from its JSON file alone; what is not measured yet says so."""

import math
import re
from collections.abc import Callable, Iterable
from itertools import combinations
from statistics import geometric_mean, mean
from typing import NamedTuple

from harness.store import machines_text, removal
from quality_tables import markdown as whole_table
from quality_tables import number, shared

from shallower.runtime.format import layers

Removed = tuple[int, ...]
NOT_RUN = "not run"
DATA_FREE = "data-free"  # the ways to choose that need no text
REPAIR = "repair"  # fitted on every kind of text
MIXED = ("mixed", "shipped")  # texts of several kinds
BEGIN, END = "<!-- measured -->\n", "<!-- /measured -->"
HEAD = f"# Calibration text\n\n{BEGIN}{END}\n"


class Damage(NamedTuple):
    """Perplexity ratios of one way to choose, over calibration kinds and evaluation texts of other kinds."""

    mean: float
    worst: float
    where: str  # the calibration kind and the text of the worst
    made: int
    wanted: int

    @property
    def complete(self) -> bool:
        """Whether every calibration kind was run."""
        return self.made == self.wanted


def plan_labels(content: dict) -> list[str]:
    """Every way to choose that uses a text, as selection and criterion."""
    names = [name for names in content["walks"].values() for name in names if name != "greedy"]
    return ["greedy", *(f"{selection} {name}" for name in names for selection in ("lowest", "window"))]


def piece_of(content: dict, model: str, kind: str, size: int, plan: str) -> dict:
    """The scoring that a plan follows from, or nothing."""
    return content["pieces"].get(f"score {model} {kind} {size} {plan.split()[-1]}", {})


def chosen(content: dict, model: str, kind: str, size: int, plan: str) -> Removed | None:
    """The layers that go."""
    found = piece_of(content, model, kind, size, plan).get("plans", {}).get(plan)
    return tuple(found["removed"]) if found else None


def ratios(content: dict, model: str, gone: Removed) -> dict[str, float] | None:
    """Perplexity / dense perplexity by text, or None where one of them is not measured."""
    pieces, found = content["pieces"], {}
    for text in content["texts"]:
        dense, value = (pieces.get(f"plain {model} {text} {removal(one)}") for one in ((), gone))
        if dense is None or value is None:
            return None
        found[text] = math.exp(value["nll"] - dense["nll"])
    return found


def damage(content: dict, model: str, size: int, plan: str, kinds: Iterable[str]) -> Damage | None:
    """Mean and worst ratio when a plan is calibrated on each of some kinds, on the texts of all other kinds."""
    kinds, every = list(kinds), {}
    for kind in kinds:
        gone = chosen(content, model, kind, size, plan)
        found = ratios(content, model, gone) if gone else None
        every |= {(kind, text): value for text, value in (found or {}).items() if text != kind}
    if not every:
        return None
    (kind, text), worst = max(every.items(), key=lambda item: item[1])
    made = len({kind for kind, _ in every})
    return Damage(geometric_mean(every.values()), worst, f"{kind} → {text}", made, len(kinds))


def with_best(rows: list[list], columns: Iterable[int]) -> list[list[str]]:
    """Cells as text: ratios with two digits, the lowest complete one of some columns bold, what is missing as such."""
    lowest = {}
    for column in columns:
        lowest[column] = min((row[column].worst for row in rows if whole(row[column])), default=None)
    return [[cell_text(cell, lowest.get(column)) for column, cell in enumerate(row)] for row in rows]


def whole(cell: object) -> bool:
    """Whether a cell holds ratios of every calibration kind."""
    return isinstance(cell, Damage) and cell.complete


def cell_text(cell: object, lowest: float | None) -> str:
    """The worst ratio, how much of it is measured, and bold where it is the lowest."""
    if cell is None:
        return NOT_RUN
    if not isinstance(cell, Damage):
        return str(cell)
    text = number(cell.worst)
    if not cell.complete:
        return f"{text} ({cell.made} of {cell.wanted} kinds)"
    return f"**{text}**" if cell.worst == lowest else text


def markdown(head: list[str], rows: list[list], left: int = 1) -> str:
    """A table without the rows and columns in which nothing was run."""
    rows = [row for row in rows if len(row) == 1 or any(cell not in (NOT_RUN, "") for cell in row[1:])]
    if not rows:
        return NOT_RUN
    keep = [place for place in range(len(head)) if place < 1 or any(row[place] not in (NOT_RUN, "") for row in rows)]
    left = sum(place < left for place in keep)
    return whole_table([head[place] for place in keep], [[row[place] for place in keep] for row in rows], left)


# ---------------------------------------------------------------- damage


def damage_table(content: dict, model: str, size: int) -> str:
    """Ways to choose with so many samples: mean and worst ratio, and the cost of scoring one text."""
    rows = []
    for plan in plan_labels(content):
        row = [plan]
        for kinds in (content["calibrated"], *([kind] for kind in MIXED)):
            found = damage(content, model, size, plan, kinds)
            row += [number(found.mean) if found else NOT_RUN, found]
            row += [found.where if found else ""] if len(kinds) > 1 else []
        rows.append(row + cost_cells(content, model, size, plan))
    rows.sort(key=lambda row: row[2].worst if whole(row[2]) else math.inf)
    head = ["plan", "one kind: mean", "worst", "calibrated → text", "mixed: mean", "worst", "shipped: mean", "worst"]
    head += ["seconds", "shared", "layer forwards", "backwards", "peak memory, MiB"]
    return markdown(head, with_best(rows, (2, 5, 7)))


def cost_cells(content: dict, model: str, size: int, plan: str) -> list[str]:
    """Mean seconds of the walk, cores that others used meanwhile, passes of a layer for every sample, and memory."""
    kinds = (*content["calibrated"], *MIXED)
    made = [piece for kind in kinds if (piece := piece_of(content, model, kind, size, plan))]
    if not made:
        return [NOT_RUN, "", "", "", ""]
    there, back = (mean(piece["passes"][way] for piece in made) for way in (0, 1))
    memory = max(piece["peak_memory_bytes"] for piece in made) / 2**20
    return [
        f"{mean(piece['seconds'] for piece in made):.1f}",
        shared(made),
        f"{there:.0f}",
        f"{back:.0f}",
        f"{memory:.0f}",
    ]


def worst_table(content: dict, models: list[str]) -> str:
    """The worst ratio over some models, by the text that is calibrated on and its size: what a default is chosen by."""
    sizes, rows = content["settings"]["sizes"], []
    sources = {"one kind": content["calibrated"], **{kind: [kind] for kind in MIXED}}
    for plan in plan_labels(content):
        row = [plan]
        for kinds in sources.values():
            for size in sizes:
                found = [damage(content, model, size, plan, kinds) for model in models]
                row.append(max(found, key=lambda one: (not one.complete, one.worst)) if all(found) else None)
        rows.append(row)
    rows.sort(key=lambda row: min((cell.worst for cell in row[1:] if whole(cell)), default=math.inf))
    head = ["plan", *(f"{source}, {size}" for source in sources for size in sizes)]
    return markdown(head, with_best(rows, range(1, len(head))))


def kind_table(content: dict, model: str, size: int) -> str:
    """The worst ratio on texts of other kinds by the kind that is calibrated on, for every way to choose."""
    kinds = [*content["calibrated"], *MIXED]
    rows = [[plan, *(damage(content, model, size, plan, [kind]) for kind in kinds)] for plan in plan_labels(content)]
    rows = [row for row in rows if any(row[1:])]
    return markdown(["plan", *kinds], with_best(rows, range(1, len(kinds) + 1)))


def data_free_table(content: dict, model: str) -> str:
    """Ways to choose that need no text, on all texts."""
    plans, rows = content["pieces"].get(f"fixed {model}", {}).get("plans", {}), []
    for plan, one in plans.items():
        found = ratios(content, model, tuple(one["removed"]))
        values = [geometric_mean(found.values()), max(found.values())] if found else [None, None]
        text = max(found, key=found.get) if found else ""
        rows.append([plan, layers(one["removed"]), *(number(value) if value else NOT_RUN for value in values), text])
    return markdown(["plan", "layers", "mean", "worst", "on"], rows, left=2) if rows else NOT_RUN


def repair_table(content: dict, model: str) -> str:
    """Perplexity of the pruned and repaired model on every text as a multiple of the dense one, by the text that it
    was fitted on.
    """
    pieces = {key.split()[2]: piece for key, piece in content["pieces"].items() if key.startswith(f"repair {model} ")}
    dense = {text: content["pieces"].get(f"plain {model} {text} {removal(())}") for text in content["texts"]}
    if not pieces or not all(dense.values()):
        return NOT_RUN
    plain = ratios(content, model, tuple(next(iter(pieces.values()))["removed"])) or {}
    rows = [["not repaired", *(number(plain[text]) if text in plain else "" for text in dense), ""]]
    for kind, piece in pieces.items():
        times = {text: math.exp(piece["nll"][text] - one["nll"]) for text, one in dense.items()}
        told = math.exp(piece["held_out"]["after"] - piece["held_out"]["dense"])
        rows.append([f"fitted on {kind}", *(number(value) for value in times.values()), number(told)])
    return markdown(["", *dense, "told by the repair itself"], rows)


# ---------------------------------------------------------------- choices


def overlap(one: Removed, other: Removed) -> float:
    """Jaccard index: layers that both choose, as a share of those that either does."""
    return len({*one} & {*other}) / len({*one} | {*other})


def averaged(values: Iterable[float | None]) -> str:
    """The mean of what is known."""
    known = [value for value in values if value is not None]
    return f"{mean(known):.2f}" if known else NOT_RUN


def overlap_table(content: dict, model: str) -> str:
    """How much the choice moves: overlap between kinds, between sizes, and between halves of the samples."""
    sizes, rows = content["settings"]["sizes"], []
    for plan in plan_labels(content):

        def layers_of(kind: str, size: int, plan: str = plan) -> Removed | None:
            return chosen(content, model, kind, size, plan)

        row = [plan, *(averaged(between_kinds(content, layers_of, size)) for size in sizes)]
        row += [averaged(between_sizes(content, layers_of, *pair)) for pair in combinations(sizes, 2)]
        row += [averaged(agreements(content, model, plan, size)) for size in sizes]
        rows.append(row)
    head = ["plan", *(f"kinds, {size}" for size in sizes), *(f"{a} and {b}" for a, b in combinations(sizes, 2))]
    return markdown([*head, *(f"halves, {size}" for size in sizes)], rows)


def between_kinds(content: dict, layers_of: Callable, size: int) -> list[float]:
    """Overlaps of the choices by any two kinds."""
    found = [gone for kind in content["calibrated"] if (gone := layers_of(kind, size))]
    return [overlap(*pair) for pair in combinations(found, 2)]


def between_sizes(content: dict, layers_of: Callable, one: int, other: int) -> list[float]:
    """Overlaps of the choices by two sizes, of each kind."""
    pairs = [(layers_of(kind, one), layers_of(kind, other)) for kind in (*content["calibrated"], *MIXED)]
    return [overlap(*pair) for pair in pairs if all(pair)]


def agreements(content: dict, model: str, plan: str, size: int) -> list[float | None]:
    """The share of the chosen layers that both halves of the samples choose, of each kind."""
    found = []
    for kind in (*content["calibrated"], *MIXED):
        one = piece_of(content, model, kind, size, plan).get("plans", {}).get(plan, {})
        found.append(one["agreement"] / len(one["removed"]) if one.get("agreement") is not None else None)
    return found


def layer_table(content: dict, model: str, kind: str) -> str:
    """The layers that go, by size."""
    sizes, rows = content["settings"]["sizes"], []
    for plan in plan_labels(content):
        found = [chosen(content, model, kind, size, plan) for size in sizes]
        rows.append([plan, *(layers([*gone]) if gone else NOT_RUN for gone in found)])
    return markdown(["plan", *(f"{size} samples" for size in sizes)], rows, left=1 + len(sizes))


# ---------------------------------------------------------------- the page

NOTES = """\
A ratio is perplexity without the layers / dense perplexity, nothing repaired. **One kind** is over every kind that is
calibrated on and every text of another kind (newspapers are never calibrated on); `mixed` are equal shares of all
kinds, `shipped` is the package's own prose, both on all texts. Samples are drawn by a seed, the smaller sets are part
of the larger ones. The usual first and last layers are protected. `window` of a criterion other than angular takes the
run with the lowest sum. The paper's setting of Taylor is `lowest taylor` with 10 samples. A forward is one layer run
on all samples, a backward the same with gradients; seconds are those of the walk, which criteria on the same evidence
share, and `shared` is how many cores other work took meanwhile: what is far from 0 says too many seconds.

Dialogue is the spoken words of novels, where at least four paragraphs in a row begin with speech; code is modules of
Python's standard library; instructions are every second example of a file, the others are evaluated on."""
MOVES = """\
Mean overlap (Jaccard index) of the layers chosen by two kinds and by two sizes, and the share of the chosen layers on
which both halves of the samples agree."""


def source_table(content: dict) -> str:
    """Which files are of which kind."""
    rows = []
    for name, files in content["kinds"].items():
        rows.append([name, *(", ".join(files.get(part, [])) or "-" for part in ("calibration", "evaluation"))])
    return markdown(["kind", "calibrated on", "evaluated on"], rows, left=3)


def introduction(content: dict) -> str:
    """What was measured, where and how."""
    settings, used = content["settings"], content["versions"]
    own, models = settings["evaluation"], []
    for name, known in content["models"].items():
        gone = f"{known['removed']} of {known['layers']} layers go" if known else NOT_RUN
        tokens = f", evaluated on {known['segments']} x {own['length']} tokens of each text" if known else ""
        models.append(f"- {name}: {gone}{tokens}")
    sizes = ", ".join(map(str, settings["sizes"]))
    about = (
        f"fp32; {machines_text(content)}, torch {used['torch']}, "
        f"transformers {used['transformers']}, Python {used['python']}, begun {content['date']}. "
        f"Scored on {sizes} samples of {settings['length']} tokens."
    )
    return "\n\n".join([about, "\n".join(models), NOTES, source_table(content)])


def of_model(content: dict, model: str) -> list[str]:
    """All sections of a model in which something was run, and what was not."""
    sizes = content["settings"]["sizes"]
    parts = {"Worst case": worst_table(content, [model])}
    parts |= {f"Damage, {size} samples": damage_table(content, model, size) for size in sizes}
    parts["Damage of choices without a text"] = data_free_table(content, model)
    parts |= {f"Worst case by kind calibrated on, {size} samples": kind_table(content, model, size) for size in sizes}
    parts["A repair, by the text that it was fitted on"] = repair_table(content, model)
    moves = overlap_table(content, model)
    parts["How much the choice moves"] = moves if moves == NOT_RUN else f"{MOVES}\n\n{moves}"
    parts |= {f"Layers chosen by the {kind} text": layer_table(content, model, kind) for kind in MIXED}
    absent = [title.lower() for title, text in parts.items() if text == NOT_RUN]
    plans = [
        plan
        for plan in plan_labels(content)
        if not any(chosen(content, model, kind, size, plan) for kind in MIXED for size in sizes)
    ]
    missing = ", ".join([*absent, *plans])
    told = [f"Not run yet: {missing}."] if missing else []
    return [f"## {model}", *told, *(f"### {title}\n\n{text}" for title, text in parts.items() if text != NOT_RUN)]


def measured(content: dict) -> str:
    """Everything in Markdown."""
    models, parts = list(content["models"]), [introduction(content)]
    if len(models) > 1:
        parts.append(f"## Worst case of all models\n\nThe best of a column is bold.\n\n{worst_table(content, models)}")
    parts += [part for model in models for part in of_model(content, model)]
    return "\n\n".join(parts) + "\n"


def updated(page: str, content: dict) -> str:
    """The page with its measured part made anew; what is written outside of it is kept."""
    page = page if BEGIN in page and END in page else HEAD + page
    pattern = re.compile(f"({re.escape(BEGIN)}).*?({re.escape(END)})", re.S)
    return pattern.sub(lambda match: match[1] + measured(content) + match[2], page, count=1)
