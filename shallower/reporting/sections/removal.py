"""Section on the layers removed: the stack, and how that was decided."""

from ...artifacts import Unverified
from ...results.collection import Removal
from ...results.summary import Summary, percent, seconds, settings_of, tokens_used
from ...runtime.format import byte_count, layers, millions
from ..figures import stack_figure
from ..page import Box, Cell, Facts, Figure, Part, Section, Table, Text, numbered


def section(summary: Summary) -> Section | None:
    """What was removed, for each set of layers."""
    removals = summary.dossier.removals
    parts: list[Part] = [_removals(summary)] if len(removals) > 1 else []
    for number, removal in enumerate(summary.sets, 1):
        if len(summary.sets) > 1:
            parts.append(Text(f"{len(removal.removed)} of {summary.root.layers}: {removal.name}", "heading"))
        parts.append(Box([_stack(summary, removal, number), _decision(removal)], "pair"))
    done = any(removal.pruned for removal in removals)
    return Section("What was removed" if done else "What would be removed", parts) if parts else None


def _stack(summary: Summary, removal: Removal, number: int) -> Figure:
    plan, count = removal.plan, summary.root.layers
    own = plan.model.original == summary.root.original
    places = {index: place for place, index in enumerate(removal.order)}
    gone = {index: places.get(index) for index in removal.removed}
    protected = [*range(plan.keep_first), *range(count - plan.keep_last, count)] if own else []
    scores = plan.scores if own else None
    title = f"The {count} layers from the input down" + (f", with their scores by {plan.criterion}" if scores else "")
    name = numbered("stack", number)
    drawing = stack_figure(name, title, gone=gone, kept_for_sure=protected, scores=scores, count=count)
    return Figure(drawing, title + ".")


def _removals(summary: Summary) -> Table:
    """One line per pruning."""
    rows, removals = [], summary.dossier.removals
    for removal in removals:
        ratios = (summary.mean_ratio(row) for row in summary.rows if row.removal is removal)
        ratio = next(filter(None, ratios), None)
        told = layers(removal.removed)
        which = Cell(f"{len(removal.removed)} of {summary.root.layers}", told if len(told) <= 40 else told[:38] + "…")
        left, measured = percent(summary.parameters_left(removal)), f"×{ratio[0]:.2f}" if ratio else "—"
        rows.append((removal.name, which, left, removal.repair or "none", measured, _proof(removal)))
    main = [index for index, removal in enumerate(removals) if removal is summary.main and len(summary.sets) == 1]
    head = ("pruning", "removed", "parameters", "repair", "perplexity", "files")
    return Table(head, rows, numbers=(2, 4), main=main)


def _proof(removal: Removal) -> str:
    if removal.pruned is None:
        return "a plan; nothing written"
    proof = removal.pruned.verified
    if isinstance(proof, Unverified):
        return f"written, not verified: {proof.skipped}"
    return f"written; reloaded from disk, logits equal {proof.logits}"


def _decision(removal: Removal) -> Facts:
    plan, pruned = removal.plan, removal.pruned
    ends = "none" if not plan.keep_first + plan.keep_last else f"first {plan.keep_first} and last {plan.keep_last}"
    proof = pruned.proof if pruned else None
    cache = f"decoding with it differs by {proof.cached_difference:.1e} of the largest logit" if proof else None
    fewer = f"{millions(plan.params_before)} → {millions(plan.params_after)}, {percent(1 - plan.share)}"
    return Facts(
        {
            "removed" if pruned else "would be removed": layers(removal.removed),
            "in the order": ", ".join(map(str, removal.order)) if len(removal.order) > 1 else None,
            "parameters": fewer,
            "weights": _bytes(removal),
            "selection": plan.selection + (", anew after every removal" if plan.iterative else ""),
            "criterion": plan.criterion,
            "settings": settings_of(plan.settings),
            "protected": ends,
            "calibration": tokens_used(plan.calibration),
            "time": seconds(plan.seconds) if plan.seconds else None,
            "config": "; ".join(pruned.config_changes) if pruned else None,
            "files": _proof(removal),
            "cache": cache,
            "repair": removal.repair,
        }
    )


def _bytes(removal: Removal) -> str | None:
    """The stored weights before and after; of a .gguf file what it holds too."""
    plan, model = removal.plan, removal.plan.model
    if not plan.bytes_before:
        return None
    after = removal.pruned.weight_bytes if removal.pruned and removal.pruned.weight_bytes else plan.bytes_after
    packed = f" (the .gguf file has {byte_count(model.packed_bytes)})" if model.packed_bytes else ""
    return f"{byte_count(plan.bytes_before)}{packed} → {byte_count(after)}"
