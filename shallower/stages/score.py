"""Scores: how much each layer matters, by one criterion or by several in one pass."""

from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from .. import methods
from ..anatomy.model import Model
from ..anatomy.patch import Patch
from ..artifacts import Removal, Scores, Units, load
from ..artifacts.units import LAYER, check_units_kind
from ..data.readers import check_readable
from ..errors import UserError
from ..settings.calibration import Calibration, calibration_of
from ..settings.compute import Compute
from ..storage.journal import NO_JOURNAL, journaled
from ..storage.ownership import artifact_place, check_free
from ..storage.paths import place
from ..walk.group_scoring import group_scores
from ..walk.run import dtype_name, journal_of, removed_of, samples_of, timed
from ..walk.scoring import DATA, Asked, Gathered, gather
from .common import ModelSource, open_model, resolve_settings, save_artifact
from .selection_options import default_criterion


def score(
    model: ModelSource,
    *,
    criterion: str | Sequence[str] | None = None,
    settings: dict[str, Any] | None = None,
    units: str = LAYER,
    calibration: Calibration | None = None,
    compute: Compute | None = None,
    out: str | Path | None = None,
    **plain: Any,
) -> Any:
    """Score every layer, every attention or MLP, or every group of these; lower means remove first.

    Example: ``shallower.score("my-model", criterion="block_influence", text="wiki.txt", samples=64)``.

    Args:
        criterion: a name from ``methods.names("criteria")``, by default what suits the units; or several, which are
            scored in one pass: then a list is returned, and ``out`` is a folder for one file each.
        settings: the criterion's own settings; of several ``{name: {key: value}}``.
        units: what is scored: ``layer``, ``attention``, ``mlp``, ``sublayer`` (attention and MLP, each alone) or
            ``width`` (KV groups of attentions, neurons of MLPs).
        calibration: which tokens; unused by criteria that need no data. Its fields, and those of ``compute``, are
            keywords too.
        out: also write the artifact there.
    """
    criterion = criterion or default_criterion(units)
    several = not isinstance(criterion, str)
    names = list(dict.fromkeys(criterion)) if several else [criterion]
    calibration, compute = resolve_settings(
        plain, "score", calibration=(Calibration, calibration_of(calibration)), compute=(Compute, compute)
    )
    own = (settings or {}) if several else {criterion: settings or {}}
    asked = [
        Asked(methods.find("criteria", name), criterion_settings(name, own.get(name), calibration)) for name in names
    ]
    inputs = [*calibration.files, None if isinstance(model, Model) else model]
    files = _outputs(out, names, inputs) if several else {names[0]: artifact_place(out, "scores", inputs)}
    check_readable(calibration.texts)
    check_units_kind(units, plans=False)
    with journaled(place(out) if out is not None else None):
        results = _score_all(open_model(model, compute), asked, units, calibration)
        for result in results:
            save_artifact(result, files[result.criterion])
    return results if several else results[0]


def _outputs(out: str | Path | None, names: Sequence[str], inputs: Sequence[Any]) -> dict[str, Path | None]:
    """Criterion -> its file in a folder."""
    if out is None:
        return dict.fromkeys(names)
    folder = place(out)
    if folder.suffix == ".json":
        raise UserError(
            f"{len(names)} criteria give a file each; give a folder, such as {folder.with_suffix('')}", out=folder
        )
    if folder.exists() and not folder.is_dir():
        check_free(folder)
    return {name: artifact_place(folder / f"{name}.json", "scores", inputs) for name in names}


def _score_all(model: Model, asked: Sequence[Asked], kind: str, calibration: Calibration) -> list[Scores]:
    units = model.units(kind)
    samples = samples_of(model, calibration) if any(one.kind in DATA for one in asked) else None
    tokens, record = (samples.tokens, samples.record) if samples else (None, None)
    names = {one.name: vars(one.settings) if one.settings else {} for one in asked}
    journal = journal_of(model, record, criteria=names, **_of_parts(units)) if samples else NO_JOURNAL

    def measure() -> dict[str, Any]:
        places = all(one.kind == "place" for one in asked)
        with timed(model, load=not places) as peak, model.check_length(tokens.shape[1] if tokens is not None else 0):
            results = gather(asked, model, tokens, units=units, journal=journal, **_by_group(units))
        seconds = journal.before + peak.seconds
        return {
            "scores": [_numbers(gathered, len(units)) for gathered in results],
            "seconds": seconds,
            "peak_memory_bytes": peak.bytes,
        }

    kept_before = journal.memo("scores", measure)
    parts = zip(asked, kept_before["scores"], strict=True)
    common = {"model": model.record, "dtype": dtype_name(model), "units": units.sizes(range(len(units)))}
    common |= {key: kept_before[key] for key in ("seconds", "peak_memory_bytes")}
    return [
        Scores(one.name, names[one.name], calibration=record if one.kind in DATA else None, **numbers, **common)
        for one, numbers in parts
    ]


def _by_group(units: Units) -> dict[str, Any]:
    """How groups of parts are scored, where they are."""
    return {"by_group": group_scores} if units.narrow else {}


def _of_parts(units: Units) -> dict[str, str]:
    """What a journal is told of units that are no whole layers."""
    return {} if units.whole else {"kind": units.kind}


def _numbers(gathered: Gathered, count: int) -> dict[str, Any]:
    return {
        "scores": [gathered.scores[number] for number in range(count)],
        "windows": gathered.windows,
        "halves": [[half[number] for number in range(count)] for half in gathered.halves],
        "halves_windows": gathered.halves_windows,
    }


def rescorer(model: Model, criterion: str, settings: Any, units: Units, calibration: Calibration):
    """(removal, changes of weights) -> scores of the units that stay, by number, for iterative schedules."""
    asked = Asked(methods.find("criteria", criterion), criterion_settings(criterion, settings, calibration))
    samples = samples_of(model, calibration) if asked.kind in DATA else None
    tokens, record = (samples.tokens, samples.record) if samples else (None, None)

    def rescore(removal: Removal, patch: Patch | None = None) -> dict[int, float]:
        own = vars(asked.settings) if asked.settings else {}
        changes = {"patch": {name: edit.digest() for name, edit in patch.items()}} if patch else {}
        about = {**removed_of(removal), **_of_parts(units), **changes}
        journal = journal_of(model, record, criterion=criterion, settings=own, **about)

        def measure() -> dict[str, float]:
            how = {"units": units, "removal": removal, "journal": journal, **_by_group(units)}
            with model.patched(patch or {}):
                (gathered,) = gather([asked], model, tokens, **how)
            return {str(index): value for index, value in gathered.scores.items()}

        return {int(index): value for index, value in journal.memo("scores", measure).items()}

    return rescore


def criterion_settings(criterion: str, settings: Any, calibration: Calibration | None) -> Any:
    """A criterion's Settings."""
    return seeded_settings(methods.find("criteria", criterion), settings, calibration)


def seeded_settings(method: ModuleType, settings: Any, calibration: Calibration | None) -> Any:
    """A method's Settings; the common seed also seeds one that has a seed of its own, unless it is set apart."""
    if settings is not None and not isinstance(settings, dict):
        return methods.configure(method, settings)
    common = {"seed": calibration.seed} if calibration is not None and "seed" in methods.setting_names(method) else {}
    return methods.configure(method, common | (settings or {}))


def scores_of(source: Any) -> Scores | None:
    """Scores that were given, as such or by a file; None where a model was given."""
    if isinstance(source, Scores):
        return source
    if not isinstance(source, Model) and str(source).endswith(".json"):
        return load(place(source), "scores")
    return None
