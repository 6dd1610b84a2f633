"""Plans: which layers go, from scores, from a search by the model's loss, or as they are named."""

import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

from torch import Tensor

from .. import methods
from ..anatomy.model import Model
from ..artifacts import Plan, Scores
from ..data.readers import check_readable
from ..errors import UserError
from ..evaluation.perplexity import evaluation_segments
from ..files import artifact_place
from ..journal import journaled
from ..planning import Stopwatch, agreement, check_amount, plan_of, protection, searches, select_amount, settled_amount, shortened
from ..quantities import numbers_of
from ..runs import dtype_name, journal_of, load_weights, samples_of
from ..selection import Problem
from ..settings.amount import Amount, amount_of
from ..settings.calibration import Calibration, Paths, calibration_of, listed_paths
from ..settings.compute import Compute
from ..settings.evaluation import Protocol
from ..settings.selection import CRITERION, Choosing
from ..walk.losses import LossWalk, Objective
from .common import Source, kept, open_model, taken
from .removals import removals_perplexity
from .score import rescorer, score, scores_of, seeded


def plan(
    source: Source | Scores,
    *,
    amount: Amount | int | float | str | None = None,
    choosing: Choosing | str | None = None,
    criterion: str | None = None,
    settings: dict[str, Any] | None = None,
    calibration: Calibration | None = None,
    texts: Paths = (),
    protocol: Protocol | None = None,
    compute: Compute | None = None,
    out: str | Path | None = None,
    **plain: Any,
) -> Plan:
    """Decide which layers go.

    Example: ``shallower.plan("my-model", ratio="20%", selection="greedy")``, ``shallower.plan(scores, remove=6)``.

    Args:
        source: scores (a Scores or the path of a scores.json), or a model, which is scored first where needed.
        amount: how much goes: an Amount, a number of layers or a share; or its fields as keywords.
        choosing: how; by default the run of neighbours that block influence finds, with automatic protection.
        criterion, settings, calibration, compute: as for ``score``, where a model is given; with scores they have nothing to say.
        texts, protocol: what ``max_ppl_increase`` is measured on, as for ``evaluate``.
    """
    scores = scores_of(source)
    if scores is not None:
        _check_silent(scores, criterion, calibration, compute, plain)
    if isinstance(choosing, str):
        choosing = Choosing(choosing)
    if amount is not None:
        amount = amount_of(amount)
    kinds = {"choosing": (Choosing, choosing), "calibration": (Calibration, calibration_of(calibration)), "compute": (Compute, compute)}
    amount, choosing, calibration, compute = taken(plain, "plan", amount=(Amount, amount), **kinds)
    inputs = [*calibration.files, *listed_paths(texts), source if isinstance(source, (str, Path)) else None]
    out = artifact_place(out, "plan", inputs)
    check_readable((*calibration.texts, *listed_paths(texts)))
    methods.check_name("criteria", criterion or CRITERION)
    choosing = choosing.for_criterion(scores.criterion if scores is not None else criterion)
    selection = methods.find("selection", choosing.selection)
    _check_schedule(selection, choosing, scores)
    how = {"choosing": choosing, "criterion": criterion or CRITERION, "settings": settings, "calibration": calibration}
    if amount.max_ppl_increase is not None:
        if scores is not None:
            raise UserError("--max-ppl-increase runs the model: give MODEL instead of scores")
        return _within(open_model(source, compute), amount.max_ppl_increase, texts, protocol or Protocol(), how, out)
    model = None if scores else open_model(source, compute)
    with journaled(out):
        return kept(_chosen(scores, model, amount, how), out)


def _check_silent(scores: Scores, criterion: str | None, calibration: Any, compute: Any, plain: dict[str, Any]) -> None:
    """Raise a UserError for what scores that were given have settled already."""
    settles = {"calibration": calibration, "compute": compute}
    settles |= {name: plain[name] for name in plain if name in (*Calibration.__dataclass_fields__, *Compute.__dataclass_fields__)}
    given = next((name for name, value in settles.items() if value is not None), None)
    if criterion is not None and criterion != scores.criterion:
        raise UserError(f"--criterion {criterion}: these scores are by {scores.criterion}; give MODEL, or score it by {criterion} first")
    if given is not None:
        raise UserError(f"--{given.replace('_', '-')} says how a model is scored, and scores were given: give MODEL, or leave it out")


