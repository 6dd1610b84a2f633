"""Scores, plans and pruned models: score, plan, drop, prune, compensate and what a model is."""

import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

from torch import Tensor

from .. import methods
from ..anatomy.loading import parse_dtype
from ..anatomy.model import Model
from ..artifacts import Inspection, Plan, Pruned, Scores, dumps, load
from ..calibration import Calibration
from ..errors import Refusal, UserError
from ..evaluation.perplexity import Protocol, evaluation_segments
from ..files import check_file, check_free
from ..journal import NO_JOURNAL, journaled
from ..planning import Amount, Choosing, Stopwatch, check_amount, plan_of, protection, searches, select_amount, shortened
from ..progress import track
from ..repairs import Compensating, brief, compensated
from ..reporting.figures import drift
from ..runs import dtype_name, journal_of, load_weights, timed, tokens_of
from ..selection import Problem
from ..surgery import checked_removal, prune_files
from ..walk.gather import DATA, Gathered, gather
from ..walk.losses import LossWalk, Objective
from .opening import Compute, Source, check_same_model, kept, open_model
from .quality import removals_perplexity


def inspect(model: Source, *, compute: Compute | None = None, out: str | Path | None = None) -> Inspection:
    """What a model is and which single layers may go, without loading its weights."""
    check_file(out, "inspection")
    model = open_model(model, compute)
    record, kinds = model.record, model.solver.kinds()
    refusals = {}
    alike = len(set(kinds)) == 1  # then whichever goes, the same layers are built
    for index in track(range(1 if alike else record.layers), "legal removals", 1 if alike else record.layers):
        try:
            model.solver.solve((index,), deep=False)
        except Refusal as refusal:
            refusals |= {str(layer): str(refusal) for layer in (range(record.layers) if alike else [index])}
    config = model.checkpoint.config
    result = Inspection(
        model=record,
        architecture=(config.architectures or [type(config).__name__])[0],
        stack=model.outline.name,
        dtype=str(config.dtype).removeprefix("torch."),
        tied_embeddings=model.tied,
        layer_kinds=kinds,
        removable=[index for index in range(record.layers) if str(index) not in refusals],
        refusals=refusals,
    )
    return kept(result, out)


def score(
    model: Source,
    *,
    criterion: str = "taylor",
    settings: dict[str, str] | None = None,
    calibration: Calibration | None = None,
    compute: Compute | None = None,
    out: str | Path | None = None,
) -> Scores:
    """Score every layer; lower means remove first.

    Args:
        criterion: a name from ``methods.names("criteria")``.
        settings: the criterion's own settings.
        calibration: which tokens; unused by criteria that need no data.
        out: also write the artifact there.
    """
    check_file(out, "scores")
    method, options = _configured(criterion, settings, calibration)
    model = open_model(model, compute)
    tokens, record = tokens_of(model, calibration) if method.EVIDENCE in DATA else (None, None)
    own = vars(options) if options else {}
    with journaled(out):
        journal = journal_of(model, record, criterion=criterion, settings=own) if method.EVIDENCE in DATA else NO_JOURNAL

        def gathered() -> dict[str, Any]:
            with timed(model, method) as peak, model.given(tokens.shape[1] if tokens is not None else 0):
                found = gather(method, model, tokens, settings=options, journal=journal)
            scores = [found.scores[index] for index in range(model.record.layers)]
            seconds = journal.before + peak.seconds
            return {"scores": scores, "windows": found.windows, "seconds": seconds, "peak_memory_bytes": peak.bytes}

        result = Scores(
            criterion=criterion,
            settings=own,
            model=model.record,
            calibration=record,
            dtype=dtype_name(model),
            **journal.memo("scores", gathered),
        )
        return kept(result, out)


