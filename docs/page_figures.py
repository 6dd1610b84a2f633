"""Tables of the pages Choosing, GPU and of the first page, drawn from the result files."""

import json
from pathlib import Path

from method_figures import OPEN, arrow, content, model_of, number, source, table, tables, way_cell

ROOT = Path(__file__).parents[1]
SEVERAL = {"layer": "layers", "attention": "attentions", "mlp": "MLPs"}
NAMES = {"layer": "whole layers", "attention": "attentions alone", "mlp": "MLPs alone", "sublayer": "both, mixed"}


def blocks() -> dict[str, dict[str, str]]:
    """Page -> name of a generated part -> its text."""
    return {
        "index.md": {"best": text(best()), "families": families()},
        "choosing.md": {"units": text(units()), "width": text(width()), "speeds": text(speeds())},
        "repair.md": {"repaired": text(repaired())},
        "gpu.md": {
            "scoring": text(gpu_scoring()),
            "decoding": text(gpu_decoding()),
            "repair": text(gpu_repair()),
            "healing": text(gpu_healing()),
            "correctness": text(gpu_correctness()),
        },
    }


def text(lines: list[str]) -> str:
    return "\n".join(["", *lines, "", ""])  # a blank line around, so that a table is one


def at(page: str) -> str:
    """A link to a result page from a page in docs/."""
    return source(page, "..")


# ---------------------------------------------------------------- the first page


def best() -> list[str]:
    """The best published plan as it is and the best repaired one, by size."""
    data = content("quality")
    quality = tables("quality_tables")
    published, rows = data["settings"]["published"], []
    for size in quality.sizes_of(data):
        plain, top = quality.best(data, size, ("none",), tuple(published)), quality.best(data, size)
        if plain and top:
            label = next(label for label in published if label in quality.sets(data, size)[plain.gone])
            told = f"{quality.layers([*top.gone])}, `{top.method}`"
            rows.append([f"{size} of {data['layers']}", number(plain.ratio), published[label], number(top.ratio), told])
    about = (
        f"{model_of(data)}, perplexity as a multiple of the dense model's, mean of three texts ([quality](quality.md)):"
    )
    head = ["layers removed", "as it is", "best published choice", "repaired, no training", "layers and repair"]
    return [about, "", *table(head, rows)]


def families() -> str:
    """How many model types come out exact."""
    data = json.loads((ROOT / "benchmarks" / "results" / "families.json").read_text(encoding="utf-8"))
    exact = sum(one["status"] == "exact" for one in data["types"].values())
    return (
        f"\nOf the {len(data['types'])} causal-LM types of transformers {data['versions']['transformers']}, {exact} "
        "come out exact; the others are refused with a reason, or cannot be built by themselves "
        "([model types](families.md)).\n\n"
    )


# ---------------------------------------------------------------- repair


def repaired() -> list[str]:
    """Every repair of the removals that were chosen for the repaired model, and what the models write."""
    data = content("repaired")
    tool, lines = tables("repaired_tables"), []
    answers = {key.partition(" ")[2]: piece for key, piece in data["pieces"].items() if key.startswith("answers ")}
    for model in tool.models(data["pieces"]):
        dense, rows = data["pieces"][f"dense {model}"], []
        for key, piece in data["pieces"].items():
            act, *words = key.split(" ")
            if act == "repair" and words[0] == model:
                of = (("128", tool.GOAL_TEXTS), ("128", None), ("1024", tool.GOAL_TEXTS))
                figures = [number(tool.ratio(piece, dense, length, texts)) for length, texts in of]
                took = f"{piece['seconds'] / 60:.0f}" if piece.get("seconds") else ""
                wrote = answers.get(" ".join(words), {}).get("agreement")
                said = [f"{wrote['divergence']:.2f}", f"{wrote['repetition']:.0%}"] if wrote else ["", ""]
                gone = f"{tool.runs(piece['removed'])} of {dense['layers']}"
                rows.append([gone, f"`{words[3]}`", *figures, took, *said])
        rows.sort(key=lambda row: (row[0], -float(row[2])))
        head = [
            model,
            "repair",
            "goal texts",
            "other kinds",
            "at 1,024 tokens",
            "minutes, one thread",
            "KL",
            "repetition",
        ]
        lines += ["", *table(head, rows, left=2)]
    about = (
        "Runs of layers that `--objective repaired` chose, never by a text of the test. Perplexity as a multiple of "
        "the dense model's: on the goal texts (an encyclopaedia, newspapers, a novel), on other kinds of which nothing "
        "was fitted (newspapers, dialogue, code, instructions), on the goal texts at 1,024 tokens. *KL*: divergence "
        "from the unpruned model's own answers to the shipped prompts, nats per token; *repetition*: answers that end "
        f"in it. `lora` starts from `sequential` and takes about as long as `local` ({at('repaired')})."
    )
    return [about, *lines]


