"""Report sections on what was done: layers removed, their importance, the repair, the healing."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from ..artifacts import Compensation, Healing, HeldOutLoss, Scores, Unverified
from ..results.collection import Collection, Removal
from ..results.healing import gap_closed, gaps, losses, perplexities, perplexity_times
from ..results.summary import Summary, gigabytes, percent, seconds, settings_of, tokens_used
from ..runtime.format import byte_count, layers, millions
from . import figures
from .canvas import Drawing
from .markup import Markup, facts, section, table, tag, two_lines


class Page:
    """A report in the making: the findings, and the figures drawn so far."""

    def __init__(self, dossier: Collection):
        self.dossier = dossier
        self.findings = Summary(dossier)
        self.drawings: list[Drawing] = []

    def figure(self, drawing: Drawing, caption: str) -> Markup:
        """A drawing inside the page."""
        self.drawings.append(drawing)
        return tag("figure", tag("figcaption", caption), Markup(drawing.svg()))


def numbered(name: str, number: int) -> str:
    """A figure's name: the first of its kind has no number."""
    return name if number == 1 else f"{name}-{number}"


def removed_section(page: Page) -> Markup | None:
    """What was removed: the stack, and how that was decided."""
    found = page.findings
    if not found.sets:
        return None
    parts: list[object] = []
    if len(page.dossier.removals) > 1:
        parts.append(_removals(page))
    for number, removal in enumerate(found.sets, 1):
        title = (
            tag("h3", f"{len(removal.removed)} of {found.root.layers}: {removal.name}") if len(found.sets) > 1 else None
        )
        parts += [title, tag("div", page.figure(*_stack(found, removal, number)), _decision(removal), class_="pair")]
    done = any(removal.pruned for removal in page.dossier.removals)
    return section("What was removed" if done else "What would be removed", *parts)


def _stack(found: Summary, removal: Removal, number: int) -> tuple[Drawing, str]:
    plan, own = removal.plan, removal.plan.model.original == found.root.original
    places = {index: place for place, index in enumerate(removal.order)}
    protected = [*range(plan.keep_first), *range(found.root.layers - plan.keep_last, found.root.layers)] if own else []
    scores = plan.scores if own else None
    caption = f"The {found.root.layers} layers from the input down" + (
        f", with their scores by {plan.criterion}" if scores else ""
    )
    gone = {index: places.get(index) for index in removal.removed}
    drawing = figures.stack_figure(
        numbered("stack", number), caption, gone=gone, kept_for_sure=protected, scores=scores, count=found.root.layers
    )
    return drawing, caption + "."


def _removals(page: Page) -> Markup:
    """One line per pruning."""
    found, rows = page.findings, []
    for removal in page.dossier.removals:
        ratio = next((ratio for row in found.rows if row.removal is removal and (ratio := found.mean_ratio(row))), None)
        state = _proof(removal)
        measured = f"×{ratio[0]:.2f}" if ratio else "—"
        left = percent(found.parameters_left(removal))
        told = layers(removal.removed)
        which = two_lines(
            f"{len(removal.removed)} of {found.root.layers}", told if len(told) <= 40 else told[:38] + "…"
        )
        rows.append((removal.name, which, left, removal.repair or "none", measured, state))
    main = [
        index for index, removal in enumerate(page.dossier.removals) if removal is found.main and len(found.sets) == 1
    ]
    return table(("pruning", "removed", "parameters", "repair", "perplexity", "files"), rows, numbers=(2, 4), main=main)


def _proof(removal: Removal) -> str:
    if removal.pruned is None:
        return "a plan; nothing written"
    proof = removal.pruned.verified
    if isinstance(proof, Unverified):
        return f"written, not verified: {proof.skipped}"
    return f"written; reloaded from disk, logits equal {proof.logits}"


