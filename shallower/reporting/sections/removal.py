"""Section on the layers removed: the stack, and how that was decided."""

from ...artifacts import Plan, Unverified
from ...results.collection import Pruning
from ...results.summary import Summary, percent, seconds, settings_of, tokens_used
from ...runtime.format import byte_count, millions
from ..figures import stack_figure
from ..page import Block, Box, Cell, Facts, Figure, Section, Table, Text, figure_name


def section(summary: Summary) -> Section | None:
    """What was removed, for each set of layers."""
    prunings = summary.collection.prunings
    parts: list[Block] = [_prunings(summary)] if len(prunings) > 1 else []
    for number, pruning in enumerate(summary.sets, 1):
        if len(summary.sets) > 1:
            parts.append(Text(f"{_how_many(summary, pruning)}: {pruning.name}", "heading"))
        parts.append(Box([_stack(summary, pruning, number), _decision(pruning)], "pair"))
    written = any(pruning.pruned for pruning in prunings)
    return Section("What was removed" if written else "What would be removed", parts) if parts else None


def _stack(summary: Summary, pruning: Pruning, number: int) -> Figure:
    plan = pruning.plan
    count = summary.root.layers
    same_layers = plan.model.original == summary.root.original
    parts = [unit for unit in pruning.removal.units if unit.part]
    order = [] if parts else pruning.order  # it is of layers alone
    places = {index: place for place, index in enumerate(order)}
    removed = {index: places.get(index) for index in pruning.removal.layers}
    protected = [*range(plan.keep_first), *range(count - plan.keep_last, count)] if same_layers else []
    scores = plan.scores if same_layers and not plan.scored else None
    title = f"The {count} layers from the input down" + (f", with their scores by {plan.criterion}" if scores else "")
    name = figure_name("stack", number)
    drawing = stack_figure(name, title, removed=removed, protected=protected, scores=scores, count=count, parts=parts)
    return Figure(drawing, title + ".")


def _prunings(summary: Summary) -> Table:
    """One line per pruning."""
    rows = []
    prunings = summary.collection.prunings
    for pruning in prunings:
        ratios = (summary.mean_ratio(row) for row in summary.rows if row.pruning is pruning)
        ratio = next(filter(None, ratios), None)
        text = str(pruning.removal)
        which = Cell(_how_many(summary, pruning), text if len(text) <= 40 else text[:38] + "…")
        parameters = percent(summary.parameters_left(pruning))
        perplexity = f"×{ratio[0]:.2f}" if ratio else "—"
        rows.append((pruning.name, which, parameters, pruning.repair or "none", perplexity, _proof(pruning)))
    main = [index for index, pruning in enumerate(prunings) if pruning is summary.main and len(summary.sets) == 1]
    head = ("pruning", "removed", "parameters", "repair", "perplexity", "files")
    return Table(head, rows, numbers=(2, 4), main=main)


def _how_many(summary: Summary, pruning: Pruning) -> str:
    """How much goes, in short."""
    if pruning.removal.narrows:
        return "narrower" + (f", {len(pruning.removal.layers)} layers less" if pruning.removal.layers else "")
    return f"{len(pruning.removal)} of {summary.root.layers}"


def _proof(pruning: Pruning) -> str:
    if pruning.pruned is None:
        return "a plan; nothing written"
    proof = pruning.pruned.verified
    if isinstance(proof, Unverified):
        return f"written, not verified: {proof.skipped}"
    return f"written; reloaded from disk, logits equal {proof.logits}"


def _decision(pruning: Pruning) -> Facts:
    plan = pruning.plan
    pruned = pruning.pruned
    ends = "none" if not plan.keep_first + plan.keep_last else f"first {plan.keep_first} and last {plan.keep_last}"
    proof = pruned.proof if pruned else None
    cache = f"decoding with it differs by {proof.cached_difference:.1e} of the largest logit" if proof else None
    parameters = f"{millions(plan.params_before)} → {millions(plan.params_after)}, {percent(1 - plan.share)}"
    return Facts(
        {
            "removed" if pruned else "would be removed": str(pruning.removal),
            "in the order": ", ".join(map(str, pruning.order)) if len(pruning.order) > 1 else None,
            "parameters": parameters,
            "weights": _bytes(pruning),
            "selection": plan.selection + _schedule(plan),
            "criterion": plan.criterion,
            "settings": settings_of(plan.settings),
            "protected": ends,
            "calibration": tokens_used(plan.calibration),
            "time": seconds(plan.seconds) if plan.seconds else None,
            "config": "; ".join(pruned.config_changes) if pruned else None,
            "files": _proof(pruning),
            "cache": cache,
            "repair": pruning.repair,
        }
    )


def _schedule(plan: Plan) -> str:
    refit = f", repaired by {plan.refit} in between" if plan.refit else ""
    return f", anew after every removal{refit}" if plan.iterative else ""


def _bytes(pruning: Pruning) -> str | None:
    """The stored weights before and after; of a .gguf file what it holds too."""
    plan = pruning.plan
    model = plan.model
    if not plan.bytes_before:
        return None
    after = pruning.pruned.weight_bytes if pruning.pruned and pruning.pruned.weight_bytes else plan.bytes_after
    packed = f" (the .gguf file has {byte_count(model.packed_bytes)})" if model.packed_bytes else ""
    return f"{byte_count(plan.bytes_before)}{packed} → {byte_count(after)}"