def plan(
    source: Source | Scores,
    *,
    amount: Amount,
    choosing: Choosing | None = None,
    criterion: str = "taylor",
    settings: dict[str, str] | None = None,
    calibration: Calibration | None = None,
    texts: Sequence[str | Path] = (),
    protocol: Protocol | None = None,
    compute: Compute | None = None,
    out: str | Path | None = None,
) -> Plan:
    """Decide which layers go.

    Args:
        source: scores (a Scores or the path of a scores.json), or a model, which is scored first where needed.
        amount: how much goes.
        choosing: how; by default the lowest scores with automatic protection.
        criterion, settings, calibration, compute: as for ``score``, where a model is given.
        texts, protocol: what ``amount.max_ppl_increase`` is measured on, as for ``evaluate``.
    """
    check_file(out, "plan")
    choosing = choosing or Choosing()
    how = {"choosing": choosing, "criterion": criterion, "settings": settings, "calibration": calibration}
    if amount.max_ppl_increase is not None:
        return _within(source, amount.max_ppl_increase, texts, protocol or Protocol(), how, compute, out)
    selection = methods.find("selection", choosing.selection)
    methods.find("criteria", criterion)
    own = _seeded(selection, choosing.settings, calibration)
    scores = _scores_of(source)
    model = None if scores else open_model(source, compute)
    _check_schedule(selection, choosing, model)
    record = scores.model if scores else model.record
    first, last = protection(record.layers, selection, choosing.keep_first, choosing.keep_last)
    allowed = tuple(range(first, record.layers - last))
    amount, assumed = amount.settled(record, dtype_name(model) if model else scores.dtype)
    check_amount(amount, record, allowed)
    with journaled(out):
        if selection.NEEDS == "scores":
            scores = scores or score(model, criterion=criterion, settings=settings, calibration=calibration)
        else:
            scores = None
        losses, used = _losses(model, calibration) if selection.NEEDS == "losses" else (None, scores.calibration if scores else None)
        started, watch = time.monotonic(), Stopwatch(choosing.budget)
        problem = Problem(
            layers=record.layers,
            amount=0,
            allowed=allowed,
            scores=scores.scores if scores else None,
            windows=scores.windows if scores else None,
            losses=watch.timed(losses) if losses else None,
            rescore=_rescorer(model, criterion, settings, calibration) if choosing.iterative else None,
            iterative=choosing.iterative,
            settings=own,
            affords=watch.affords,
        )
        choice = select_amount(selection, problem, amount, record)
        result = replace(
            plan_of(record, choice.order, choosing.selection, calibration=used, trace=list(choice.trace)),
            criterion=scores.criterion if scores else None,
            scores=problem.scores,
            settings=(scores.settings if scores else {}) | (vars(own) if own else {}),
            keep_first=first,
            keep_last=last,
            iterative=choosing.iterative,
            budget=choosing.budget,
            assumed=assumed,
            seconds=time.monotonic() - started + (scores.seconds if scores else 0.0),
        )
        return kept(result, out)


def nested_plans(source: Model, sizes: Sequence[int], how: dict[str, Any]) -> Iterator[Plan]:
    """A plan per size, the model scored once; ``how`` holds the other arguments of ``plan``."""
    selection = methods.find("selection", how["choosing"].selection)
    if getattr(selection, "NESTED", False):
        whole = plan(source, amount=Amount(remove=max(sizes)), **how)
        yield from (shortened(whole, size) for size in sizes)
        return
    scores = None
    if selection.NEEDS == "scores":
        scores = score(source, **{name: how[name] for name in ("criterion", "settings", "calibration")})
    yield from (plan(scores or source, amount=Amount(remove=size), **how) for size in sizes)


def _within(
    source: Source | Scores, most: float, texts: Sequence, protocol: Protocol, how: dict, compute: Compute | None, out: str | Path | None
) -> Plan:
    """The plan before the first whose perplexity on some text grows by more than a share."""
    if _scores_of(source):
        raise UserError("--max-ppl-increase runs the model: give MODEL instead of scores")
    model, choosing = open_model(source, compute), how["choosing"]
    first, last = protection(model.record.layers, methods.find("selection", choosing.selection), choosing.keep_first, choosing.keep_last)
    named = evaluation_segments(model, texts, None, protocol)
    with journaled(out):
        before = removals_perplexity(model, named, [()], "dense")[0]
        best, grown, said = None, 0.0, ""
        for one in nested_plans(model, range(1, min(model.record.layers - first - last, model.record.layers - 1) + 1), how):
            after = removals_perplexity(model, named, [one.removed], f"without {len(one.removed)}")[0]
            share = max(after[name]["value"] / before[name]["value"] - 1 for name in named)
            if share > most:
                said = f"; without {len(one.removed)} it would by {share:+.1%}"
                break
            best, grown = one, share
        if best is None:
            raise UserError(f"--max-ppl-increase {most:.1%}: one layer less raises the perplexity by {share:.1%} already; allow more")
        where = f"{', '.join(named)}, {next(iter(before.values()))['length']} tokens"
        return kept(replace(best, assumed=f"perplexity changes by {grown:+.1%} at most ({where}){said}"), out)


def _check_schedule(selection: ModuleType, choosing: Choosing, model: Model | None) -> None:
    if choosing.iterative and not getattr(selection, "ITERATIVE", False):
        able = [name for name in methods.names("selection") if getattr(methods.find("selection", name), "ITERATIVE", False)]
        raise UserError(f"--iterative has no meaning for --selection {choosing.selection}; it goes with {', '.join(able)}")
    if choosing.budget is not None and not searches(selection):
        able = [name for name in methods.names("selection") if searches(methods.find("selection", name))]
        raise UserError(f"--budget has no meaning for --selection {choosing.selection}; it goes with {', '.join(able)}")
    if model is None and (selection.NEEDS == "losses" or choosing.iterative):
        given = "--iterative" if choosing.iterative else f"--selection {choosing.selection}"
        raise UserError(f"{given} runs the model: give MODEL instead of scores")


