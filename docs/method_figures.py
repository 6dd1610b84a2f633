"""What was measured of a method: tables drawn from the result files of the benchmarks, with model and setting."""

import importlib
import json
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path
from statistics import mean
from types import ModuleType
from typing import Any

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results"
ABOVE = "../../.."  # from a method's page to the root
NOTHING = "Nothing yet: no result file speaks of it."
OPEN = "…"


@cache
def content(name: str) -> dict[str, Any]:
    """A result file, or one without pieces where it is missing."""
    path = RESULTS / f"{name}.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


@cache
def tables(name: str) -> ModuleType:
    """A file of the benchmarks, whose reading of the results is used here."""
    folder = str(ROOT / "benchmarks")
    if folder not in sys.path:
        sys.path.append(folder)
    return importlib.import_module(name)


def measured(kind: str, name: str) -> list[str]:
    """Lines of Markdown; a sentence where there is nothing."""
    found: list[str] = []
    for block in BLOCKS[kind]:
        lines = block(name)
        found += [*([""] if found and lines else []), *lines]
    return found or [NOTHING]


def table(head: list[str], rows: list[list[str]], left: int = 1) -> list[str]:
    """A table; the first columns stand left, the others right."""
    lines = [head, ["---"] * left + ["--:"] * (len(head) - left), *rows]
    return [f"| {' | '.join(map(str, line))} |" for line in lines]


def number(value: float | None) -> str:
    """Two digits behind the point, or three in all."""
    return (
        OPEN if value is None else f"{value:.2f}" if value < 100 else f"{value:,.0f}" if value < 1e6 else f"{value:.0e}"
    )


def arrow(plain: float | None, repaired: float | None) -> str:
    """Before and after a repair."""
    return number(plain) + (f" → {number(repaired)}" if repaired is not None else "")


def source(page: str, above: str = ABOVE) -> str:
    """A link to a benchmark's own page."""
    target = above.removesuffix("/..") + "/quality.md" if page == "quality" else f"{above}/benchmarks/results/{page}.md"
    return f"[{page}]({target})"


def model_of(data: dict) -> str:
    """The name of the model of a file with one."""
    given = data["model"]["source"] if isinstance(data["model"], dict) else data["model"]
    return given.removesuffix(".gguf")


# ---------------------------------------------------------------- whole layers, one model


def plans_of(kind: str) -> Callable[[str], list[str]]:
    """Plans that a criterion or a selection made, as they are and repaired; quality.json and criteria.json."""

    def block(name: str) -> list[str]:
        data, rows = content("quality"), []
        if not data:
            return []
        quality = tables("quality_tables")
        sizes, labels = quality.sizes_of(data), []
        for piece in data["pieces"].values():
            label = piece.get("label", "")
            if label and label not in labels and belongs(label, kind, name):
                labels.append(label)
        for label in labels:
            cells = []
            for size in sizes:
                gone = next((gone for gone, chosen in quality.sets(data, size).items() if label in chosen), None)
                both = (
                    (None, None) if gone is None else [quality.ratio(data, gone, how) for how in ("none", "sequential")]
                )
                cells.append(arrow(*both))
            rows.append([label, *cells])
        rows += further(kind, name, labels, sizes)
        if not rows:
            return []
        about = (
            f"Whole layers of {model_of(data)}: perplexity as a multiple of the dense model's, mean over "
            f"{', '.join(data['texts'])}; behind an arrow repaired by `sequential`. Chosen on "
            f"{data['calibration']['samples']} x {data['calibration']['length']} tokens of WikiText-2 validation "
            f"({source('quality')}, {source('criteria')})."
        )
        return [
            about,
            "",
            *table(["plan", *(f"{size} of {data['layers']}" for size in sizes)], rows),
            *cost(kind, name),
        ]

    return block


def belongs(label: str, kind: str, name: str) -> bool:
    """Whether a plan's label, such as ``lowest --iterative taylor``, speaks of the method."""
    words = label.split()
    return words[0] == name if kind == "selection" else name in words[1:]


def further(kind: str, name: str, known: list[str], sizes: list[int]) -> list[list[str]]:
    """Rows of criteria.json that quality.json has not."""
    data, found = content("criteria"), {}
    for size, selection, criterion, protected, *rest in tables("criteria").worth_rows(data)[1:] if data else ():
        words = [word for word in (selection, criterion) if word != "-"]
        label = " ".join(words) + " unprotected" * (protected == "0 + 0")
        if label not in known and belongs(label, kind, name):
            found.setdefault(label, {})[size] = rest[-2]
    return [[label, *(number(values.get(size)) for size in sizes)] for label, values in found.items()]


def cost(kind: str, name: str) -> list[str]:
    """What one scoring, or a plan of a search, takes."""
    data, rows = content("quality"), []
    for key, piece in data["pieces"].items():
        words = key.split()
        scored = kind == "criteria" and words[:2] == ["score", name]
        if scored or (kind == "selection" and words[:2] == ["plan", name] and piece.get("walks")):
            counts = [
                f"{piece['seconds']:.1f}",
                f"{piece['peak_memory_bytes'] / 2**20:,.0f}",
                *map(str, piece["passes"]),
            ]
            rows.append([" ".join(words[1:]) if scored else f"{piece['label']}, {piece['planned']} layers", *counts])
    head = [
        "one scoring" if kind == "criteria" else "one plan",
        "seconds",
        "peak memory, MiB",
        "layer forwards",
        "backwards",
    ]
    where = f"On {data['machine']['cpu']}, {data['machine']['torch_threads']} threads:"
    return ["", where, "", *table(head, rows)] if rows else []


