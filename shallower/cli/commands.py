"""Commands that change a model: settings in, the function of the same name called, a table or JSON out."""

import importlib
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer

import shallower as api

from .. import methods
from ..artifacts.units import LAYER
from ..data.readers import check_readable, check_trainable, split_own
from ..errors import UserError
from ..planning.exchange import plan_place, write_plan
from ..settings.amount import Amount
from ..settings.answering import Answering
from ..settings.calibration import Calibration, listed_paths
from ..settings.compute import Compute
from ..settings.fields import flag_of, options_of
from ..settings.quantisation import Quantisation
from ..settings.training import Training
from ..settings.writing import Writing
from ..stages.repair_options import FITTED, RepairOptions
from ..stages.selection_options import Scoring, SelectionOptions
from ..storage.gguf import SUFFIX, is_gguf
from ..storage.ownership import artifact_place, check_free
from ..storage.paths import kind_of, place
from .method_settings import criteria_of, one_criterion, settings_by_criterion, split_settings
from .options import (
    As,
    EvalText,
    Folder,
    GivenOptions,
    Json,
    ModelArgument,
    Out,
    Settings,
    command,
    finish,
    key_values,
    running,
)
from .prune_options import PruneOptions

SCORING_FLAGS = {
    flag_of(field).partition("/")[0] for kind in (Scoring, Calibration, Compute) for field in options_of(kind).values()
} | {"--set"}
CHOICE_FLAGS = {
    flag_of(field).partition("/")[0] for kind in (Amount, SelectionOptions) for field in options_of(kind).values()
}
COMPUTE_FLAGS = {flag_of(field).partition("/")[0] for field in options_of(Compute).values()}
OnlyRepair = As(renamed={"method": "--compensate"}, only=frozenset({"method", "repair_budget"}))
DATA_HELP = (
    "text or instructions to train on: .txt, .jsonl, .parquet; self:FILE: prompts (instruction and input, prompt, or "
    "text) that the unpruned model answers, to train on its answers; repeatable"
)
BUDGET_HELP = "time for the repair, such as 120s, 10m or 2h"
RemoteCode = As(only=frozenset({"trust_remote_code"}))


@command
def shrink(
    model: ModelArgument,
    amount: Amount,
    choosing: Annotated[SelectionOptions, As(only=frozenset({"keep_first", "keep_last"}))],
    calibration: Calibration,
    compute: Compute,
    writing: Writing,
    out: Annotated[
        Path, typer.Option("--out", "-o", metavar="DIR", help="folder for the model and all that is measured")
    ],
    texts: EvalText = None,
    repair_budget: Annotated[str, typer.Option("--budget", metavar="TIME", help=BUDGET_HELP)] = "10m",
    speed: Annotated[bool, typer.Option("--speed/--no-speed", help="measure the speed beside the dense model")] = True,
) -> None:
    """The whole job: choose for the repaired model, remove, repair, prove, measure, report."""
    check_readable(calibration.texts)
    check_readable(listed_paths(texts), "texts")
    with running():
        measured = {"texts": texts or (), "measure_speed": speed}
        settings = {"choosing": choosing, "calibration": calibration, "writing": writing, "compute": compute}
        made = api.shrink(model, out=out, amount=amount, budget=repair_budget, **settings, **measured)
        table = importlib.import_module("shallower.cli.shrink_table")
        how = (calibration, compute, replace(writing, overwrite=False))
        table.show(made, table.single_steps(made, model, (amount, choosing), how, texts or ()))


@command
def inspect(model: ModelArgument, compute: Annotated[Compute, RemoteCode], out: Out = None, json: Json = False) -> None:
    """What a model is: family, layers, parameters, bytes, legal removals. Loads no weights."""
    artifact_place(out, "inspection")
    light = is_gguf(model)
    with running(light=light):
        made = api.inspect_gguf(model, out=out) if light else api.inspect(model, compute=compute, out=out)
        finish(made, json, "inspection", out)


@command
def score(
    model: ModelArgument,
    scoring: Scoring,
    calibration: Calibration,
    compute: Compute,
    settings: Settings = None,
    out: Out = None,
    json: Json = False,
) -> None:
    """Score every layer.

    The lowest is removed first. Several criteria are scored in one pass and shown side by side.
    """
    names = criteria_of(scoring.criteria)
    own_settings = settings_by_criterion(key_values(settings), names)
    check_readable(calibration.texts)
    if len(names) == 1:
        artifact_place(out, "scores", calibration.files)
    with running():
        if len(names) == 1:
            options = {"criterion": names[0], "settings": own_settings[names[0]], "units": scoring.units}
            finish(api.score(model, **options, calibration=calibration, compute=compute, out=out), json, "scores", out)
            return
        scores = api.score(
            model,
            criterion=names,
            settings=own_settings,
            units=scoring.units,
            calibration=calibration,
            compute=compute,
            out=out,
        )
        finish(scores, json, "several_scores", out)


