"""Command for the whole job, and the table of what came of it."""

import importlib
import shlex
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer

import shallower as api

from ..data.readers import check_readable
from ..settings.amount import Amount
from ..settings.calibration import Calibration, listed_paths
from ..settings.compute import Compute
from ..settings.fields import flag_of, options_of
from ..settings.writing import Writing
from ..stages.selection_options import SelectionOptions
from .options import As, EvalText, ModelArgument, command, running

BUDGET_HELP = "time for the repair, such as 120s, 10m or 2h"


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
    budget: Annotated[str, typer.Option("--budget", metavar="TIME", help=BUDGET_HELP)] = "10m",
    speed: Annotated[bool, typer.Option("--speed/--no-speed", help="measure the speed beside the dense model")] = True,
) -> None:
    """The whole job: choose for the repaired model, remove, repair, prove, measure, report."""
    check_readable(calibration.texts)
    check_readable(listed_paths(texts), "texts")
    with running():
        measured = {"texts": texts or (), "measure_speed": speed}
        settings = {"choosing": choosing, "calibration": calibration, "writing": writing, "compute": compute}
        made = api.shrink(model, out=out, amount=amount, budget=budget, **settings, **measured)
        how = (calibration, compute, replace(writing, overwrite=False))
        show(made, single_steps(made, model, (amount, choosing), how, texts or ()))


shrink.options["repair_budget"] = "--budget"


def single_steps(made: Any, model: str, choice: Sequence[Any], how: Sequence[Any], texts: Sequence[str]) -> list[str]:
    """The commands that would have done the same one by one.

    Args:
        choice: settings that say what goes.
        how: settings of the calibration, of computing and of writing.
        texts: what was evaluated on.
    """
    calibration, compute, writing = how
    folder, source = shlex.quote(str(made.folder)), shlex.quote(model)
    much, computing = "".join(map(_options, choice)), _options(compute)
    objective = f" --objective {made.plan.settings['objective']}" if "objective" in made.plan.settings else ""
    bounded = getattr(choice[0], "max_ppl_increase", None) is not None
    eval_texts, plain_texts = (
        "".join(f" {flag} {shlex.quote(text)}" for text in texts) for flag in ("--eval-text", "--text")
    )
    repair = ""
    if made.repair is not None:
        start = " --set start=none" if "start" in made.repair.settings else ""
        repair = f"{_options(replace(calibration, samples=Calibration().samples))} --compensate local"
        repair += f" --repair-budget {made.repair.settings['budget']}{start}"
        repair += f" --compensate-samples {made.repair.calibration.samples}"
    timing = _options(replace(compute, layered=None, max_batch_tokens=None))
    grid = f" --batch 1 --prompt 128 --new 32 --repeats {made.repeats}"
    speed = f"shallower bench {folder}/model --against {source}{grid}{timing} --out {folder}/speed.json"
    choosing = f"{much}{_options(calibration)}{objective}{eval_texts if bounded else ''}{computing}"
    written = f"{repair}{computing}{_options(writing)}"
    return [
        f"shallower plan {source}{choosing} --out {folder}/plan.json",
        f"shallower prune {source} --plan {folder}/plan.json{written} --out {folder}/model",
        f"shallower evaluate {source}{plain_texts}{computing} --out {folder}/evaluation-dense.json",
        f"shallower evaluate {folder}/model{plain_texts}{computing} --out {folder}/evaluation-pruned.json",
        *([speed] if made.speed else []),
        f"shallower report {folder}",
    ]


def _options(settings: Any) -> str:
    """What was set, as options, each with a blank in front."""
    words: list[str] = []
    usual = None if isinstance(settings, Amount) else type(settings)()
    for name, field in options_of(type(settings)).items():
        value = getattr(settings, name)
        if value == getattr(usual, name, None) or value is None:
            continue
        flag, _, negative = flag_of(field).partition("/")
        if isinstance(value, bool):
            words.append(flag if value else negative)
            continue
        for one in value if isinstance(value, (tuple, list)) else (value,):
            words += [flag, f"{one:.10g}" if isinstance(one, float) else str(one)]
    return "".join(f" {shlex.quote(word)}" for word in words)


def show(made: Any, steps: list[str]) -> None:
    """One table, and the single steps that would have done the same."""
    plan, pruned = made.plan, made.pruned
    package = __package__.rpartition(".")[0]
    names = ("runtime.format", "results.healing", "artifacts", "cli.grid")
    text, healing, artifacts, grids = (importlib.import_module(f"{package}.{name}") for name in names)
    rows = [
        ["layers", str(plan.model.layers), f"{len(plan.kept)} (without {text.layers(plan.removed)})"],
        ["parameters", text.millions(plan.params_before), f"{text.millions(plan.params_after)} (-{plan.share:.1%})"],
        ["weights", text.byte_count(plan.bytes_before), text.byte_count(pruned.weight_bytes)],
    ]
    for name, before in made.dense.perplexity.items():
        after = made.after.perplexity[name].value
        rows.append([f"perplexity, {name}", f"{before.value:.2f}", f"{after:.2f} (x {after / before.value:.3f})"])
    if pruned.compensation is not None:
        before, after = healing.perplexity_times(pruned.compensation.loss)
        rows.append(["held-out calibration text", "x 1", f"x {before:.3f} as cut, x {after:.3f} repaired"])
    if made.speed is not None:
        row = made.speed.speedups[0]
        rows.append(["one sequence", "1x", f"prefill {row.prefill:.2f}x, decoding {row.decode:.2f}x as fast"])
    if not isinstance(pruned.verified, artifacts.Unverified):
        rows.append(["reloaded from disk", "control passed", f"logits equal {pruned.verified.logits}"])
    console = grids.plain_console()
    grids.grid(console, ["", "dense", "shallower"], rows)
    console.print("the same in single steps:", soft_wrap=True)
    for line in steps:
        console.print(f"  {line}", soft_wrap=True)
    console.print(f"the model: {made.model}; the report: {made.folder / 'report.html'}", soft_wrap=True)