def _decision(removal: Removal) -> Markup:
    plan = removal.plan
    chosen = plan.selection + (", anew after every removal" if plan.iterative else "")
    ends = "none" if not plan.keep_first + plan.keep_last else f"first {plan.keep_first} and last {plan.keep_last}"
    proof = removal.pruned.proof if removal.pruned else None
    cached = proof.cached_difference if proof else None
    return facts(
        [
            ("removed" if removal.pruned else "would be removed", layers(removal.removed)),
            ("in the order", ", ".join(map(str, removal.order)) if len(removal.order) > 1 else None),
            (
                "parameters",
                f"{millions(plan.params_before)} → {millions(plan.params_after)}, {percent(1 - plan.share)}",
            ),
            ("weights", _bytes(removal)),
            ("selection", chosen),
            ("criterion", plan.criterion),
            ("settings", settings_of(plan.settings)),
            ("protected", ends),
            ("calibration", tokens_used(plan.calibration)),
            ("time", seconds(plan.seconds) if plan.seconds else None),
            ("config", "; ".join(removal.pruned.config_changes) if removal.pruned else None),
            ("files", _proof(removal)),
            (
                "cache",
                f"decoding with it differs by {cached:.1e} of the largest logit" if cached is not None else None,
            ),
            ("repair", removal.repair),
        ]
    )


def _bytes(removal: Removal) -> str | None:
    """The stored weights before and after; of a .gguf file what it holds too."""
    plan, model = removal.plan, removal.plan.model
    if not plan.bytes_before:
        return None
    after = removal.pruned.weight_bytes if removal.pruned and removal.pruned.weight_bytes else plan.bytes_after
    packed = f" (the .gguf file has {byte_count(model.packed_bytes)})" if model.packed_bytes else ""
    return f"{byte_count(plan.bytes_before)}{packed} → {byte_count(after)}"


def importance_section(page: Page) -> Markup | None:
    """Importance per layer, a figure for each set of scores."""
    found = page.dossier.of("scores")
    main = page.findings.main
    drawn = []
    for number, item in enumerate(found, 1):
        scores: Scores = item.record
        gone = main.removed if main and scores.model.original == page.findings.root.original else []
        settings = f" ({settings_of(scores.settings)})" if scores.settings else ""
        used = f"{tokens_used(scores.calibration)}; " if scores.calibration else ""
        caption = (
            f"{scores.criterion}{settings}: {used}{seconds(scores.seconds)}, peak memory "
            f"{gigabytes(scores.peak_memory_bytes)}."
        )
        drawn.append(page.figure(figures.importance_figure(numbered("importance", number), scores, gone), caption))
    lower = "The lower a layer's score, the less the criterion says it is needed."
    note = tag("p", lower + (_orange(main) if main else ""), class_="note")
    return section("Importance per layer", note, tag("div", *drawn, class_="pair")) if drawn else None


def _orange(main: Removal) -> str:
    """Whose layers the pictures show in orange; those of other criteria would be others."""
    by = main.plan.criterion or main.plan.selection
    went = "went" if main.pruned else "would go"
    return f" Orange: the layers that {went} by {main.name}, chosen by {by}, in the pictures of all criteria."


def repair_section(page: Page) -> Markup | None:
    """What a repair without training changed, and the drift of the stream before and after."""
    caption = (
        "The stream behind each retained layer, on held-out tokens; where it is equal to the dense one nothing "
        "is drawn."
    )
    parts = _each(
        page,
        "compensation",
        caption,
        lambda found, number: figures.drift_figure(found, numbered("repair", number)),
        _repaired,
    )
    return section("Repair without training", *parts) if parts else None


def healing_section(page: Page) -> Markup | None:
    """How models were trained further, and the losses meanwhile."""
    caption = "Mean NLL of the next token: on what is trained on, and on texts that are not."
    parts = _each(
        page,
        "healing",
        caption,
        lambda found, number: figures.learning_figure(found, numbered("healing", number)),
        _trained,
    )
    return section("Healing by training", *_beside(page), *parts) if parts else None


