"""The verbs of the command line: settings in, the function of the same name in ``shallower`` called, a table or JSON out."""

import importlib
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer

import shallower as api

from .. import methods
from ..data.readers import check_readable
from ..errors import UserError
from ..files import artifact_place, check_free, kind_of, place
from ..quantities import numbers_of
from ..settings.amount import Amount
from ..settings.calibration import Calibration, listed_paths
from ..settings.compute import Compute
from ..settings.evaluation import Protocol, Tasks
from ..settings.fields import flag_of, options_of
from ..settings.repair import FITTED, Compensating
from ..settings.selection import Choosing, Scoring
from ..settings.speed import Grid
from ..settings.training import Training
from ..settings.writing import Writing
from .method_settings import criteria_named, one_criterion, settings_by_criterion, split_settings
from .options import As, Folder, Given, Json, Model, Out, Settings, command, finish, pairs, running

SCORED = {flag_of(field).partition("/")[0] for kind in (Scoring, Calibration, Compute) for field in options_of(kind).values()} | {"--set"}
CHOSEN = {flag_of(field).partition("/")[0] for kind in (Amount, Choosing) for field in options_of(kind).values()}
COMPUTED = {flag_of(field).partition("/")[0] for field in options_of(Compute).values()}
EvalText = Annotated[
    list[str] | None,
    typer.Option("--eval-text", metavar="FILE", help="text to measure perplexity on; may be repeated; by default the shipped prose"),
]
PlanFile = Annotated[str | None, typer.Option("--plan", metavar="FILE", help="a plan.json made for this model")]
OnlyRepair = As(renamed={"method": "--compensate"}, only=frozenset({"method"}))
RemoteCode = As(only=frozenset({"trust_remote_code"}))


@command
def inspect(model: Model, compute: Annotated[Compute, RemoteCode], out: Out = None, json: Json = False) -> None:
    """What a model is: family, layers, parameters, bytes, legal removals. Loads no weights."""
    artifact_place(out, "inspection")
    with running():
        finish(api.inspect(model, compute=compute, out=out), json, "inspection", out)


@command
def score(
    model: Model,
    scoring: Scoring,
    calibration: Calibration,
    compute: Compute,
    settings: Settings = None,
    out: Out = None,
    json: Json = False,
) -> None:
    """Score every layer; the lowest is removed first. Several criteria are scored in one pass and shown side by side."""
    names = criteria_named(scoring.criterion)
    own = settings_by_criterion(pairs(settings), names)
    check_readable(calibration.texts)
    if len(names) == 1:
        artifact_place(out, "scores", calibration.files)
    with running():
        if len(names) == 1:
            given = {"criterion": names[0], "settings": own[names[0]]}
            finish(api.score(model, **given, calibration=calibration, compute=compute, out=out), json, "scores", out)
            return
        found = api.score(model, criterion=names, settings=own, calibration=calibration, compute=compute, out=out)
        finish(found, json, "several_scores", out)


@command
def plan(
    source: Annotated[str, typer.Argument(metavar="SCORES|MODEL", help="a scores.json, or a model to score first", show_default=False)],
    amount: Amount,
    choosing: Choosing,
    scoring: Scoring,
    calibration: Calibration,
    compute: Compute,
    given: Given,
    eval_text: EvalText = None,
    settings: Settings = None,
    out: Out = None,
    json: Json = False,
) -> None:
    """Decide which layers go."""
    criterion = one_criterion(scoring.criterion)
    from_scores = source.endswith(".json")
    if from_scores:
        given.refuse(SCORED, f"{source} holds scores that are made already; give MODEL instead, or leave it out")
        if not place(source).is_file():
            raise UserError(f"no scores file at {source}: give the file that score wrote, or a model")
    _needs_increase(amount, eval_text)
    choosing = choosing if from_scores else choosing.for_criterion(criterion)  # scores know by which criterion they are
    mine, its, _ = split_settings(pairs(settings), criterion, choosing.selection)
    artifact_place(out, "plan", [*calibration.files, *(eval_text or ()), source])
    check_readable((*calibration.texts, *listed_paths(eval_text)))
    with running():
        how = {} if from_scores else {"criterion": criterion, "settings": mine, "calibration": calibration, "compute": compute}
        result = api.plan(source, amount=amount, choosing=_with(choosing, its), texts=eval_text or (), out=out, **how)
        finish(result, json, "plan", out)


