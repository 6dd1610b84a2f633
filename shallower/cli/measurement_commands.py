"""Commands that measure, show and export: evaluate, sweep, bench, compare, report, card, export, app, doctor, demo."""

import importlib
from pathlib import Path
from typing import Annotated

import typer

import shallower as api

from ..data.readers import check_readable
from ..errors import UserError
from ..settings.calibration import Calibration, listed_paths
from ..settings.compute import Compute
from ..settings.evaluation import Answers, Protocol, Tasks
from ..settings.export import ExportSettings
from ..settings.fields import flag_of, options_of
from ..settings.page import PageSettings
from ..settings.quantities import unit_names
from ..settings.speed import Grid
from ..stages.selection_options import Scoring, SelectionOptions
from ..storage.ownership import artifact_place
from ..storage.paths import kind_of, place
from .commands import with_settings
from .method_settings import one_criterion, split_settings
from .options import (
    As,
    EvalText,
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


@command
def evaluate(
    model: ModelArgument,
    protocol: Protocol,
    tasks: Tasks | None,
    answers: Answers,
    compute: Compute,
    given: GivenOptions,
    texts: Annotated[
        list[str] | None,
        typer.Option(
            "--text", metavar="FILE", help="text to evaluate on; may be repeated; by default the shipped prose"
        ),
    ] = None,
    tokens: Annotated[
        str | None,
        typer.Option(
            "--tokens", metavar="FILE", help="a .npy file of integers, (sample, position), used exactly as it is"
        ),
    ] = None,
    removed: Annotated[
        str | None,
        typer.Option(
            "--without", metavar="LAYERS", help="leave these out virtually, such as 3,8-10 or 5.mlp,9.attention"
        ),
    ] = None,
    out: Out = None,
    json: Json = False,
) -> None:
    """Perplexity, with its protocol, tasks, and answers held against another model's."""
    others = {"--tasks": tasks, "--against": answers.against, "--as-draft-of": answers.as_draft_of}
    asked = " and ".join(name for name, value in others.items() if value is not None)
    if asked and texts is None and tokens is None:
        flags = {flag_of(field) for field in options_of(Protocol).values()}
        given.refuse(flags, f"it says how texts are cut, and only {asked} is asked for; name a --text too")
    layers = unit_names(removed, "removed") if removed is not None else ()
    check_readable(listed_paths(texts), "texts")
    artifact_place(out, "evaluation", [*(texts or ()), tokens])
    with running():
        result = api.evaluate(
            model,
            texts=texts or (),
            tokens=tokens,
            protocol=protocol,
            tasks=tasks,
            answers=answers,
            removed=layers,
            compute=compute,
            out=out,
        )
        finish(result, json, "evaluation", out)


@command
def sweep(
    model: ModelArgument,
    sizes: Annotated[
        str,
        typer.Option("--remove", metavar="NUMBERS", help="numbers of layers or units to remove, such as 1-12 or 3,6,9"),
    ],
    choosing: SelectionOptions,
    scoring: Scoring,
    calibration: Calibration,
    protocol: Annotated[Protocol, As(renamed={"length": "--eval-length"}, without=frozenset({"stride", "bos"}))],
    compute: Compute,
    texts: EvalText = None,
    settings: Settings = None,
    out: Out = None,
    json: Json = False,
) -> None:
    """Perplexity against layers removed: scores once, then evaluates every size by virtual removal."""
    criterion = one_criterion(scoring.criteria)
    choosing = choosing.for_criterion(criterion, scoring.units)
    criterion_settings, selection_settings, _ = split_settings(key_values(settings), criterion, choosing.selection)
    check_readable(calibration.texts)
    check_readable(listed_paths(texts), "texts")
    artifact_place(out, "sweep", [*calibration.files, *(texts or ())])
    with running():
        options = {
            "criterion": criterion,
            "settings": criterion_settings,
            "units": scoring.units,
            "choosing": with_settings(choosing, selection_settings),
            "calibration": calibration,
        }
        result = api.sweep(
            model, sizes=sizes, texts=texts or (), protocol=protocol, compute=compute, out=out, **options
        )
        finish(result, json, "sweep", out)


@command
def bench(
    model: ModelArgument,
    grid: Grid,
    compute: Annotated[Compute, As(without=frozenset({"layered", "max_batch_tokens"}))],
    against: Annotated[
        str | None, typer.Option("--against", metavar="BASE", help="a model to compare with, in turns")
    ] = None,
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
        typer.Argument(
            metavar="RUN|MODEL|SCORES...",
            help="folders with artifacts, evaluations or models; or scores; NAME=PATH names one",
        ),
    ],
    compute: Compute,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", metavar="DIR", help="folder for comparison.json, table and pictures")
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="replace an older comparison in --out")] = False,
    json: Json = False,
) -> None:
    """Models side by side, the first is the base.

    Or scores: their ranks and agreement. Models without an evaluation are evaluated.
    """
    if all(
        source.endswith(".json") and kind_of(place(source.partition("=")[2] or source)) == "scores"
        for source in sources
    ):
        if out is not None:
            raise UserError("--out: scores are shown side by side and not written; leave it out")
        with running():
            load = importlib.import_module("shallower.artifacts").load
            finish(
                [load(place(source.partition("=")[2] or source), "scores") for source in sources],
                json,
                "several_scores",
                None,
            )
        return
    with running():
        finish(api.compare(sources, compute=compute, out=out, overwrite=overwrite), json, "comparison", out)