def _beside(page: Page) -> list[Markup]:
    """All healed models in one figure, against tokens and against seconds, for every text that two of them were
    measured on.
    """
    items = [(f"{item.record.method}, {Path(item.path).parent}", item.record) for item in page.dossier.of("healing")]
    texts = dict.fromkeys(name for _, found in items for name in perplexities(found))
    parts = []
    for text in texts:
        both = [(label, found) for label, found in items if text in perplexities(found)]
        if len(both) > 1:
            caption = f"Perplexity of {text} by what it cost."
            drawn = [
                figures.progress(both, text, by, numbered(f"healing-{by}", len(parts) + 1))
                for by in ("tokens", "seconds")
            ]
            parts.append(tag("div", *(page.figure(one, caption) for one in drawn), class_="pair"))
    return parts


def _each(
    page: Page, kind: str, caption: str, drawn: Callable[[Any, int], Drawing], told: Callable[[Any], Markup]
) -> list[Markup]:
    """Every artifact of a kind under its method and path: its figure, and what is told beside it."""
    parts = []
    for number, item in enumerate(page.dossier.of(kind), 1):
        figure = page.figure(drawn(item.record, number), caption)
        parts += [tag("h3", f"{item.record.method}, {item.path}"), tag("div", figure, told(item.record), class_="pair")]
    return parts


def _trained(found: Healing) -> Markup:
    first, last = losses(found)
    measured = [
        (f"perplexity {name}", f"{one[0][1]:.2f} → {one[-1][1]:.2f}") for name, one in perplexities(found).items()
    ]
    measured += [(f"gap closed, {name}", gap_closed(found, name)) for name in gaps(found)]
    return facts(
        [
            ("taught by", found.teacher),
            ("trained", f"{millions(found.trained_parameters)} of {millions(found.model.parameters)} parameters"),
            ("on", f"{millions(found.train_tokens)} tokens of {found.data.source}, {found.steps} steps"),
            ("training loss", f"{first:.4f} → {last:.4f} nats, first and last tenth of the steps"),
            *measured,
            ("settings", settings_of(found.settings)),
            ("files", f"reloaded from disk, logits equal {found.reloaded.logits} to the trained model's"),
            ("cost", f"{seconds(found.seconds)}, peak memory {gigabytes(found.peak_memory_bytes)}, {found.dtype}"),
        ]
    )


def _repaired(found: Compensation) -> Markup:
    loss = found.loss
    gap = (
        (loss.before - loss.after) / (loss.before - loss.dense) if loss.before > loss.dense else None
    )
    names = (
        tag("details", tag("summary", "the changed weights"), tag("p", ", ".join(found.changed)))
        if found.changed
        else None
    )
    told = facts(
        [
            ("held-out loss", f"{loss.before:.4f} → {loss.after:.4f} nats, dense {loss.dense:.4f}"),
            ("against the dense", f"{_times(loss)} in perplexity, on held-out text"),
            *((f"on {name}", _times(one)) for name, one in found.by_source.items() if len(found.by_source) > 1),
            ("of the gap", f"{gap:.0%} closed" if gap is not None else None),
            (
                "changed",
                f"{len(found.changed)} weights" if found.changed else "nothing: it did not lower the held-out loss",
            ),
            ("settings", settings_of(found.settings)),
            (
                "tokens",
                f"{found.fitted_tokens} fitted on, {found.held_out_tokens} held out; {tokens_used(found.calibration)}",
            ),
            ("cost", f"{seconds(found.seconds)}, peak memory {gigabytes(found.peak_memory_bytes)}, {found.dtype}"),
        ]
    )
    return tag("div", told, names)


def _times(loss: HeldOutLoss) -> str:
    """Perplexity before and after the repair as multiples of the dense model's."""
    before, after = perplexity_times(loss)
    return f"× {before:.3f} → × {after:.3f}"