@command
def prune(
    model: Model,
    out: Folder,
    amount: Amount | None,
    choosing: Choosing,
    scoring: Scoring,
    calibration: Calibration,
    compute: Compute,
    repair: Annotated[Compensating | None, OnlyRepair],
    writing: Writing,
    given: Given,
    plan: PlanFile = None,
    drop: Annotated[
        str | None, typer.Option("--drop", metavar="LAYERS", help="exactly these layers, such as 3,8-10; no protection")
    ] = None,
    eval_text: EvalText = None,
    compensate_samples: Annotated[
        int | None, typer.Option("--compensate-samples", metavar="N", help=f"samples to fit --compensate on, at most [{FITTED}]")
    ] = None,
    settings: Settings = None,
    json: Json = False,
) -> None:
    """Write the pruned model as a plain checkpoint, and prove that it is the intended one."""
    ways = [name for name, value in (("--plan", plan), ("--drop", drop), ("an amount", amount)) if value is not None]
    if len(ways) != 1:
        what = f"{' and '.join(ways)} were given" if ways else "say what to remove"
        raise UserError(f"{what}: give one of --plan, --drop, --remove, --ratio and the targets (see --help)")
    if amount is None:
        own = (SCORED | CHOSEN) - COMPUTED - ({"--set"} if repair else set())
        keep = {flag_of(field) for field in options_of(Calibration).values()} if repair else set()
        given.refuse(own - keep | ({"--samples"} if repair else set()) | {"--eval-text"}, f"{ways[0]} says which layers go")
    if repair is None and compensate_samples is not None:
        raise UserError("--compensate-samples goes with --compensate: name a method of repair, or leave it out")
    dropped = _dropped(drop)
    criterion = one_criterion(scoring.criterion)
    choosing = choosing.for_criterion(criterion)
    mine, its, theirs = split_settings(pairs(settings), criterion if amount else None, choosing.selection if amount else None, repair)
    fitting = replace(calibration, samples=compensate_samples or FITTED, at_most=True)
    how = Compensating(repair.method, theirs, fitting) if repair is not None else None
    check_readable((*calibration.texts, *listed_paths(eval_text)))
    check_free(out, overwrite=writing.overwrite, inputs=[plan, *calibration.files, *listed_paths(eval_text), model])
    if plan is not None and not place(plan).is_file():
        raise UserError(f"no plan file at {plan}: give the file that plan wrote")
    with running():
        journaled = importlib.import_module("shallower.journal").journaled
        with journaled(out):
            opened = api.open_model(model, compute)
            chosen: Any = plan
            if drop is not None:
                chosen = api.drop(opened, dropped)
            elif amount is not None:
                scored = {"criterion": criterion, "settings": mine, "calibration": calibration}
                chosen = api.plan(opened, amount=amount, choosing=_with(choosing, its), texts=eval_text or (), **scored)
            result = api.prune(opened, chosen, out=out, compensating=how, writing=writing)
        finish(result, json, "pruned", out)


@command
def compensate(
    model: Model,
    plan: Annotated[str, typer.Option("--plan", metavar="FILE", help="a plan.json made for this model")],
    out: Folder,
    repair: Annotated[Compensating, As(only=frozenset({"method"}))],
    calibration: Annotated[Calibration, As(renamed={"samples": "--samples"})],
    compute: Compute,
    writing: Writing,
    given: Given,
    settings: Settings = None,
    json: Json = False,
) -> None:
    """Remove what a plan says, repair what is left without training, write it and prove it."""
    samples = calibration.samples if "--samples" in given else FITTED
    how = Compensating(repair.method, pairs(settings), replace(calibration, samples=samples, at_most=True))
    check_readable(calibration.texts)
    check_free(out, overwrite=writing.overwrite, inputs=[plan, *calibration.files, model])
    if not place(plan).is_file():
        raise UserError(f"no plan file at {plan}: give the file that plan wrote")
    with running():
        with importlib.import_module("shallower.journal").journaled(out):
            result = api.compensate(model, plan, compensating=how, out=out, writing=writing, compute=compute)
        finish(result, json, "pruned", out)


