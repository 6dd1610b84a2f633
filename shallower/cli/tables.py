"""Tables of what is decided: layers, scores, plans, pruned models. Numbers are never cut: columns give way."""

import itertools
import math
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from ..artifacts import Inspection, ModelRecord, Plan, Pruned, RepairReport, Scores, Unverified
from ..planning.amount import protection
from ..results.healing import LARGEST_LOSS, perplexity_times
from ..runtime.format import byte_count, count_text, layers, millions
from .grid import grid, plain_console

BAR = 20  # characters of the longest bar
TOLD_SHARE = 0.2  # of the layers, for which the agreement of scores is told


def inspection_table(found: Inspection, out: Path | None = None) -> None:
    console, model = plain_console(), found.model
    share = sum(model.layer_parameters) / model.parameters
    tied = "tied" if found.tied_embeddings else "untied"
    console.print(model.source, soft_wrap=True)
    console.print(f"{model.family} ({found.architecture}), {model.layers} layers in {found.stack}", soft_wrap=True)
    console.print(
        f"{millions(model.parameters)} parameters, {share:.1%} of them in the layers; "
        f"{stored_text(model, found.dtype)}; {tied} embeddings",
        soft_wrap=True,
    )
    pruned = model.original != list(range(model.layers))
    columns = [
        "layers",
        *(["in the dense model"] if pruned else []),
        "kind",
        "parameters each",
        "bytes each",
        "share each",
        "can go",
    ]
    rows = []
    for same in _equal_layers(found):
        count = model.layer_parameters[same[0]]
        size = byte_count(model.layer_bytes[same[0]]) if model.layer_bytes else "-"
        kind, legal = found.layer_kinds[same[0]], "yes" if same[0] in found.removable else "no"
        original = [layers([model.original[index] for index in same])] if pruned else []
        rows.append([layers(same), *original, kind, millions(count), size, f"{count / model.parameters:.2%}", legal])
    grid(console, columns, rows, spare=("share each", "bytes each"))
    for refusal in found.refusals.values():
        console.print("-", refusal, soft_wrap=True)
    saved_note(console, out)


def _equal_layers(found: Inspection) -> list[list[int]]:
    """Neighbouring layers that are alike, one list for each run of them."""
    model = found.model

    def looks(index: int) -> tuple[Any, ...]:
        size = model.layer_bytes[index] if model.layer_bytes else 0
        follows = model.original[index] - index  # where the numbering of the dense model makes a step, a new row begins
        return found.layer_kinds[index], model.layer_parameters[index], size, index in found.removable, follows

    return [list(same) for _, same in itertools.groupby(range(model.layers), looks)]


def stored_text(model: ModelRecord, dtype: str = "") -> str:
    """How many bytes the weights take and how they are stored; for a .gguf file, what it holds and what it becomes."""
    size = f"{byte_count(model.weight_bytes)} " if model.weight_bytes else ""
    if model.packed_bytes:
        packed = f"{byte_count(model.packed_bytes)} packed as {model.packed_storage or 'GGUF'}"
        return f"{packed}, {size}as the plain {model.storage} model that it is unpacked to"
    return f"{size}stored as {model.storage or dtype}"


def scores_table(found: Scores, out: Path | None = None) -> None:
    console, ranks = plain_console(), found.ranks
    first, last = protection(len(ranks))
    rows = [
        (str(index), f"{value:.6g}", str(ranks[index]), _bar(ranks[index], len(ranks)))
        for index, value in enumerate(found.scores)
    ]
    heading = f"{found.criterion} on {Path(found.model.source).name}"
    grid(console, ("layer", found.criterion, "rank (1 goes first)", "sooner"), rows, heading=heading, spare=("sooner",))
    soonest = ", ".join(map(str, _first(found.scores, _some(found), first, last)))
    console.print(
        f"goes first: {soonest} (plan protects the first {first} and the last {last} if not told otherwise)",
        soft_wrap=True,
    )
    if len(found.halves) == 2:
        told, size = _common([_first(half, _some(found), first, last) for half in found.halves]), _some(found)
        console.print(
            f"the two halves of the samples agree on {len(told)} of these {size}{_shaky(len(told), size)}",
            soft_wrap=True,
        )
    used = (
        f" on {found.calibration.samples} x {found.calibration.length} tokens of {found.calibration.source}"
        if found.calibration
        else ""
    )
    console.print(
        f"{found.seconds:.1f} s, peak memory {found.peak_memory_bytes / 2**30:.2f} GiB, {found.dtype}{used}",
        soft_wrap=True,
    )
    saved_note(console, out)
    if out is not None:
        console.print(
            f"next: shallower plan {shlex.quote(str(out))} --remove {_some(found)} --out plan.json", soft_wrap=True
        )