def on_a_gpu(name: str) -> list[str]:
    """Seconds of a criterion on a 7B-shaped model; gpu.json."""
    data, rows = content("gpu"), []
    for key, step in data.get("parts", {}).get("scoring", {}).get("steps", {}).items():
        if name in key.replace(":", "").split() and "best_seconds" in step:
            rows.append([key, f"{step['best_seconds']:.2f}", f"{step['peak_bytes'] / 2**30:.1f}"])
    if not rows:
        return []
    about = f"A 7B-shaped model in bf16 on an {data['card']['name']} ({source('gpu')}):"
    return [about, "", *table(["tokens", "seconds", "memory, GiB"], rows)]


# ---------------------------------------------------------------- parts and width, equal parameters


def in_parts(name: str) -> list[str]:
    """Layers, attentions and MLPs chosen by it; units.json."""
    data, units = content("units"), tables("units_tables")
    blocks = []
    for model in units.models(data.get("pieces", {})):
        dense = data["pieces"][f"dense {model}"]["perplexity"]
        found = [(kind, rows) for kind, way, rows in units.chosen(data["pieces"], model) if way == name]
        shares = sorted({share for _, rows in found for share in rows})
        rows = [[kind, *(share_cell(rows.get(share), dense) for share in shares)] for kind, rows in found]
        if rows:
            head = [f"{model}, units", *(f"{float(share):.0%}" for share in shares)]
            blocks += ["", *table(head, rows)]
    if not blocks:
        return []
    return [
        f"Layers and their parts at equal parameters, as they are → repaired by `sequential` ({source('units')}):",
        *blocks,
    ]


def share_cell(both: tuple[dict, dict] | None, dense: dict[str, float]) -> str:
    """Perplexity of a removal as a multiple of the dense one, as it is and repaired; what it removes in brackets."""
    if both is None:
        return "-"
    ratio = tables("units_tables").ratio
    plain, repaired = (ratio(row["perplexity"], dense) if row else None for row in both)
    return f"{arrow(plain, repaired)} ({both[0]['share']:.0%})"


def in_width(kind: str) -> Callable[[str], list[str]]:
    """Ways of the benchmark of depth and width that use it; width.json."""

    def block(name: str) -> list[str]:
        data, blocks = content("width"), []
        for model in tables("units_tables").models(data.get("pieces", {})):
            rows = []
            for way, how in tables("width").WAYS.items():
                used = {"criteria": how.criterion, "selection": how.choosing.selection, "compensation": how.repair}[
                    kind
                ]
                cells = [way_cell(data, model, way, share) for share in data["settings"]["shares"]]
                if used == name and any(cell != OPEN for cell in cells):
                    rows.append([way, f"`{how.criterion}`, `{how.choosing.selection}`, `{how.repair}`", *cells])
            if rows:
                head = [f"{model}, way", "criterion, selection, repair"]
                blocks += ["", *table([*head, *(f"{share:.0%}" for share in data["settings"]["shares"])], rows, left=2)]
        if not blocks:
            return []
        about = "Depth and width at equal parameters, as they are → repaired"
        return [f"{about}; {OPEN} is not measured yet ({source('width')}):", *blocks]

    return block


def way_cell(data: dict, model: str, way: str, share: float) -> str:
    """A cell of width.json."""
    made, repaired = (data["pieces"].get(f"{act} {model} {way} {share:g}") for act in ("choose", "repair"))
    return share_cell((made, repaired or {}), data["pieces"][f"dense {model}"]["perplexity"]) if made else OPEN


# ---------------------------------------------------------------- repairs


def repairs(name: str) -> list[str]:
    """A compensation on all plans; quality.json."""
    data = content("quality")
    quality = tables("quality_tables")
    if not data or name not in quality.methods_of(data):
        return []
    made = {
        key: piece for key, piece in data["pieces"].items() if key.startswith("repair ") and piece["method"] == name
    }
    refused = sorted(piece["refused"] for piece in made.values() if "refused" in piece)
    if refused and len(refused) == len(made):
        return [f"Refused on all {len(made)} plans of {model_of(data)}: “{refused[0]}” ({source('quality')})."]
    rows = []
    for size in quality.sizes_of(data):
        found = [(gone, row["none"], row[name]) for gone, row in quality.cells(data, size).items() if row.get(name)]
        if found:
            gone, before, after = min(found, key=lambda one: one[2])
            told = f"{quality.named(data, gone)} ({quality.layers([*gone])})"
            rows.append([size, len(found), arrow(mean(b for _, b, _ in found), mean(a for *_, a in found)), told])
            rows[-1].append(arrow(before, after))
    fits = data["settings"]["fitting"]
    about = (
        f"{model_of(data)} ({data['layers']} layers), repaired on {fits['samples']} x {fits['length']} tokens of an "
        f"encyclopaedia and novels: perplexity as a multiple of the dense model's, before → after "
        f"({source('quality')})."
    )
    return [about, "", *table(["removed", "plans", "mean over the plans", "best plan", "its figures"], rows)]


