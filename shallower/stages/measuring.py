"""What was gained and lost: evaluate, sweep, bench, compare."""

import time
from collections.abc import Iterable, Sequence
from functools import partial
from pathlib import Path

import torch

from ..artifacts import Comparison, Evaluation, Speed, Sweep
from ..calibration import Calibration
from ..comparison.comparing import compare as compared
from ..comparison.merging import entries_of
from ..comparison.page import comparison_files
from ..comparison.runfolders import completed, read_given
from ..evaluation.grid import Grid
from ..evaluation.perplexity import Protocol, evaluation_segments, perplexity
from ..evaluation.speed import check_resident, measure
from ..evaluation.tasks import Tasks, zero_shot
from ..files import check_file, check_free, new_folder
from ..journal import journaled
from ..planning import Choosing
from ..runs import dtype_name, journal_of, load_weights, timed
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
    with journaled(out), timed(model) as peak:
        journal = partial(journal_of, model, None, removed=removed)
        for name, segments in named.items():
            keeping = {"label": f"perplexity {name}", "journal": journal(text=segments.description)}
            with model.given(segments.tokens.shape[1]):
                found[name] = perplexity(model, segments, removed=removed, **keeping)
        if tasks:
            solved = zero_shot(model, tasks, removed=removed, journal=journal)
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


def bench(
    model: Source, *, against: Source | None = None, grid: Grid | None = None, compute: Compute | None = None, out: str | Path | None = None
) -> Speed:
    """Prefill and decode speed, memory, and how close decoding is to the memory's bandwidth; see ``evaluation.speed``.

    Args:
        against: the model to compare with; its runs alternate with those of ``model``.
        grid: batches, lengths and repeats; ``Grid.of(protocol, …)`` names a protocol.
    """
    check_file(out, "speed")
    grid = grid or Grid.of()
    models = {name: open_model(source, compute) for name, source in (("model", model), ("against", against)) if source is not None}
    check_resident(models)
    for opened in models.values():
        load_weights(opened)
    started = time.monotonic()
    found = measure(models, grid)
    result = Speed(
        model=models["model"].record,
        against=models["against"].record if against is not None else None,
        protocol=grid.protocol,
        device=models["model"].device,
        threads=torch.get_num_threads(),
        seconds=time.monotonic() - started,
        dtype=dtype_name(models["model"]),
        **found,
    )
    return kept(result, out)


def compare(
    sources: Sequence[str | Path],
    *,
    compute: Compute | None = None,
    out: str | Path | None = None,
    overwrite: bool = False,
) -> Comparison:
    """Models side by side, from their evaluations and measured speeds; the first source is the base.

    Args:
        sources: folders with artifacts, evaluation files, or models, which are evaluated by the defaults of ``evaluate``
            where they have no evaluation; ``NAME=PATH`` names one.
        compute: for those.
        out: folder for comparison.json, its table comparison.md and its pictures pareto.png and pareto.svg.
    Raises:
        UserError: fewer than two models, nothing that two of them share, or a broken artifact; nothing is written.
    """
    if out is not None:
        check_free(out, overwrite=overwrite)
    given = completed([read_given(source) for source in sources], lambda model: evaluate(model, compute=compute))
    found = compared(*entries_of(given))
    if out is not None:
        with new_folder(out, overwrite=overwrite) as folder:
            for name, content in comparison_files(found).items():
                (folder / name).write_bytes(content)
    return found
