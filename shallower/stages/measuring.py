"""What was gained and lost: evaluate, sweep."""

from collections.abc import Iterable, Sequence
from pathlib import Path

from ..artifacts import Evaluation, Sweep
from ..calibration import Calibration
from ..evaluation.perplexity import Protocol, evaluation_segments, perplexity
from ..evaluation.tasks import Tasks, zero_shot
from ..files import check_file
from ..journal import journaled
from ..planning import Choosing
from ..runs import dtype_name, timed
from .opening import Compute, Source, kept, open_model
from .pruning import nested_plans
from .quality import removals_perplexity


def evaluate(
    model: Source,
    *,
    texts: Sequence[str | Path] = (),
    tokens: str | Path | None = None,
    protocol: Protocol | None = None,
    tasks: Tasks | None = None,
    removed: Iterable[int] = (),
    compute: Compute | None = None,
    out: str | Path | None = None,
) -> Evaluation:
    """Perplexity on texts or given tokens, and zero-shot tasks; with none of them, perplexity on the shipped evaluation text.

    Args:
        texts: files; each one's figure is named after the file's stem.
        tokens: a .npy file, used exactly as it is.
        protocol: how texts are cut.
        tasks: which tasks, through lm-eval.
        removed: layers to leave out virtually.
    """
    check_file(out, "evaluation")
    protocol, removed = protocol or Protocol(), sorted(set(removed))
    model = open_model(model, compute)
    named = evaluation_segments(model, texts, tokens, protocol) if texts or tokens or not tasks else {}
    found, solved = {}, {}
    with timed(model) as peak:
        for name, segments in named.items():
            with model.given(segments.tokens.shape[1]):
                found[name] = perplexity(model, segments, removed=removed, label=f"perplexity {name}")
        if tasks:
            solved = zero_shot(model, tasks, removed=removed)
    result = Evaluation(
        model=model.record,
        perplexity=found,
        tasks=solved,
        removed=removed,
        protocol=protocol.name if found else "",
        seconds=peak.seconds,
        dtype=dtype_name(model),
    )
    return kept(result, out)


def sweep(
    model: Source,
    *,
    sizes: Sequence[int],
    criterion: str = "taylor",
    settings: dict[str, str] | None = None,
    choosing: Choosing | None = None,
    calibration: Calibration | None = None,
    texts: Sequence[str | Path] = (),
    protocol: Protocol | None = None,
    compute: Compute | None = None,
    out: str | Path | None = None,
) -> Sweep:
    """Perplexity against layers removed: scored once, every size evaluated by virtual removal, nothing copied.

    Args:
        sizes: numbers of layers to remove; the model as it is comes first in any case.
        criterion, settings, choosing, calibration, compute: as for ``plan``.
        texts, protocol: as for ``evaluate``.
    """
    check_file(out, "sweep")
    model, choosing, sizes = open_model(model, compute), choosing or Choosing(), sorted(set(sizes))
    how = {"choosing": choosing, "criterion": criterion, "settings": settings, "calibration": calibration}
    named = evaluation_segments(model, texts, None, protocol or Protocol())
    with journaled(out), timed(model) as peak:
        plans = list(nested_plans(model, sizes, how))
        removals = [(), *(plan.removed for plan in plans)]
        found = removals_perplexity(model, named, removals, "sweep")
    last, before = plans[-1], model.record.parameters
    rows = [
        {"removed": len(removed), "layers": list(removed), "parameters": parameters, "perplexity": perplexities}
        for removed, parameters, perplexities in zip(removals, [before, *(plan.params_after for plan in plans)], found, strict=True)
    ]
    result = Sweep(
        model=model.record,
        order=last.order,
        selection=last.selection,
        criterion=last.criterion,
        settings=last.settings,
        calibration=last.calibration,
        rows=rows,
        seconds=peak.seconds,
        dtype=dtype_name(model),
    )
    return kept(result, out)