# ---------------------------------------------------------------- choosing


def units() -> list[str]:
    """Layers and their parts: the best way of each kind, by share of the parameters."""
    data, lines = content("units"), []
    tool = tables("units_tables")
    for model in tool.models(data["pieces"]):
        dense, found = data["pieces"][f"dense {model}"]["perplexity"], {}
        for kind, way, rows in tool.chosen(data["pieces"], model):
            for share, (plain, repaired) in rows.items():
                figures = [tool.ratio(row["perplexity"], dense) if row else None for row in (plain, repaired)]
                rank = (figures[1] is None, figures[1] or figures[0])
                found.setdefault(kind, {}).setdefault(share, []).append((rank, f"{arrow(*figures)} ({way})"))
        shares = sorted({share for rows in found.values() for share in rows})
        ranks = {share: [min(rows[share])[0] for rows in found.values() if share in rows] for share in shares}
        lowest = {share: min(several) if len(several) > 1 else () for share, several in ranks.items()}
        rows = [
            [NAMES[kind], *(best_cell(ways.get(share, []), lowest[share]) for share in shares)]
            for kind, ways in sorted(found.items(), key=lambda item: [*NAMES].index(item[0]))
        ]
        lines += ["", *table([model, *(f"{float(share):.0%}" for share in shares)], rows)]
    samples, length = data["settings"]["scoring"]
    about = (
        "Perplexity as a multiple of the dense model's (geometric mean of three texts), as it is → repaired by "
        "`sequential`. Of each kind the way that did best, in brackets; chosen on "
        f"{samples} x {length} tokens. The lowest of a column is bold; a kind of which that much cannot go, "
        f"or was not run, has `-` ({at('units')})."
    )
    return [about, *lines]


def best_cell(ways: list, lowest: tuple) -> str:
    if not ways:
        return "-"
    rank, said = min(ways)
    return f"**{said}**" if rank == lowest else said


def width() -> list[str]:
    """Depth, width and both, at equal parameters."""
    data, lines = content("width"), []
    tool, ways = tables("units_tables"), tables("width").WAYS
    shares = data["settings"]["shares"]
    for model in tool.models(data["pieces"]):
        rows = []
        for way, how in ways.items():
            cells = [way_cell(data, model, way, share) for share in shares]
            if any(cell != OPEN for cell in cells):
                rows.append([f"`{way}`", f"{how.units}: `{how.criterion}`, `{how.choosing.selection}`", *cells])
        lines += [
            "",
            *table([model, "units: criterion, selection", *(f"{share:.0%}" for share in shares)], rows, left=2),
        ]
    samples, length = data["settings"]["scoring"]
    about = (
        "Perplexity as a multiple of the dense model's, as it is → repaired (`flap` by its bias, all others by "
        f"`sequential`); in brackets what went. Scored on {samples} x {length} tokens; {OPEN} is not measured yet "
        f"({at('width')})."
    )
    return [about, *lines]


def speeds() -> list[str]:
    """What each way of removing does to speed, weights and cache."""
    data, rows = content("width"), []
    batches = data["settings"]["batches"]
    for key, piece in data["pieces"].items():
        act, *words = key.split(" ")
        if act == "speed":
            model, way, share = words
            by = {row["batch"]: row for row in piece["rows"]}
            figures = [
                f"{by[batch][what]:.2f}" for what in ("decode", "prefill") for batch in (batches[0], batches[-1])
            ]
            cells = [model, f"`{way}`", f"{float(share):.0%}", *figures]
            rows.append([*cells, f"{piece['bytes'] / 1e6:.0f}", f"{piece['cache']:,}"])
    head = [
        "model",
        "way",
        "removed",
        *(f"{what}, batch {n}" for what in ("decoding", "prefill") for n in (batches[0], batches[-1])),
    ]
    lines = [
        f"Times as fast as the dense model on a CPU ({at('width')}):",
        "",
        *table([*head, "weights, MB", "cache, bytes per token"], rows, left=2),
    ]
    parts, rows = content("units"), []
    for key, piece in parts["pieces"].items():
        act, *words = key.split(" ")
        if act == "speed":
            gone = f"{len(piece['units'])} {SEVERAL[words[1]]}"
            cache = f"{piece['cache']['with']:,} → {piece['cache']['without']:,}"
            rows.append([words[0], gone, *(f"{piece[what]:.2f}" for what in ("decode", "ideal", "prefill")), cache])
    about = f"The same of layers and parts, at {parts['settings']['context']:,} tokens of context ({at('units')}):"
    head = ["model", "without", "decoding", "as the bytes read allow", "prefill", "cache, bytes per token"]
    return [*lines, "", about, "", *table(head, rows, left=2)]


