"""Tables of what is decided: layers, scores, plans, pruned models. Numbers are never cut: columns give way."""

import itertools
import math
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from ..artifacts import (
    Candidate,
    Inspection,
    ModelRecord,
    Plan,
    Pruned,
    PrunedGguf,
    RepairReport,
    Scores,
    Units,
    Unverified,
)
from ..planning.amount import allowed_numbers, protection
from ..results.healing import LARGEST_LOSS, perplexity_times
from ..runtime.format import byte_count, count_text, layers, millions
from .grid import grid, plain_console
from .group_tables import group_scores_table, several_group_scores

BAR = 20  # characters of the longest bar
AGREEMENT_SHARE = 0.2  # of the layers, for which the agreement of scores is shown


def inspection_table(inspection: Inspection, out: Path | None = None) -> None:
    console = plain_console()
    model = inspection.model
    share = sum(model.layer_parameters) / model.parameters
    embeddings = "tied" if inspection.tied_embeddings else "untied"
    console.print(model.source, soft_wrap=True)
    console.print(
        f"{model.family} ({inspection.architecture}), {model.layers} layers in {inspection.stack}", soft_wrap=True
    )
    console.print(
        f"{millions(model.parameters)} parameters, {share:.1%} of them in the layers; "
        f"{stored_text(model, inspection.dtype)}; {embeddings} embeddings",
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
    for same in _equal_layers(inspection):
        count = model.layer_parameters[same[0]]
        size = byte_count(model.layer_bytes[same[0]]) if model.layer_bytes else "-"
        kind = inspection.layer_kinds[same[0]]
        legal = "yes" if same[0] in inspection.removable else "no"
        original = [layers([model.original[index] for index in same])] if pruned else []
        rows.append([layers(same), *original, kind, millions(count), size, f"{count / model.parameters:.2%}", legal])
    grid(console, columns, rows, spare=("share each", "bytes each"))
    for refusal in inspection.refusals.values():
        console.print("-", refusal, soft_wrap=True)
    saved_note(console, out)


def _equal_layers(inspection: Inspection) -> list[list[int]]:
    """Neighbouring layers that are alike, one list for each run of them."""
    model = inspection.model

    def looks(index: int) -> tuple[Any, ...]:
        size = model.layer_bytes[index] if model.layer_bytes else 0
        follows = model.original[index] - index  # where the numbering of the dense model makes a step, a new row begins
        return (
            inspection.layer_kinds[index],
            model.layer_parameters[index],
            size,
            index in inspection.removable,
            follows,
        )

    return [list(same) for _, same in itertools.groupby(range(model.layers), looks)]


def stored_text(model: ModelRecord, dtype: str = "") -> str:
    """How many bytes the weights take and how they are stored; for a .gguf file, what it holds and what it becomes."""
    size = f"{byte_count(model.weight_bytes)} " if model.weight_bytes else ""
    if model.packed_bytes and model.packed_bytes == model.weight_bytes:  # of the header of a .gguf file
        return f"{size}stored as {model.storage}, {byte_count(4 * model.parameters)} unpacked to float32"
    if model.packed_bytes:
        packed = f"{byte_count(model.packed_bytes)} packed as {model.packed_storage or 'GGUF'}"
        return f"{packed}, {size}as the plain {model.storage} model that it is unpacked to"
    return f"{size}stored as {model.storage or dtype}"


def scores_table(scores: Scores, out: Path | None = None) -> None:
    console = plain_console()
    if scores.narrow:
        group_scores_table(console, scores)
        _print_scored(console, scores, out, "--ratio 0.2")
        return
    ranks = scores.ranks
    size = _default_size(scores)
    first, last = protection(scores.model.layers)
    rows = [
        (name, f"{value:.6g}", str(rank), _bar(rank, len(ranks)))
        for name, value, rank in zip(scores.names, scores.scores, ranks, strict=True)
    ]
    heading = f"{scores.criterion} on {Path(scores.model.source).name}"
    grid(
        console,
        (scores.word, scores.criterion, "rank (1 goes first)", "sooner"),
        rows,
        heading=heading,
        spare=("sooner",),
    )
    names = scores.names
    soonest = ", ".join(names[number] for number in _lowest(scores, scores.scores, size))
    console.print(
        f"goes first: {soonest} (plan protects the first {first} and the last {last} layers if not told otherwise)",
        soft_wrap=True,
    )
    if len(scores.halves) == 2:
        agreed = len(_common_layers([_lowest(scores, half, size) for half in scores.halves]))
        console.print(
            f"the two halves of the samples agree on {agreed} of these {size}{_warning(agreed, size)}",
            soft_wrap=True,
        )
    _print_scored(console, scores, out, f"--remove {size}")


def _print_scored(console: Console, scores: Scores, out: Path | None, amount: str) -> None:
    """What scoring took, and what to do with its file."""
    tokens = (
        f" on {scores.calibration.samples} x {scores.calibration.length} tokens of {scores.calibration.source}"
        if scores.calibration
        else ""
    )
    console.print(
        f"{scores.seconds:.1f} s, peak memory {scores.peak_memory_bytes / 2**30:.2f} GiB, {scores.dtype}{tokens}",
        soft_wrap=True,
    )
    saved_note(console, out)
    if out is not None:
        console.print(f"next: shallower plan {shlex.quote(str(out))} {amount} --out plan.json", soft_wrap=True)


def several_scores_table(scores: Sequence[Scores], out: Path | None = None) -> None:
    """Ranks by several criteria side by side, and how far they agree."""
    console = plain_console()
    first, last = protection(scores[0].model.layers)
    size = _default_size(scores[0])
    names = _names_of(scores)
    if scores[0].narrow:
        several_group_scores(console, scores, names)
        saved_note(console, out)
        return
    rows = [[name, *(str(one.ranks[number]) for one in scores)] for number, name in enumerate(scores[0].names)]
    grid(
        console, [scores[0].word, *names], rows, heading=f"ranks on {Path(scores[0].model.source).name} (1 goes first)"
    )
    choices = [_lowest(one, one.scores, size) for one in scores]
    for name, mine in zip(names, choices, strict=True):
        console.print(f"{name}: goes first {_named(scores[0], mine)}", soft_wrap=True)
    for (one, mine), (other, theirs) in itertools.combinations(zip(names, choices, strict=True), 2):
        same = len(_common_layers([mine, theirs]))
        correlation = _rank_correlation(scores[names.index(one)].ranks, scores[names.index(other)].ranks)
        console.print(
            f"{one} and {other}: {same} of {size} the same, rank correlation {correlation:.2f}", soft_wrap=True
        )
    agreed = _common_layers(choices)
    console.print(
        f"all agree on {_named(scores[0], agreed)} (of {size}, first {first} and last {last} layers protected)",
        soft_wrap=True,
    )
    tokens = {
        (one.calibration.hash, one.calibration.samples, one.calibration.length) for one in scores if one.calibration
    }
    if len(tokens) > 1:
        console.print(
            "note: they were scored on different tokens, so a difference need not come from the criterion",
            soft_wrap=True,
        )
    if len({one.model.fingerprint for one in scores}) > 1:
        console.print("note: these are scores of different models", soft_wrap=True)
    saved_note(console, out)


def _names_of(scores: Sequence[Scores]) -> list[str]:
    """A name for each: its criterion, with the number of samples or a counter where that is not enough."""
    names = [one.criterion for one in scores]
    if len(set(names)) < len(names):
        names = [
            f"{one.criterion}, {one.calibration.samples} samples" if one.calibration else one.criterion
            for one in scores
        ]
    return names if len(set(names)) == len(names) else [f"{name} ({number})" for number, name in enumerate(names, 1)]


def _default_size(scores: Scores) -> int:
    return max(1, round(AGREEMENT_SHARE * len(scores.scores)))


def _lowest(scores: Scores, values: Sequence[float], size: int) -> list[int]:
    """Numbers of the layers or units with the lowest values, those of protected layers left out."""
    units = Units.named(scores.units, scores.model.layer_parameters)
    return sorted(allowed_numbers(units, protection(units.layers)), key=values.__getitem__)[:size]


def _named(scores: Scores, numbers: Sequence[int]) -> str:
    names = scores.names
    return ", ".join(names[number] for number in numbers) if scores.units else layers(numbers)


def _common_layers(choices: Sequence[Sequence[int]]) -> list[int]:
    return sorted(set(choices[0]).intersection(*choices[1:]))


def _rank_correlation(one: Sequence[int], other: Sequence[int]) -> float:
    """Spearman's rank correlation."""
    count = len(one)
    return (
        1 - 6 * sum((a - b) ** 2 for a, b in zip(one, other, strict=True)) / (count * (count * count - 1))
        if count > 1
        else 1.0
    )


def _bar(rank: int, count: int) -> str:
    return "#" * max(1, round(BAR * (count - rank + 1) / count))


def _warning(agreed: int, size: int) -> str:
    """A warning where the choice hangs on which samples were drawn."""
    return (
        ": the choice depends on the samples, take more of them or more kinds of text" if agreed < size * 2 / 3 else ""
    )


def plan_table(plan: Plan, out: Path | None = None) -> None:
    console = plain_console()
    _print_plan(console, plan)
    saved_note(console, out)
    if out is not None:
        source = shlex.quote(plan.model.source)
        console.print(f"next: shallower prune {source} --plan {shlex.quote(str(out))} --out pruned", soft_wrap=True)


def _print_plan(console: Console, plan: Plan) -> None:
    """What a plan removes, why, and what is saved by it."""
    by = f"by {plan.criterion}, {plan.selection}" if plan.criterion else f"by {plan.selection}"
    console.print(f"remove {plan.how_many}: {plan.removal} ({by})", soft_wrap=True)
    order = [*plan.units] or [str(index) for index in plan.order]
    if order != [str(one) for one in plan.removed] and not plan.removal.narrows:
        console.print(f"order of removal: {', '.join(order)}", soft_wrap=True)
    protection_text = (
        f"first {plan.keep_first} and last {plan.keep_last} protected"
        if plan.selection != "drop"
        else "no layer protected"
    )
    console.print(
        f"parameters {millions(plan.params_before)} -> {millions(plan.params_after)}, {plan.share:.2%} of "
        f"all; {protection_text}",
        soft_wrap=True,
    )
    if plan.bytes_after:
        console.print(
            f"weights {byte_count(plan.bytes_before)} -> {byte_count(plan.bytes_after)} as {plan.model.storage}",
            soft_wrap=True,
        )
        if plan.model.packed_bytes:
            console.print(
                f"  the .gguf file has {byte_count(plan.model.packed_bytes)}: what is written is a plain "
                "model, not packed; "
                "--save-dtype bf16 makes it smaller",
                soft_wrap=True,
            )
    console.print(
        f"expected by the weights that a token reads: decoding {plan.expected_speedup:.2f}x as fast", soft_wrap=True
    )
    if plan.candidates:
        columns = ["layers", "narrower by", "parameters", "decoding by bytes", "scored text", "held out", "repaired"]
        heading = "perplexity as a multiple of the dense model's, on calibration text"
        grid(console, columns, [*map(_candidate_row, plan.candidates)], heading=heading)
    if plan.agreement is not None:
        size = plan.size
        text = (
            f"the two halves of the calibration samples agree on {plan.agreement} of "
            f"{size}{_warning(plan.agreement, size)}"
        )
        console.print(text, soft_wrap=True)
    if plan.assumed:
        console.print(f"assumed: {plan.assumed}", soft_wrap=True)


def _candidate_row(one: Candidate) -> tuple[str, ...]:
    """A depth with its width, what it saves and what it costs."""
    told = one.repaired
    held_out = [f"x {times:.3f}" for times in perplexity_times(told)] if told else ["", ""]
    first = (layers(one.layers) or "none", one.narrowed or "nothing", f"{one.share:.1%}")
    plain = math.exp(min(one.loss - one.loss_dense, LARGEST_LOSS))
    return (*first, f"{one.expected_speedup:.2f}x", f"x {plain:.3f}", *held_out)


def pruned_gguf_table(pruned: PrunedGguf, out: Path | None = None) -> None:
    console = plain_console()
    _print_plan(console, pruned.plan)
    for change in pruned.changes:
        console.print("metadata:", change, soft_wrap=True)
    sizes = f"{byte_count(pruned.bytes_before)} -> {byte_count(pruned.bytes_after)}"
    changed = len(pruned.compensation.changed) if pruned.compensation else 0
    if changed:
        console.print(
            f"{sizes}; {pruned.compensation.method}: {count_text(changed, 'weight')} changed, stored within "
            f"{pruned.rounding or 0.0:.2%} of what was meant; the others were copied",
            soft_wrap=True,
        )
        _print_held_out(console, pruned.compensation)
    else:
        console.print(f"{sizes}, copied in {pruned.seconds:.1f} s; no weight was decoded", soft_wrap=True)
    proof = pruned.proof
    if proof is None:
        console.print("not verified", soft_wrap=True)
    else:
        prompts = ", ".join(map(str, proof.prompts))
        console.print(
            f"proven in {proof.by} {proof.version}: behind prompts of {prompts} tokens the log-probabilities of all "
            f"tokens differ by {proof.difference:.3g} at most from the unpruned file whose removed layers are silent",
            soft_wrap=True,
        )
    saved_note(console, out)


def pruned_table(pruned: Pruned, out: Path | None = None) -> None:
    console = plain_console()
    _print_plan(console, pruned.plan)
    plan = pruned.plan
    if pruned.zeros:
        count = f"{millions(plan.params_after + pruned.zeros)} parameters, {millions(pruned.zeros)} of them zeros"
        console.print(f"written: {count} that its form asks for, {byte_count(pruned.weight_bytes)}", soft_wrap=True)
    elif pruned.weight_bytes and plan.bytes_after and abs(pruned.weight_bytes / plan.bytes_after - 1) > 0.01:
        console.print(f"written: {byte_count(pruned.weight_bytes)}", soft_wrap=True)
    for change in pruned.config_changes:
        console.print("config:", change, soft_wrap=True)
    if pruned.compensation:
        count = len(pruned.compensation.changed)
        what = (
            f"{count_text(count, 'weight')} changed"
            if count
            else "nothing changed, as the loss on held-out text did not fall"
        )
        console.print(f"{pruned.compensation.method}: {what}", soft_wrap=True)
        _print_held_out(console, pruned.compensation)
    proof = pruned.verified
    if isinstance(proof, Unverified):
        console.print(f"not verified: {proof.skipped}", soft_wrap=True)
    else:
        console.print(
            f"verified after reloading ({proof.dtype}): logits equal {proof.logits}, cached decoding within "
            f"{proof.cached_difference:.1e} of uncached (dense "
            f"{proof.cached_difference_unpruned:.1e}), no missing keys",
            soft_wrap=True,
        )
    loading_note(console, out)


def _print_held_out(console: Console, report: RepairReport) -> None:
    """Perplexity on calibration text that nothing was fitted on, as a multiple of the dense model's, in all and per
    source.
    """
    losses_of = {"all": report.loss, **report.by_source}
    if len(losses_of) == 2:
        losses_of.pop("all")
    rows = []
    for name, loss in losses_of.items():
        times = [f"x {value:.3f}" for value in perplexity_times(loss)]
        rows.append([name, f"{math.exp(min(loss.dense, LARGEST_LOSS)):.2f}", *times])
    columns = ["held-out text", "dense perplexity", "not repaired", "repaired"]
    grid(console, columns, rows, spare=("dense perplexity",))


def loading_note(console: Console, out: Path | None) -> None:
    """How the written model is loaded; of one that comes with code, that it has to be trusted."""
    own = ", trust_remote_code=True" if out is not None and any(out.glob("modeling_*.py")) else ""
    console.print(f"load it with AutoModelForCausalLM.from_pretrained({str(out)!r}{own})", soft_wrap=True)


def saved_note(console: Console, out: Path | None) -> None:
    if out is not None:
        console.print(f"written to {out}", soft_wrap=True)
