"""Comparison: models side by side, from their evaluations and measured speeds."""

import hashlib
import json
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from ..anatomy.model import Model
from ..artifacts import Comparison, Evaluation, load, save
from ..errors import UserError
from ..reporting.comparison_table import comparison_files
from ..results.comparison import compare_entries
from ..results.entries import entries_of
from ..results.sources import check_several, evaluate_missing, read_argument
from ..runtime.progress import say
from ..runtime.provenance import device_name, versions
from ..settings.compute import Compute
from ..storage.files import new_folder
from ..storage.ownership import check_free
from ..storage.paths import cache_folder, place
from ..walk.run import dtype_name
from .common import open_to_run, resolve_settings
from .evaluate import evaluate


def compare(
    sources: Sequence[str | Path],
    *,
    compute: Compute | None = None,
    out: str | Path | None = None,
    overwrite: bool = False,
    **plain: Any,
) -> Comparison:
    """Models side by side, from their evaluations and measured speeds; the first source is the base.

    Example: ``shallower.compare(["my-model", "pruned", "healed"], out="comparison")``.

    Args:
        sources: folders with artifacts, evaluation files, or models, which are evaluated by the defaults of
            ``evaluate`` where they have no evaluation; ``NAME=PATH`` names one. Such evaluations are kept in the
            user's cache.
        compute: for those.
        out: folder for comparison.json, its table comparison.md and its pictures pareto.png and pareto.svg.
    Raises:
        UserError: fewer than two models, one that cannot be opened, nothing that two of them share, or a broken
            artifact; nothing is written.
    """
    (compute,) = resolve_settings(plain, "compare", compute=(Compute, compute))
    out = place(out) if out is not None else None
    givens = [read_argument(source) for source in sources]
    check_several(givens)
    inputs = [path for given in givens for path in given.files]
    if out is not None:
        check_free(out, overwrite=overwrite, inputs=inputs)
    models = {
        given.path: open_to_run(given.path, compute) for given in givens if given.missing
    }  # all, before any is evaluated
    given = evaluate_missing(givens, lambda path: _cached_evaluation(models[path]))
    comparison = compare_entries(*entries_of(given))
    if out is not None:
        contents = comparison_files(comparison)
        with new_folder(out, overwrite=overwrite, inputs=inputs) as folder:
            for name, content in contents.items():
                (folder / name).write_bytes(content)
    return comparison


def _cached_evaluation(model: Model) -> Evaluation:
    """The model's evaluation by the defaults, from the cache if it was made before; it is kept there."""
    key = {
        "fingerprint": model.record.fingerprint,
        "dtype": dtype_name(model),
        "device": device_name(model.device),
        "versions": versions(),
    }
    name = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:24]
    path = cache_folder() / "evaluations" / f"{name}.json"
    with suppress(UserError):
        if path.is_file():
            evaluation = load(path, "evaluation")
            if evaluation.model.fingerprint == model.record.fingerprint:
                say(f"{model.checkpoint.source} was evaluated on {evaluation.provenance.created[:10]}: {path}")
                return evaluation
    evaluation = evaluate(model)
    model.unload()
    with suppress(UserError, OSError):
        save(evaluation, path)
        say(f"kept in {path}")
    return evaluation
