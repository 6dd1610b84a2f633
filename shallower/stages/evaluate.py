"""Evaluation: perplexity by a stated protocol, tasks, and answers held against another model's."""

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from ..anatomy.model import Model
from ..artifacts import Evaluation, Perplexity, Removal, Units
from ..data.readers import check_readable
from ..errors import UserError
from ..evaluation.perplexity import Segments, evaluation_segments, perplexity
from ..evaluation.tasks import check_tasks, zero_shot
from ..settings.calibration import Paths, listed_paths
from ..settings.compute import Compute
from ..settings.evaluation import Answers, Protocol, Tasks
from ..settings.quantities import unit_names
from ..storage.journal import Journal, journaled
from ..storage.ownership import artifact_place
from ..walk.run import dtype_name, journal_of, removed_of, timed
from .common import ModelSource, open_to_run, resolve_settings, save_artifact, units_named
from .written_answers import WrittenAnswers


def evaluate(
    model: ModelSource,
    *,
    texts: Paths = (),
    tokens: str | Path | None = None,
    protocol: Protocol | str | None = None,
    tasks: Tasks | str | Iterable[str] | None = None,
    answers: Answers | None = None,
    removed: Iterable[int | str] | str = (),
    compute: Compute | None = None,
    out: str | Path | None = None,
    **plain: Any,
) -> Evaluation:
    """Perplexity on texts or given tokens, tasks, and what the model writes, held against another model.

    With none of them, perplexity on the shipped evaluation text.

    Example: ``shallower.evaluate("my-model", texts="wiki.test.txt", length=2048)``.

    Args:
        texts: one file or several; each one's figure is named after the file's stem.
        tokens: a .npy file, used exactly as it is.
        protocol: how texts are cut; its fields are keywords too.
        tasks: which tasks, through lm-eval: Tasks(...), or their names.
        answers: ``against`` which model answers to prompts are held, ``as_draft_of`` which one it is tried; its fields
            are keywords too.
        removed: layers, or parts of layers, to leave out virtually, such as ``"3-5"`` or ``"5.mlp, 9.attention"``.
    """
    tasks = tasks if tasks is None or isinstance(tasks, Tasks) else Tasks(tasks)
    protocol = Protocol(name=protocol) if isinstance(protocol, str) else protocol
    kinds = {"protocol": (Protocol, protocol), "answers": (Answers, answers), "compute": (Compute, compute)}
    protocol, answers, compute = resolve_settings(plain, "evaluate", **kinds)
    names = unit_names(removed, "removed") if removed or removed == 0 else ()
    out = artifact_place(out, "evaluation", [*listed_paths(texts), tokens])
    check_readable(listed_paths(texts), "texts")
    if tasks is not None:
        check_tasks(tasks)
    model = open_to_run(model, compute)
    writing = WrittenAnswers(model, answers, compute)
    units, numbers = units_named(model, names, "removed")
    removal = _checked_removal(model, units, numbers)
    asked = listed_paths(texts) or tokens or not (tasks or writing)
    segments_by_name = evaluation_segments(model, texts, tokens, protocol) if asked else {}
    with journaled(out), timed(model) as peak:
        journal = partial(journal_of, model, None, **removed_of(removal))
        perplexities = _perplexities(model, segments_by_name, removal, journal)
        task_results = zero_shot(model, tasks, removal=removal, journal=journal) if tasks else {}
        written = writing.measured(removal, journal)
    result = Evaluation(
        model=model.record,
        perplexity=perplexities,
        tasks=task_results,
        **written,
        removed=list(removal.layers),
        units=units.sizes(numbers),
        protocol=protocol.name if perplexities else "",
        seconds=peak.seconds,
        dtype=dtype_name(model),
    )
    return save_artifact(result, out)


def _checked_removal(model: Model, units: Units, numbers: Sequence[int]) -> Removal:
    """What is left out, without which something must stay."""
    removal = units.removal(numbers)
    if not removal.stays(model.record.layers):
        raise UserError("at least one layer must stay", removed=removal.words)
    return removal


def _perplexities(
    model: Model, texts: dict[str, Segments], removal: Removal, journal: Callable[..., Journal]
) -> dict[str, Perplexity]:
    """Perplexity by text, each with a journal of its own."""
    figures = {}
    for name, segments in texts.items():
        keeping = {"label": f"perplexity {name}", "journal": journal(text=segments.description)}
        with model.check_length(segments.tokens.shape[1]):
            figures[name] = perplexity(model, segments, removal=removal, **keeping)
    return figures
