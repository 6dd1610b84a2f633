"""The tables of the GPU benchmark: a line for each part, and all figures in Markdown, from the JSON alone."""

from collections.abc import Callable, Iterator


def said(name: str, part: dict) -> str:
    """What a part found, in one line."""
    steps = {key: step for key, step in part["steps"].items() if step["status"] != "skipped"}
    found = list(HEADLINES[name](steps)) if steps else [part.get("why", "")]
    if skipped := len(part["steps"]) - len(steps):
        found.append(f"{skipped} steps skipped")
    if part["status"] == "failed":
        found.append(f"FAILED: {part['error'][:200]}")
    return "; ".join(filter(None, found))


def _correctness(steps: dict) -> Iterator[str]:
    checks = [one for step in steps.values() for one in step.get("checks", {}).values()]
    yield f"{sum(one['ok'] for one in checks)} of {len(checks)} differences within their tolerance"
    proofs = [step["verified"] for step in steps.values() if "verified" in step]
    yield f"{sum(proof['logits'] == 'bit for bit' for proof in proofs)} of {len(proofs)} proofs bit for bit"


def _scoring(steps: dict) -> Iterator[str]:
    for name, step in steps.items():
        if name.startswith(("perplexity", "taylor")) and "best_seconds" in step:
            yield f"{name} {step['best_seconds']:.2f} s, {step['share_of_rate']:.0%} of the rate"
    if "copies_times_ours" in (step := steps.get("published procedure", {})):
        yield f"published {step['copies_times_ours']:.1f} x ours, bypassing {step['bypassing_times_ours']:.1f} x"


def _decode(steps: dict) -> Iterator[str]:
    for name, step in steps.items():
        cache = "dynamic" if "dynamic" in name else "static"
        for row in step.get("speedups", []):
            speed = f"{row['decode']:.2f} x (ideal {row['ideal']:.2f})"
            yield f"{row['of']}, batch {row['batch']}, {cache} {speed}"


def _repair(steps: dict) -> Iterator[str]:
    for name, step in steps.items():
        if "fitted_tokens" in step:
            yield f"{name} {step['best_seconds']:.1f} s, {step['peak_bytes'] / 2**30:.1f} GiB"


def _healing(steps: dict) -> Iterator[str]:
    for name, step in steps.items():
        if "mfu" in step:
            memory = f"{step['peak_bytes'] / 2**30:.1f} GiB"
            yield f"{name} {step['tokens_per_second']:.0f} tokens/s, MFU {step['mfu']:.1%}, {memory}"


HEADLINES: dict[str, Callable[[dict], Iterator[str]]] = {
    "correctness": _correctness,
    "scoring": _scoring,
    "decode": _decode,
    "repair": _repair,
    "healing": _healing,
}


def summary(content: dict) -> str:
    """The small table that is printed at the end."""
    where = f"{content['card']['name']}, " if content["card"] else "no GPU, "
    where += f"{content['machine']['cpu']}, torch {content['versions']['torch']}, {content['spent']:.0f} s"
    lines = [where, "", "| part | status | seconds | found |", "|---|---|--:|---|"]
    for name, part in content["parts"].items():
        lines.append(f"| {name} | {part['status']} | {part['seconds']:.0f} | {said(name, part)} |")
    return "\n".join(lines)


def table(content: dict) -> str:
    """All that was found, in Markdown."""
    versions = content["versions"]
    used = ", ".join(f"{name} {versions[name]}" for name in ("torch", "transformers", "cuda"))
    card = ", ".join(f"{name} {value}" for name, value in (content["card"] or {"name": "no GPU"}).items())
    head = f"# GPU{' (tiny models: a trial)' * content['tiny']}\n\n{card}; {content['machine']['cpu']}; {used}; "
    head += f"{content['date']}. Made by `make bench-gpu`. Texts: {', '.join(content['texts'])}."
    parts = [head, summary(content)]
    for name, part in content["parts"].items():
        rows = [
            f"| {key} | {step['status']} | {step.get('seconds', 0):.2f} | {_figures(step)} |"
            for key, step in part["steps"].items()
        ]
        made = f"{part['date']}, code {part['code']}, {part['card']}"
        lines = [f"## {name}\n\n{made}\n", "| step | status | seconds | figures |", "|---|---|--:|---|", *rows]
        parts += ["\n".join(lines)] if rows else []
    return "\n\n".join(parts) + "\n"


def _figures(step: dict) -> str:
    """The figures of a step: numbers by name, differences with their tolerances."""
    found = []
    for name, one in step.get("checks", {}).items():
        found.append(f"{name} {one['difference']:.1e} (at most {one['tolerance']:.1e})")
    for row in step.get("speedups", []):
        found.append(f"{row['of']}, batch {row['batch']}: {row['decode']:.3f} x, ideal {row['ideal']:.3f}")
    for row in step.get("rows", []):
        if row["decode"]:
            found.append(
                f"{row['of']} batch {row['batch']}: {1e3 * row['decode']:.2f} ms, {row['bound']:.0%} of the bandwidth"
            )
    found += [f"{name} {value}" for name, value in step.get("verified", {}).items()]
    for name, value in step.items():
        if isinstance(value, (int, float)) and name != "seconds":
            label = name.replace("_", " ")
            found.append(
                f"{label.removesuffix('bytes')}{value / 2**30:.2f} GiB"
                if name.endswith("bytes")
                else f"{label} {value:.4g}"
            )
    found += [step[name] for name in ("why", "error") if name in step]
    return "; ".join(found).replace("|", "/")