def repaired_models(name: str) -> list[str]:
    """The best repaired models; repaired.json."""
    data, rows = content("repaired"), []
    tool = tables("repaired_tables")
    for model in tool.models(data.get("pieces", {})):
        dense = data["pieces"][f"dense {model}"]
        for key, piece in data["pieces"].items():
            act, *words = key.split(" ")
            if act == "repair" and words[0] == model and words[3] == name:
                plain = data["pieces"].get(" ".join(["repair", *words[:3], "none"]))
                cells = [
                    arrow(
                        tool.ratio(plain, dense, length, texts) if plain else None,
                        tool.ratio(piece, dense, length, texts),
                    )
                    for length, texts in (("128", tool.GOAL_TEXTS), ("128", None), ("1024", tool.GOAL_TEXTS))
                ]
                gone = f"{tool.runs(piece['removed'])} of {dense['layers']}"
                took = f"{piece['seconds'] / 60:.0f}" if piece.get("seconds") else ""
                rows.append([model, gone, *cells, took])
    if not rows:
        return []
    about = (
        "Layers chosen for the model as it will be after a repair; perplexity as a multiple of the dense model's, as "
        "it is → repaired. *Other kinds* of text are newspapers, dialogue, code and instructions, of which nothing was "
        f"fitted ({source('repaired')}):"
    )
    head = ["model", "layers", "goal texts", "other kinds", "goal texts at 1,024 tokens", "minutes, one thread"]
    return [about, "", *table(head, rows, left=2)]


def written(name: str) -> list[str]:
    """What repaired models write; repaired.json."""
    data, rows = content("repaired"), []
    for key, piece in data.get("pieces", {}).items():
        act, *words = key.split(" ")
        if act == "answers" and words[-1] == name:
            seen = piece["agreement"]
            shares = [f"{seen[what]:.0%}" for what in ("next_token", "repetition")]
            rows.append([words[0], words[1], f"{seen['divergence']:.2f}", *shares])
    head = ["model", "removed", "KL per token, nats", "same next token", "answers that end in repetition"]
    return ["What it writes, held against the dense model's own answers:", "", *table(head, rows)] if rows else []


# ---------------------------------------------------------------- training


def healing(name: str) -> list[str]:
    """What training gives back; healing.json."""
    data = content("healing")
    piece = data.get("pieces", {}).get(f"heal {name}")
    if not piece:
        return []
    first, last, dense = piece["curve"][0], piece["curve"][-1], data["pieces"]["dense"]
    gone = tables("healing").REMOVED
    closed = (first["nll"] - last["nll"]) / (first["nll"] - dense["nll"])
    row = [f"{first['value']:.2f}", f"{last['value']:.2f}", f"{dense['value']:.2f}", f"{closed:.0%}"]
    row += [f"{piece['seconds'] / 60:.0f}", f"{piece['peak_memory_bytes'] / 2**30:.1f}"]
    about = (
        f"{model_of(data)} without layers {tables('quality_tables').layers(gone)}, repaired by `sequential`, then "
        f"trained on {last['tokens']:,} tokens of novels; perplexity of a novel of another author "
        f"({source('healing')}):"
    )
    head = ["before", "after", "dense model", "gap closed", "minutes, 2 threads", "memory, GiB"]
    return [about, "", *table(head, [row], left=0)]


def short_lora(name: str) -> list[str]:
    """A short LoRA after every way of removing; width.json."""
    data, rows = content("width"), []
    for key, piece in data.get("pieces", {}).items():
        act, *words = key.split(" ")
        if name == "lora" and act == "heal" and "perplexity" in piece:
            dense, before = (
                data["pieces"][f"dense {words[0]}"]["perplexity"],
                data["pieces"].get(f"repair {' '.join(words)}"),
            )
            ratio = tables("units_tables").ratio
            repaired = ratio(before["perplexity"], dense) if before else None
            rows.append([words[0], words[1], arrow(repaired, ratio(piece["perplexity"], dense))])
    if not rows:
        return []
    about = (
        f"{data['settings']['train_tokens']:,} tokens of two novels after a removal of {data['settings']['first']:.0%} "
        f"of the parameters, repaired → trained ({source('width')}):"
    )
    return [about, "", *table(["model", "way", "perplexity, x dense"], rows, left=2)]


BLOCKS: dict[str, tuple[Callable[[str], list[str]], ...]] = {
    "criteria": (plans_of("criteria"), in_parts, in_width("criteria"), on_a_gpu),
    "selection": (plans_of("selection"), in_parts, in_width("selection")),
    "compensation": (
        repairs,
        repaired_models,
        written,
        lambda name: in_width("compensation")(name) if name == "bias" else [],
    ),
    "healing": (healing, repaired_models, written, short_lora),
}