@command
def heal(
    model: Model,
    train_tokens: Annotated[str, typer.Option("--train-tokens", metavar="COUNT", help="how long, repetitions counted, such as 20M")],
    out: Folder,
    training: Training,
    compute: Annotated[Compute, As(without=frozenset({"layered", "max_batch_tokens"}))],
    data: Annotated[
        list[str] | None,
        typer.Option("--data", metavar="FILE", help="text or instructions to train on: .txt, .jsonl, .parquet; repeatable"),
    ] = None,
    dataset: Annotated[str | None, typer.Option("--dataset", metavar="NAME", help="instead, a data set of the Hub")] = None,
    method: Annotated[str, typer.Option("--method", metavar="NAME", help=", ".join(methods.names("healing")))] = "lora",
    settings: Settings = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="replace an older output in --out")] = False,
    json: Json = False,
) -> None:
    """Train what is left, on text or instructions, and write it as a plain checkpoint."""
    methods.check_name("healing", method)
    check_readable(listed_paths(data), "--data")
    check_readable(training.eval_texts, "--eval-text")
    check_free(out, overwrite=overwrite, inputs=[*(data or ()), *training.eval_texts, training.optimizer_from, model])
    with running():
        how = {"method": method, "settings": pairs(settings), "training": training, "compute": replace(compute, layered=False)}
        result = api.heal(model, data=data or (), dataset=dataset, train_tokens=train_tokens, out=out, overwrite=overwrite, **how)
        finish(result, json, "healing", out)


@command
def evaluate(
    model: Model,
    protocol: Protocol,
    tasks: Tasks | None,
    compute: Compute,
    given: Given,
    text: Annotated[
        list[str] | None,
        typer.Option("--text", metavar="FILE", help="text to evaluate on; may be repeated; by default the shipped prose"),
    ] = None,
    tokens: Annotated[
        str | None, typer.Option("--tokens", metavar="FILE", help="a .npy file of integers, (sample, position), used exactly as it is")
    ] = None,
    without: Annotated[
        str | None, typer.Option("--without", metavar="LAYERS", help="leave these layers out virtually, such as 3,8-10")
    ] = None,
    out: Out = None,
    json: Json = False,
) -> None:
    """Perplexity, with its protocol, and zero-shot tasks."""
    if tasks is not None and text is None and tokens is None:
        cut = {flag_of(field) for field in options_of(Protocol).values()}
        given.refuse(cut, "it says how texts are cut, and only --tasks is asked for; name a --text too, or leave it out")
    removed = numbers_of(without, "--without") if without is not None else ()
    check_readable(listed_paths(text))
    artifact_place(out, "evaluation", [*(text or ()), tokens])
    with running():
        result = api.evaluate(
            model, texts=text or (), tokens=tokens, protocol=protocol, tasks=tasks, removed=removed, compute=compute, out=out
        )
        finish(result, json, "evaluation", out)


@command
def sweep(
    model: Model,
    remove: Annotated[str, typer.Option("--remove", metavar="NUMBERS", help="numbers of layers to remove, such as 1-12 or 3,6,9")],
    choosing: Choosing,
    scoring: Scoring,
    calibration: Calibration,
    protocol: Annotated[Protocol, As(renamed={"length": "--eval-length"}, without=frozenset({"stride", "bos"}))],
    compute: Compute,
    eval_text: EvalText = None,
    settings: Settings = None,
    out: Out = None,
    json: Json = False,
) -> None:
    """Perplexity against layers removed: scores once, then evaluates every size by virtual removal."""
    criterion = one_criterion(scoring.criterion)
    choosing = choosing.for_criterion(criterion)
    mine, its, _ = split_settings(pairs(settings), criterion, choosing.selection)
    check_readable((*calibration.texts, *listed_paths(eval_text)))
    artifact_place(out, "sweep", [*calibration.files, *(eval_text or ())])
    with running():
        how = {"criterion": criterion, "settings": mine, "choosing": _with(choosing, its), "calibration": calibration}
        result = api.sweep(model, sizes=remove, texts=eval_text or (), protocol=protocol, compute=compute, out=out, **how)
        finish(result, json, "sweep", out)