def _chosen(scores: Scores | None, model: Model | None, amount: Amount, how: dict[str, Any]) -> Plan:
    """The plan by a selection, from scores that are given or made."""
    choosing, calibration = how["choosing"], how["calibration"]
    selection = methods.find("selection", choosing.selection)
    own = seeded(selection, choosing.settings, calibration)
    record = scores.model if scores else model.record
    first, last = protection(record.layers, selection, choosing.keep_first, choosing.keep_last)
    allowed = tuple(range(first, record.layers - last))
    amount, assumed = settled_amount(amount, record, dtype_name(model) if model else scores.dtype)
    check_amount(amount, record, allowed)
    if selection.NEEDS == "scores":
        scores = scores or score(model, **{name: how[name] for name in ("criterion", "settings", "calibration")})
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
        rescore=rescorer(model, how["criterion"], how["settings"], calibration) if choosing.iterative else None,
        iterative=choosing.iterative,
        settings=own,
        affords=watch.affords,
    )
    choice = select_amount(selection, problem, amount, record)
    return replace(
        plan_of(record, choice.order, choosing.selection, calibration=used, trace=list(choice.trace)),
        criterion=scores.criterion if scores else None,
        scores=problem.scores,
        settings=(scores.settings if scores else {}) | (vars(own) if own else {}),
        keep_first=first,
        keep_last=last,
        iterative=choosing.iterative,
        budget=choosing.budget,
        assumed=assumed,
        agreement=agreement(selection, problem, choice, scores) if scores and not choosing.iterative else None,
        seconds=time.monotonic() - started + (scores.seconds if scores else 0.0),
    )


def nested_plans(source: Model, sizes: Sequence[int], how: dict[str, Any]) -> Iterator[Plan]:
    """A plan per size, the model scored once; ``how`` holds the other arguments of ``plan``."""
    selection = methods.find("selection", how["choosing"].selection)
    if getattr(selection, "NESTED", False):
        whole = _chosen(None, source, Amount(remove=max(sizes)), how)
        yield from (shortened(whole, size) for size in sizes)
        return
    scores = None
    if selection.NEEDS == "scores":
        scores = score(source, **{name: how[name] for name in ("criterion", "settings", "calibration")})
    yield from (_chosen(scores, source, Amount(remove=size), how) for size in sizes)


def _within(model: Model, most: float, texts: Paths, protocol: Protocol, how: dict, out: Path | None) -> Plan:
    """The plan before the first whose perplexity on some text grows by more than a share."""
    choosing = how["choosing"]
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


def _check_schedule(selection: ModuleType, choosing: Choosing, scores: Scores | None) -> None:
    if choosing.iterative and not getattr(selection, "ITERATIVE", False):
        able = [name for name in methods.names("selection") if getattr(methods.find("selection", name), "ITERATIVE", False)]
        raise UserError(f"--iterative has no meaning for --selection {choosing.selection}; it goes with {', '.join(able)}")
    if choosing.budget is not None and not searches(selection):
        able = [name for name in methods.names("selection") if searches(methods.find("selection", name))]
        raise UserError(f"--budget has no meaning for --selection {choosing.selection}; it goes with {', '.join(able)}")
    if scores is not None and (selection.NEEDS == "losses" or choosing.iterative):
        given = "--iterative" if choosing.iterative else f"--selection {choosing.selection}"
        raise UserError(f"{given} runs the model: give MODEL instead of scores")


def check_drop(layers: Any) -> tuple[int, ...]:
    """Layers to drop from what was given, each named once; the model need not be open for that."""
    found = numbers_of(layers, "--drop")
    twice = next((index for index in found if found.count(index) > 1), None)
    if twice is not None:
        raise UserError(f"--drop names layer {twice} twice; name each layer once")
    return found


def drop(model: Source, layers: Any, *, compute: Compute | None = None, out: str | Path | None = None, **plain: Any) -> Plan:
    """A plan that removes exactly these layers; no protection.

    Example: ``shallower.drop("my-model", [3, 4, 5])`` or ``shallower.drop("my-model", "3-5")``.
    """
    layers = check_drop(layers)
    out = artifact_place(out, "plan")
    (compute,) = taken(plain, "drop", compute=(Compute, compute))
    record = open_model(model, compute).record
    outside = [index for index in layers if not 0 <= index < record.layers]
    if outside:
        raise UserError(f"--drop {outside[0]}: the model has the layers 0 to {record.layers - 1}")
    if not 0 < len(layers) < record.layers:
        raise UserError(f"--drop names {len(layers)} of {record.layers} layers; at least one must go and one must stay")
    return kept(plan_of(record, tuple(layers), "drop"), out)


def _losses(model: Model, calibration: Calibration | None):
    """(masks -> mean of the objective over all predicted tokens, the record of the tokens)."""
    samples = samples_of(model, calibration)
    load_weights(model)
    walk = LossWalk(model, samples.tokens, journal_of(model, samples.record, losses=True))

    def losses(masks: Tensor, label: str, *, bounded: int = 0, objective: Objective = "loss") -> Tensor:
        with model.given(samples.tokens.shape[1]):
            return walk(masks, label, bounded=bounded, objective=objective) / walk.predictions

    return losses, samples.record