@command
def report(
    folder: Annotated[
        Path, typer.Argument(metavar="DIR", help="where artifacts lie, there or in folders below", show_default=False)
    ],
    out: Annotated[
        Path | None, typer.Option("--out", "-o", metavar="FILE", help="the page; by default DIR/report.html")
    ] = None,
    public: Annotated[
        bool,
        typer.Option("--public", help="to be shown to others: of paths on this machine only the last part is told"),
    ] = False,
) -> None:
    """One self-contained HTML page from the artifacts in a folder, with its figures as SVG and PNG beside it."""
    with running():
        page = api.report(folder, out=out, public=public)
        _print(f"written to {page}, its figures to {page.with_suffix('')}")


@command
def card(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="a model that shallower wrote", show_default=False)],
    evaluations: Annotated[
        list[str] | None, typer.Argument(metavar="EVALUATION...", help="evaluations of it and of its base")
    ] = None,
) -> None:
    """Write the model card of a pruned model anew, with what was measured since."""
    with running():
        _print(f"written to {api.card(folder, evaluations or ())}")


@command
def export(
    model: Annotated[str, typer.Argument(metavar="DIR", help="a model in a plain form", show_default=False)],
    settings: ExportSettings,
    out: Annotated[
        Path, typer.Option("--out", "-o", metavar="FILE", help="the .gguf file; it appears only when complete")
    ],
    json: Json = False,
) -> None:
    """Write a model as a .gguf file by llama.cpp's converter, add what that leaves out, and prove it in llama.cpp."""
    with running():
        result = api.export(model, out=out, settings=settings)
        finish(result, json, "exported", out)


@command
def app(
    model: ModelArgument,
    settings: PageSettings,
    compute: Annotated[Compute, As(without=frozenset({"layered", "max_batch_tokens"}))],
    given: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[PLAN|SCORES|DIR]...",
            help="plans or scores, and folders made from the model; by default half of its layers by block influence",
        ),
    ] = None,
) -> None:
    """A page in the browser: the unpruned and the pruned model answer side by side.

    It is served to this machine alone.
    """
    with running():
        api.app(model, given or (), settings=settings, compute=compute)


@command
def doctor(json: Annotated[bool, typer.Option("--json", help="print what was found as JSON")] = False) -> None:
    """What is installed, what computes, memory and disk, and versions known to be bad; status 2 where one is needed."""
    with running(light=True):
        found = api.doctor()
    if json:
        importlib.import_module("shallower.runtime.progress").stdout().write(found.dumps())
    else:
        importlib.import_module("shallower.cli.doctor_table").doctor_table(found)
    if not found.well:
        wrong = ", ".join(one.name for one in found.findings if one.state == "bad")
        raise UserError(f"what is needed is missing or bad: {wrong}; see what is said of it")


@command
def demo(
    out: Annotated[
        Path, typer.Option("--out", "-o", metavar="DIR", help="folder for everything that the demo makes")
    ] = Path("shallower-demo"),
    overwrite: Annotated[bool, typer.Option("--overwrite", help="replace what an earlier demo wrote in --out")] = False,
) -> None:
    """The whole job on a real model.

    SmolLM2-135M-Instruct, shrunk by 6 of its 30 layers.
    """
    with running():
        importlib.import_module("shallower.cli.demo").run_demo(out, overwrite=overwrite)


def _print(text: str) -> None:
    importlib.import_module("shallower.cli.grid").plain_console().print(text, soft_wrap=True)