@command
def bench(
    model: Model,
    grid: Grid,
    compute: Annotated[Compute, As(without=frozenset({"layered", "max_batch_tokens"}))],
    against: Annotated[str | None, typer.Option("--against", metavar="BASE", help="a model to compare with, in turns")] = None,
    out: Out = None,
    json: Json = False,
) -> None:
    """Speed: prefill and decode apart, memory, and the share of the memory's bandwidth."""
    artifact_place(out, "speed")
    with running():
        finish(api.bench(model, against=against, grid=grid, compute=compute, out=out), json, "speed", out)


@command
def compare(
    sources: Annotated[
        list[str],
        typer.Argument(metavar="RUN|MODEL|SCORES...", help="folders with artifacts, evaluations or models; or scores; NAME=PATH names one"),
    ],
    compute: Compute,
    out: Annotated[Path | None, typer.Option("--out", "-o", metavar="DIR", help="folder for comparison.json, table and pictures")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="replace an older comparison in --out")] = False,
    json: Json = False,
) -> None:
    """Models side by side, the first is the base; or scores: their ranks and agreement. Models without an evaluation are evaluated."""
    if all(source.endswith(".json") and kind_of(place(source.partition("=")[2] or source)) == "scores" for source in sources):
        if out is not None:
            raise UserError("--out: scores are shown side by side and not written; leave it out")
        with running():
            load = importlib.import_module("shallower.artifacts").load
            finish([load(place(source.partition("=")[2] or source), "scores") for source in sources], json, "several_scores", None)
        return
    with running():
        finish(api.compare(sources, compute=compute, out=out, overwrite=overwrite), json, "comparison", out)


@command
def report(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="where artifacts lie, there or in folders below", show_default=False)],
    out: Annotated[Path | None, typer.Option("--out", "-o", metavar="FILE", help="the page; by default DIR/report.html")] = None,
) -> None:
    """One self-contained HTML page from the artifacts in a folder, with its figures as SVG and PNG beside it."""
    with running():
        made = api.report(folder, out=out)
        _printed(f"written to {made}, its figures to {made.with_suffix('')}")


@command
def card(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="a model that shallower wrote", show_default=False)],
    evaluations: Annotated[list[str] | None, typer.Argument(metavar="EVALUATION...", help="evaluations of it and of its base")] = None,
) -> None:
    """Write the model card of a pruned model anew, with what was measured since."""
    with running():
        _printed(f"written to {api.card(folder, evaluations or ())}")


@command
def demo(
    out: Annotated[Path, typer.Option("--out", "-o", metavar="DIR", help="folder for everything that the demo makes")] = Path(
        "shallower-demo"
    ),
    overwrite: Annotated[bool, typer.Option("--overwrite", help="replace what an earlier demo wrote in --out")] = False,
) -> None:
    """The main job on a real model: SmolLM2-135M-Instruct, 6 of 30 layers removed, the rest repaired without training."""
    with running():
        importlib.import_module("shallower.cli.demo").demo(out, overwrite=overwrite)


def _printed(text: str) -> None:
    importlib.import_module("shallower.cli.grid").plain_console().print(text, soft_wrap=True)


def _dropped(text: str | None) -> tuple[int, ...]:
    """Layers named by --drop, each once."""
    found = numbers_of(text, "--drop") if text is not None else ()
    twice = next((index for index in found if found.count(index) > 1), None)
    if twice is not None:
        raise UserError(f"--drop names layer {twice} twice; name each layer once")
    return found


def _needs_increase(amount: Amount, eval_text: list[str] | None) -> None:
    if eval_text and amount.max_ppl_increase is None:
        raise UserError("--eval-text is what --max-ppl-increase is measured on; give that, or leave it out")


def _with(choosing: Choosing, settings: dict[str, str]) -> Choosing:
    return replace(choosing, settings=settings)