def several_scores_table(found: Sequence[Scores], out: Path | None = None) -> None:
    """Ranks by several criteria side by side, and how far they agree."""
    console, count = plain_console(), len(found[0].scores)
    first, last = protection(count)
    size = _some(found[0])
    names = _names_of(found)
    rows = [[str(index), *(str(one.ranks[index]) for one in found)] for index in range(count)]
    grid(console, ["layer", *names], rows, heading=f"ranks on {Path(found[0].model.source).name} (1 goes first)")
    chosen = [_first(one.scores, size, first, last) for one in found]
    for name, mine in zip(names, chosen, strict=True):
        console.print(f"{name}: goes first {layers(mine)}", soft_wrap=True)
    for (one, mine), (other, theirs) in itertools.combinations(zip(names, chosen, strict=True), 2):
        same = len(_common([mine, theirs]))
        alike = _alike(found[names.index(one)].ranks, found[names.index(other)].ranks)
        console.print(f"{one} and {other}: {same} of {size} the same, rank correlation {alike:.2f}", soft_wrap=True)
    agreed = _common(chosen)
    console.print(f"all agree on {layers(agreed)} (of {size}, first {first} and last {last} protected)", soft_wrap=True)
    used = {(one.calibration.hash, one.calibration.samples, one.calibration.length) for one in found if one.calibration}
    if len(used) > 1:
        console.print(
            "note: they were scored on different tokens, so a difference need not come from the criterion",
            soft_wrap=True,
        )
    if len({one.model.fingerprint for one in found}) > 1:
        console.print("note: these are scores of different models", soft_wrap=True)
    saved_note(console, out)


def _names_of(found: Sequence[Scores]) -> list[str]:
    """A name for each: its criterion, with the number of samples or a counter where that is not enough."""
    names = [one.criterion for one in found]
    if len(set(names)) < len(names):
        names = [
            f"{one.criterion}, {one.calibration.samples} samples" if one.calibration else one.criterion for one in found
        ]
    return names if len(set(names)) == len(names) else [f"{name} ({number})" for number, name in enumerate(names, 1)]


def _some(found: Scores) -> int:
    return max(1, round(TOLD_SHARE * len(found.scores)))


def _first(values: Sequence[float], size: int, first: int, last: int) -> list[int]:
    """The layers with the lowest scores, the protected ones left out."""
    return sorted(range(first, len(values) - last), key=values.__getitem__)[:size]


def _common(chosen: Sequence[Sequence[int]]) -> list[int]:
    return sorted(set(chosen[0]).intersection(*chosen[1:]))


def _alike(one: Sequence[int], other: Sequence[int]) -> float:
    """Spearman's rank correlation."""
    count = len(one)
    return (
        1 - 6 * sum((a - b) ** 2 for a, b in zip(one, other, strict=True)) / (count * (count * count - 1))
        if count > 1
        else 1.0
    )


def _bar(rank: int, count: int) -> str:
    return "#" * max(1, round(BAR * (count - rank + 1) / count))


def _shaky(agreed: int, size: int) -> str:
    """A warning where the choice hangs on which samples were drawn."""
    return (
        ": the choice depends on the samples, take more of them or more kinds of text" if agreed < size * 2 / 3 else ""
    )


