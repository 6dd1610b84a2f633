"""Tables of the benchmark of repaired models, from its file alone."""

from statistics import mean

from harness.store import machines_text, versions_text

GOAL_TEXTS = ("wikitext2-raw.test", "ptb.valid", "emma_158")
FITTED_KINDS = ("wikitext2-raw.test", "emma_158")  # other texts of the kinds that were fitted
OPEN = "…"


def ratio(piece: dict, dense: dict, length: str, texts: tuple[str, ...] | None = None) -> float | None:
    """Mean over texts of perplexity as a multiple of the dense model's; without names, over the other kinds."""
    values, before = piece["perplexity"].get(length), dense["perplexity"].get(length)
    if values is None or before is None:
        return None
    names = texts or [name for name in values if name not in FITTED_KINDS]
    return mean(values[name] / before[name] for name in names)


def number(value: float | None) -> str:
    """Three digits, or an open cell."""
    return OPEN if value is None else f"{value:.2f}" if value < 100 else f"{value:.3g}"


def models(pieces: dict) -> list[str]:
    """Names of the models in a file."""
    return [key.removeprefix("dense ") for key in pieces if key.startswith("dense ")]


def table(content: dict) -> str:
    """The results in Markdown."""
    pieces = content["pieces"]
    versions = versions_text(content)
    fitted = " and ".join(f"{samples} x {length}" for samples, length in content["settings"]["fitting"].values())
    lines = [
        "# Repaired models",
        "",
        f"{machines_text(content)}, fp32; {versions}; begun {content['date']}.",
        "",
        f"Mean over texts of perplexity as a multiple of the dense model's. Fitted on {fitted} tokens (first and "
        "second model), half encyclopaedia (wikitext2.valid), half three novels. *Goal texts*: "
        f"{', '.join(GOAL_TEXTS)}. *Fitted kinds*: {', '.join(FITTED_KINDS)}. *Other kinds*: newspapers (ptb), "
        "dialogue, code and instructions, of which nothing was fitted. LoRA starts from `sequential` and takes as long "
        "as `local`.",
    ]
    for model in models(pieces):
        lines += ["", f"## {model}", "", *_rows(pieces, model, content["settings"]["lengths"])]
        lines += _answers(pieces, model)
    return "\n".join(lines) + "\n"


def _rows(pieces: dict, model: str, lengths: list[int]) -> list[str]:
    dense = pieces[f"dense {model}"]
    short, *longer = map(str, lengths)
    head = ["removed", "chosen by", "layers", "repair", "goal texts", "fitted kinds", "other kinds"]
    head += [f"goal texts at {length}" for length in longer] + ["minutes", "memory GiB", "tokens"]
    lines = [f"| {' | '.join(head)} |", f"|{' --- |' * 4}{' --: |' * (len(head) - 4)}"]
    for key, piece in pieces.items():
        act, *names = key.split(" ")
        if act != "repair" or names[0] != model:
            continue
        gone = piece["removed"]
        cells = [f"{len(gone)} of {dense['layers']}", names[2], runs(gone), f"`{names[3]}`"]
        cells += [number(ratio(piece, dense, short, texts)) for texts in (GOAL_TEXTS, FITTED_KINDS, None)]
        cells += [number(ratio(piece, dense, length, GOAL_TEXTS)) for length in longer]
        cost = piece.get("seconds")
        cells += (
            [f"{cost / 60:.1f}", f"{piece['peak_memory_bytes'] / 2**30:.1f}", f"{piece['tokens']:,}"]
            if cost
            else [""] * 3
        )
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def _answers(pieces: dict, model: str) -> list[str]:
    """The table of what is written."""
    found = {key: piece for key, piece in pieces.items() if key.startswith(f"answers {model} ")}
    if not found:
        return []
    tasks = list(dict.fromkeys(name for piece in found.values() for name in piece["tasks"]))
    first = next(iter(found.values()))
    sort = {name: "choices" if first["tasks"][name]["chance"] else "written" for name in tasks}
    head = ["removed", "chosen by", "repair", *(f"{name} ({sort[name]})" for name in tasks)]
    head += ["KL per token", "next token", "first token", "first 32", "end in repetition"]
    count, most = (first["agreement"][name] for name in ("count", "longest"))
    lines = [
        "",
        f"Values of tasks with their standard errors; agreement with the dense model on {count} prompts, answers of at "
        f"most {most} tokens.",
        "",
        f"| {' | '.join(head)} |",
        f"|{' --- |' * 3}{' --: |' * (len(head) - 3)}",
    ]
    for key, piece in found.items():
        names = key.split(" ")[2:]
        gone = len(pieces[key.replace("answers", "repair", 1)]["removed"]) if len(names) > 1 else 0
        values = [f"{piece['tasks'][name]['value']:.3f} ± {piece['tasks'][name]['stderr']:.3f}" for name in tasks]
        seen = piece["agreement"]
        shares = [f"{seen[name]:.0%}" for name in ("next_token", "first_token", "first_32", "repetition")]
        divergence = f"{seen['divergence']:.3f}"
        way = [str(gone), names[1], f"`{names[2]}`"] if gone else ["0", "", ""]
        lines.append(f"| {' | '.join([*way, *values, divergence, *shares])} |")
    return lines


def runs(gone: list[int]) -> str:
    """Numbers of layers, runs shortened."""
    parts: list[list[int]] = []
    for one in sorted(gone):
        if parts and one == parts[-1][-1] + 1:
            parts[-1].append(one)
        else:
            parts.append([one])
    return ", ".join(f"{part[0]}-{part[-1]}" if len(part) > 1 else str(part[0]) for part in parts)
