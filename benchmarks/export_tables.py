"""Tables of the benchmark of exports, from its file alone."""

from statistics import median

from harness.store import machines_text, versions_text

OPEN = "…"
ROWS = (  # (name, piece)
    ("dense", "dense"),
    ("dense, GPTQ", "gptq dense"),
    ("pruned, bf16", "folder pruned"),
    ("pruned, .gguf", "gguf pruned"),
    ("pruned, GPTQ", "gptq pruned"),
    ("repaired, bf16", "folder repaired"),
    ("repaired, .gguf", "gguf repaired"),
    ("repaired, GPTQ", "gptq repaired"),
)


def table(content: dict) -> str:
    """The results in Markdown."""
    pieces, own = content["pieces"], content["settings"]
    versions = versions_text(content)
    lines = [
        "# Export: .gguf files, GPTQ",
        "",
        f"{machines_text(content)}, fp32; {versions}; begun {content['date']}.",
        "",
        f"{own['share']:.0%} of the parameters go, as whole layers by Taylor+. Repaired by `sequential` on "
        f"{own['fitting'][0]} x {own['fitting'][1]} tokens of the shipped prose. GPTQ: 4 bits, {own['gptq'][0]} x "
        f"{own['gptq'][1]} tokens of wikitext2.valid, read back in fp32. Perplexity of {own['tokens']:,} tokens of "
        "each text. The .gguf files keep the types of the one that they come from; what the repair changed is Q8_0.",
    ]
    for name in [key.removeprefix("dense ") for key in pieces if key.startswith("dense ")]:
        lines += ["", f"## {name}", "", *_quality(pieces, name), *_copying(pieces, name)]
    return "\n".join(lines) + "\n"


def _quality(pieces: dict, name: str) -> list[str]:
    texts = list(pieces[f"dense {name}"]["perplexity"])
    speed = pieces.get(f"speed {name}", {})
    head = ["model", *texts, "MB", "llama.cpp: prefill", "decode"]
    lines = [f"| {' | '.join(head)} |", f"|---|{'--:|' * (len(head) - 1)}"]
    for label, kind in ROWS:
        act, _, form = kind.partition(" ")
        piece = pieces.get(f"{act} {name} {form}".strip())
        values = [OPEN] * len(texts) if piece is None else [f"{piece['perplexity'][text]:.1f}" for text in texts]
        size = OPEN if piece is None else f"{piece['bytes'] / 1e6:.0f}"
        told = speed.get("dense" if kind == "dense" else form) if act in ("dense", "gguf") else None
        shown = [f"{told['prefill']:.0f}", f"{told['decode']:.1f}"] if told else ["", ""]
        lines.append(f"| {' | '.join([label, *values, size, *shown])} |")
    return lines


def _copying(pieces: dict, name: str) -> list[str]:
    """Copying and inspecting."""
    lines = []
    if copied := pieces.get(f"copy {name}"):
        ours, inside, bare, theirs = (median(copied[key]) for key in ("command", "writing", "cp", "cp_synced"))
        proof = copied["proof"]
        lines += [
            "",
            f"Pruning the .gguf file ({copied['bytes'] / 1e6:.0f} MB): {ours:.2f} s with start-up, {inside:.2f} s of "
            f"it writing, until it is on the disk; `cp` of the same bytes {bare:.2f} s, until they are on the disk "
            f"{theirs:.2f} s ({theirs / inside:.2f} x). Proven in {proof['by']}: "
            f"largest difference {proof['difference']:.3g} behind prompts of {', '.join(map(str, proof['prompts']))} "
            "tokens.",
        ]
    if seen := pieces.get(f"inspect {name}"):
        lines += [
            "",
            f"`inspect` of it: {median(seen['seconds']):.2f} s, {seen['peak_memory_bytes'] / 1e6:.0f} MB of memory.",
        ]
    return lines