def plan_table(found: Plan, out: Path | None = None) -> None:
    console = plain_console()
    _removal(console, found)
    saved_note(console, out)
    if out is not None:
        source = shlex.quote(found.model.source)
        console.print(f"next: shallower prune {source} --plan {shlex.quote(str(out))} --out pruned", soft_wrap=True)


def _removal(console: Console, found: Plan) -> None:
    """What a plan removes, why, and what is saved by it."""
    by = f"by {found.criterion}, {found.selection}" if found.criterion else f"by {found.selection}"
    console.print(
        f"remove {len(found.removed)} of {found.model.layers} layers: {layers(found.removed)} ({by})", soft_wrap=True
    )
    if found.order != found.removed:
        console.print(f"order of removal: {', '.join(map(str, found.order))}", soft_wrap=True)
    protected = (
        f"first {found.keep_first} and last {found.keep_last} protected"
        if found.selection != "drop"
        else "no layer protected"
    )
    console.print(
        f"parameters {millions(found.params_before)} -> {millions(found.params_after)}, {found.share:.2%} of "
        f"all; {protected}",
        soft_wrap=True,
    )
    if found.bytes_after:
        console.print(
            f"weights {byte_count(found.bytes_before)} -> {byte_count(found.bytes_after)} as {found.model.storage}",
            soft_wrap=True,
        )
        if found.model.packed_bytes:
            console.print(
                f"  the .gguf file has {byte_count(found.model.packed_bytes)}: what is written is a plain "
                "model, not packed; "
                "--save-dtype bf16 makes it smaller",
                soft_wrap=True,
            )
    console.print(
        f"expected by the weights that a token reads: decoding {found.expected_speedup:.2f}x as fast", soft_wrap=True
    )
    if found.agreement is not None:
        size = len(found.removed)
        told = (
            f"the two halves of the calibration samples agree on {found.agreement} of "
            f"{size}{_shaky(found.agreement, size)}"
        )
        console.print(told, soft_wrap=True)
    if found.assumed:
        console.print(f"assumed: {found.assumed}", soft_wrap=True)


def pruned_table(found: Pruned, out: Path | None = None) -> None:
    console = plain_console()
    _removal(console, found.plan)
    for change in found.config_changes:
        console.print("config:", change, soft_wrap=True)
    if found.compensation:
        count = len(found.compensation.changed)
        what = (
            f"{count_text(count, 'weight')} changed"
            if count
            else "nothing changed, as the loss on held-out text did not fall"
        )
        console.print(f"{found.compensation.method}: {what}", soft_wrap=True)
        _held_out(console, found.compensation)
    proof = found.verified
    if isinstance(proof, Unverified):
        console.print(f"not verified: {proof.skipped}", soft_wrap=True)
    else:
        console.print(
            f"verified after reloading ({proof.dtype}): logits equal {proof.logits}, cached decoding within "
            f"{proof.cached_difference:.1e} of uncached (dense "
            f"{proof.cached_difference_unpruned:.1e}), no missing keys",
            soft_wrap=True,
        )
    console.print(f"load it with AutoModelForCausalLM.from_pretrained({str(out)!r})", soft_wrap=True)


def _held_out(console: Console, told: RepairReport) -> None:
    """Perplexity on calibration text that nothing was fitted on, as a multiple of the dense model's, in all and per
    source.
    """
    losses_of = {"all": told.loss, **told.by_source}
    if len(losses_of) == 2:
        losses_of.pop("all")
    rows = []
    for name, loss in losses_of.items():
        times = [f"x {value:.3f}" for value in perplexity_times(loss)]
        rows.append([name, f"{math.exp(min(loss.dense, LARGEST_LOSS)):.2f}", *times])
    columns = ["held-out text", "dense perplexity", "not repaired", "repaired"]
    grid(console, columns, rows, spare=("dense perplexity",))


def saved_note(console: Console, out: Path | None) -> None:
    if out is not None:
        console.print(f"written to {out}", soft_wrap=True)