# ---------------------------------------------------------------- GPU


def gpu_steps(part: str) -> dict[str, dict]:
    return content("gpu")["parts"][part]["steps"]


def gpu_scoring() -> list[str]:
    """Seconds of every criterion, resident and layered."""
    data, rows = content("gpu"), []
    steps = gpu_steps("scoring")
    for key, step in steps.items():
        if "best_seconds" in step and key != "warming up":
            rate = f"{step['share_of_rate']:.0%}" if "share_of_rate" in step else ""
            rows.append([key, f"{step['best_seconds']:.2f}", rate, f"{step['peak_bytes'] / 2**30:.1f}"])
    plain = steps["published procedure"]
    about = (
        f"{data['card']['name']}, a 7B-shaped model of {steps['writing the model']['parameters'] / 1e9:.1f} billion "
        f"parameters in bf16, torch {data['versions']['torch']} ({at('gpu')}). *Rate* is the share of the matrix rate "
        "that was measured on the card."
    )
    said = (
        "All removals by the published procedure (a copy of the model for each) take "
        f"{plain['copies_times_ours']:.1f} times as long as `perplexity` here, with the layers bypassed instead of "
        f"copied {plain['bypassing_times_ours']:.1f} times."
    )
    return [about, "", *table(["criterion, samples x tokens", "seconds", "rate", "memory, GiB"], rows), "", said]


def gpu_decoding() -> list[str]:
    """Speed-ups of decoding."""
    rows = []
    for key, step in gpu_steps("decode").items():
        cache = "grown as it goes" if "dynamic" in key else "static, CUDA graphs"
        took = {(row["of"], row["batch"]): row["decode"] for row in step.get("rows", []) if row["decode"]}
        for row in step.get("speedups", []):
            spent = took.get((row["of"], row["batch"]))
            milliseconds = f"{1e3 * spent:.2f}" if spent else OPEN
            rows.append([row["of"], row["batch"], cache, f"{row['decode']:.2f}", f"{row['ideal']:.2f}", milliseconds])
    rows.sort(key=lambda row: (row[2], row[0], row[1]), reverse=True)
    head = ["layers", "batch", "cache", "times as fast", "as the bytes read allow", "ms per step"]
    return ["The same model without a fifth and without half of its layers:", "", *table(head, rows)]


def gpu_repair() -> list[str]:
    rows = [
        [
            key,
            f"{step['fitted_tokens'] + step['held_out_tokens']:,}",
            f"{step['best_seconds']:.1f}",
            f"{step['peak_bytes'] / 2**30:.1f}",
        ]
        for key, step in gpu_steps("repair").items()
        if "fitted_tokens" in step
    ]
    return [
        "The same model; random weights, so these are times alone:",
        "",
        *table(["repair", "tokens", "seconds", "memory, GiB"], rows),
    ]


def gpu_healing() -> list[str]:
    steps = gpu_steps("healing")
    rows = [
        [key, f"{step['tokens_per_second']:,.0f}", f"{step['mfu']:.0%}", f"{step['peak_bytes'] / 2**30:.1f}"]
        for key, step in steps.items()
        if "mfu" in step
    ]
    size = steps["writing the model"]["parameters"] / 1e9
    about = f"A model of {size:.1f} billion parameters, `heal` beside transformers' own Trainer:"
    return [about, "", *table(["loop", "tokens per second", "of the card's rate", "memory, GiB"], rows)]


def gpu_correctness() -> list[str]:
    steps = gpu_steps("correctness")
    checks = [one for step in steps.values() for one in step.get("checks", {}).values()]
    proofs = [step["verified"] for step in steps.values() if "verified" in step]
    exact = sum(proof["logits"] == "bit for bit" for proof in proofs)
    return [
        f"{sum(one['ok'] for one in checks)} of {len(checks)} differences between GPU and CPU, and between layered and "
        f"resident, lie within their tolerance; {exact} of {len(proofs)} proofs hold bit for bit."
    ]