@command
def plan(
    source: Annotated[
        str,
        typer.Argument(
            metavar="SCORES|MODEL|PLAN",
            help="a scores.json, a model to score first, or a plan.json to be written in another form",
            show_default=False,
        ),
    ],
    amount: Amount | None,
    choosing: SelectionOptions,
    scoring: Scoring,
    calibration: Calibration,
    compute: Compute,
    given: GivenOptions,
    texts: EvalText = None,
    settings: Settings = None,
    out: Out = None,
    json: Json = False,
) -> None:
    """Decide which layers go; --out FILE.yaml is mergekit's recipe, FILE.txt llama.cpp's list of layers."""
    criterion = one_criterion(scoring.criteria)
    if source.endswith(".json") and kind_of(place(source)) == "plan":
        _rewrite_plan(source, given, out, json)
        return
    amount = amount or Amount()  # says what may be given
    from_scores = source.endswith(".json")
    kind, scores = scoring.units, None
    if from_scores:
        flags = SCORING_FLAGS - {"--set"}
        given.refuse(flags, f"{source} holds scores that are made already; give MODEL instead, or leave it out")
        if not place(source).is_file():
            raise UserError(f"no scores file at {source}: give the file that score wrote, or a model")
        scores = api.artifacts.load(place(source), "scores")
        criterion, kind = scores.criterion, scores.kind_of_units
    _check_texts(amount, texts)
    choosing = choosing.for_criterion(criterion, kind)
    at_work = None if from_scores else criterion
    criterion_settings, selection_settings, _ = split_settings(key_values(settings), at_work, choosing.selection)
    plan_place(out, [*calibration.files, *(texts or ()), source])
    check_readable(calibration.texts)
    check_readable(listed_paths(texts), "texts")
    with running():
        options: dict[str, Any] = {"amount": amount, "texts": texts or (), "out": out}
        if not from_scores:
            options |= {"criterion": criterion, "settings": criterion_settings, "units": scoring.units}
            options |= {"calibration": calibration, "compute": compute}
        result = api.plan(scores or source, choosing=with_settings(choosing, selection_settings), **options)
        finish(result, json, "plan", out)


def _rewrite_plan(source: str, given: GivenOptions, out: Path | None, json: bool) -> None:
    """Write a plan that is made already in another form."""
    others = {name for name in given if name.startswith("--")} - {"--out", "--json"}
    given.refuse(sorted(others), f"{source} is a plan that is made already")
    made = api.artifacts.load(place(source), "plan")
    if (target := plan_place(out, [source])) is not None:
        write_plan(made, target)
    finish(made, json, "plan", out)


@command
def prune(
    model: ModelArgument,
    out: Folder,
    amount: Amount | None,
    choosing: SelectionOptions,
    scoring: Scoring,
    calibration: Calibration,
    compute: Compute,
    repair: Annotated[RepairOptions | None, OnlyRepair],
    writing: Writing,
    given: GivenOptions,
    own: PruneOptions,
    json: Json = False,
) -> None:
    """Write the pruned model as a plain checkpoint, or of a .gguf file as another one, and prove it."""
    _refuse_unused(own, amount, given, repairs=repair is not None)
    layers = own.unit_names()
    texts = listed_paths(own.texts)
    criterion = one_criterion(scoring.criteria)
    choosing = choosing.for_criterion(criterion, scoring.units)
    criterion_settings, selection_settings, repair_settings = split_settings(
        key_values(own.settings), criterion if amount else None, choosing.selection if amount else None, repair
    )
    fit_calibration = replace(calibration, samples=own.compensate_samples or FITTED, at_most=True)
    compensating = repair and replace(repair, settings=repair_settings, calibration=fit_calibration)
    check_readable(calibration.texts)
    check_readable(texts, "texts")
    to_gguf = out.suffix == SUFFIX
    if to_gguf:
        importlib.import_module("shallower.stages.prune_gguf").check_gguf_options(model, out, writing)
    else:
        check_free(out, overwrite=writing.overwrite, inputs=[own.plan, *calibration.files, *texts, model])
    own.check_plan()
    if to_gguf and amount is None and repair is None:  # the file's header is enough
        with running(light=True):
            plan = api.drop_gguf(model, layers) if layers else own.plan
            finish(api.prune_gguf(model, plan, out=out, writing=writing), json, "pruned_gguf", out)
        return
    with running():
        journaled = importlib.import_module("shallower.storage.journal").journaled
        with journaled(out):
            dense = api.open_model(model, compute)
            check_quantised = importlib.import_module("shallower.stages.prune").check_quantised
            parts = scoring.units != LAYER or any("." in name for name in layers)
            check_quantised(dense, writing, repaired=repair is not None, parts=parts)  # before anything is scored
            choice: Any = own.plan
            if layers:
                choice = api.drop(dense, layers)
            elif amount is not None:
                how = {"criterion": criterion, "settings": criterion_settings, "calibration": calibration}
                how |= {"units": scoring.units, "choosing": with_settings(choosing, selection_settings)}
                choice = api.plan(dense, amount=amount, texts=texts, **how)
            result = api.prune(dense, choice, out=out, compensating=compensating, writing=writing)
        finish(result, json, result.kind, out)