def drop(model: Source, layers: Sequence[int], *, compute: Compute | None = None, out: str | Path | None = None) -> Plan:
    """A plan that removes exactly these layers; no protection."""
    check_file(out, "plan")
    record = open_model(model, compute).record
    if len(set(layers)) != len(layers):
        twice = next(index for index in layers if list(layers).count(index) > 1)
        raise UserError(f"--drop names layer {twice} twice; name each layer once")
    outside = [index for index in layers if not 0 <= index < record.layers]
    if outside:
        raise UserError(f"--drop {outside[0]}: the model has the layers 0 to {record.layers - 1}")
    if not 0 < len(layers) < record.layers:
        raise UserError(f"--drop names {len(layers)} of {record.layers} layers; at least one must go and one must stay")
    return kept(plan_of(record, tuple(layers), "drop"), out)


def prune(
    model: Source,
    plan: Plan | str | Path,
    *,
    out: str | Path,
    overwrite: bool = False,
    verify: bool = True,
    save_dtype: str | None = None,
    max_shard_size: str = "5GB",
    compensating: Compensating | None = None,
    compute: Compute | None = None,
) -> Pruned:
    """Write the pruned model as a plain checkpoint and prove it (see ``proof.verify``).

    Args:
        compensating: repair what is left without training; the changes are folded into the written weights.
    Raises:
        UserError: the plan is for another model, the removal is refused, or the proof fails; nothing is left at ``out``.
    """
    check_free(out, overwrite=overwrite)
    options = {"overwrite": overwrite, "verify": verify, "max_shard_size": max_shard_size, "save_dtype": parse_dtype(save_dtype)}
    model = open_model(model, compute)
    plan = plan if isinstance(plan, Plan) else load(plan, "plan")
    check_same_model(plan.model, model.record, "the plan")
    with journaled(out):
        if compensating is not None:
            checked_removal(model, plan, Path(out))
            patch, report = compensated(model, plan.removed, compensating)
            options |= {"patch": patch, "report": brief(report)}
            options["files"] = {"compensation.json": dumps(report).encode(), "compensation.png": drift(report).png()}
        model.unload()  # the proof reads the model anew; two of them need not fit
        return prune_files(model, plan, out, **options)


def compensate(
    model: Source,
    plan: Plan | str | Path,
    *,
    compensating: Compensating | None = None,
    out: str | Path,
    **options: Any,
) -> Pruned:
    """Remove what the plan says, repair what is left without training, write it and prove it: ``prune`` with a compensation."""
    return prune(model, plan, out=out, compensating=compensating or Compensating(), **options)


def _scores_of(source: Source | Scores) -> Scores | None:
    if isinstance(source, Scores):
        return source
    if not isinstance(source, Model) and str(source).endswith(".json"):
        return load(source, "scores")
    return None


def _losses(model: Model, calibration: Calibration | None):
    """(masks -> mean of the objective over all predicted tokens, the record of the tokens)."""
    tokens, record = tokens_of(model, calibration)
    load_weights(model)
    walk = LossWalk(model, tokens, journal_of(model, record, losses=True))

    def losses(masks: Tensor, label: str, *, bounded: int = 0, objective: Objective = "loss") -> Tensor:
        with model.given(tokens.shape[1]):
            return walk(masks, label, bounded=bounded, objective=objective) / walk.predictions

    return losses, record


def _rescorer(model: Model, criterion: str, settings: dict | None, calibration: Calibration | None):
    method, options = _configured(criterion, settings, calibration)
    tokens, record = tokens_of(model, calibration) if method.EVIDENCE in DATA else (None, None)

    def rescore(removed: tuple[int, ...]) -> dict[int, float]:
        journal = journal_of(model, record, criterion=criterion, settings=vars(options) if options else {}, removed=removed)

        def gathered() -> dict[str, float]:
            found: Gathered = gather(method, model, tokens, settings=options, removed=removed, journal=journal)
            return {str(index): value for index, value in found.scores.items()}

        return {int(index): value for index, value in journal.memo("scores", gathered).items()}

    return rescore


def _configured(criterion: str, settings: dict[str, str] | None, calibration: Calibration | None):
    """(criterion, its Settings)."""
    method = methods.find("criteria", criterion)
    return method, _seeded(method, settings, calibration)


def _seeded(method: ModuleType, settings: dict[str, str] | None, calibration: Calibration | None):
    """A method's Settings; the common seed also seeds one that has a seed of its own, unless it is set apart."""
    common = {"seed": str(calibration.seed)} if calibration is not None and "seed" in methods.setting_names(method) else {}
    return methods.configure(method, common | (settings or {}))