def _refuse_unused(own: PruneOptions, amount: Amount | None, given: GivenOptions, *, repairs: bool) -> None:
    """Raise a UserError for options of ``prune`` that have nothing to say beside the others."""
    way = own.way(amount)
    if amount is None:
        unused = (SCORING_FLAGS | CHOICE_FLAGS) - COMPUTE_FLAGS - ({"--set"} if repairs else set())
        keep = {flag_of(field) for field in options_of(Calibration).values()} if repairs else set()
        given.refuse(
            unused - keep | ({"--samples"} if repairs else set()) | {"--eval-text"}, f"{way} says which layers go"
        )
    if not repairs and own.compensate_samples is not None:
        raise UserError("--compensate-samples goes with --compensate: name a method of repair, or leave it out")


@command
def compensate(
    model: ModelArgument,
    plan: Annotated[str, typer.Option("--plan", metavar="FILE", help="a plan.json made for this model")],
    out: Folder,
    repair: Annotated[
        RepairOptions, As(renamed={"repair_budget": "--budget"}, only=frozenset({"method", "repair_budget"}))
    ],
    calibration: Annotated[Calibration, As(renamed={"samples": "--samples"})],
    compute: Compute,
    writing: Writing,
    given: GivenOptions,
    settings: Settings = None,
    json: Json = False,
) -> None:
    """Remove what a plan says, repair what is left, write it and prove it."""
    samples = calibration.samples if "--samples" in given else FITTED
    fit_calibration = replace(calibration, samples=samples, at_most=True)
    compensating = replace(repair, settings=key_values(settings), calibration=fit_calibration)
    check_readable(calibration.texts)
    check_free(out, overwrite=writing.overwrite, inputs=[plan, *calibration.files, model])
    if not place(plan).is_file():
        raise UserError(f"no plan file at {plan}: give the file that plan wrote")
    with running():
        with importlib.import_module("shallower.storage.journal").journaled(out):
            result = api.compensate(model, plan, compensating=compensating, out=out, writing=writing, compute=compute)
        finish(result, json, "pruned", out)


@command
def heal(
    model: ModelArgument,
    train_tokens: Annotated[
        str, typer.Option("--train-tokens", metavar="COUNT", help="how long, repetitions counted, such as 20M")
    ],
    out: Folder,
    training: Training,
    answering: Answering,
    compute: Annotated[Compute, As(without=frozenset({"layered", "max_batch_tokens"}))],
    data: Annotated[
        list[str] | None,
        typer.Option("--data", metavar="FILE", help=DATA_HELP),
    ] = None,
    dataset: Annotated[
        str | None, typer.Option("--dataset", metavar="NAME", help="instead, a data set of the Hub")
    ] = None,
    method: Annotated[str, typer.Option("--method", metavar="NAME", help=", ".join(methods.names("healing")))] = "lora",
    settings: Settings = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="replace an older output in --out")] = False,
    json: Json = False,
) -> None:
    """Train what is left, on text or instructions, and write it as a plain checkpoint."""
    methods.check_name("healing", method)
    check_trainable(data or ())
    check_readable(training.eval_texts, "eval_texts")
    files, prompts = split_own(data or ())
    inputs = [*files, *prompts, *training.eval_texts, training.optimizer_from, model]
    check_free(out, overwrite=overwrite, inputs=inputs)
    with running():
        options = {
            "method": method,
            "settings": key_values(settings),
            "training": training,
            "answering": answering,
            "compute": replace(compute, layered=False),
        }
        result = api.heal(
            model, data=data or (), dataset=dataset, train_tokens=train_tokens, out=out, overwrite=overwrite, **options
        )
        finish(result, json, "healing", out)


@command
def quantize(
    model: Annotated[
        str, typer.Argument(metavar="DIR", help="a model in a plain form: a folder or a Hub id", show_default=False)
    ],
    settings: Quantisation,
    calibration: Calibration,
    compute: Annotated[Compute, RemoteCode],
    out: Folder,
    json: Json = False,
) -> None:
    """Round a model to 4 or 8 bits by llm-compressor, in an environment of its own, and measure what that costs."""
    check_readable(calibration.texts)
    check_free(out, overwrite=settings.overwrite, inputs=[*calibration.files, model])
    with running():
        result = api.quantize(model, out=out, settings=settings, calibration=calibration, compute=compute)
        finish(result, json, "quantised", out)


def _check_texts(amount: Amount, texts: list[str] | None) -> None:
    if texts and amount.max_ppl_increase is None:
        raise UserError("--eval-text is what --max-ppl-increase is measured on; give that, or leave it out")


def with_settings(choosing: SelectionOptions, settings: dict[str, str]) -> SelectionOptions:
    return replace(choosing, settings=settings)
