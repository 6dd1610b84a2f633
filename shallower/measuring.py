"""The verbs of the command line that measure and show: options in, ``stages`` called, a table or JSON out."""

from pathlib import Path
from typing import Annotated

import typer

from . import options as opt
from . import stages, tables
from .calibration import Calibration
from .demo import demo as run_demo
from .errors import UserError
from .evaluation.grid import CACHES, PROTOCOLS, Grid, counts
from .evaluation.tasks import Tasks
from .quantities import sizes_of


def evaluate(
    model: opt.ModelArg,
    text: Annotated[
        list[str] | None, typer.Option("--text", help="text to evaluate on; may be repeated; by default the shipped prose")
    ] = None,
    tokens: opt.Tokens = None,
    protocol: opt.ProtocolOpt = "shortened-llama",
    length: Annotated[int | None, typer.Option("--length", help="tokens per segment; by default the protocol's")] = None,
    stride: Annotated[int | None, typer.Option("--stride", help="step between segments; by default --length")] = None,
    bos: opt.Bos = "auto",
    max_tokens: opt.MaxTokens = None,
    tasks: Annotated[str | None, typer.Option("--tasks", help="zero-shot tasks of lm-eval, or commonsense7")] = None,
    task_data: Annotated[Path | None, typer.Option("--task-data", help="folder of NAME.jsonl; by default the Hub's data")] = None,
    limit: Annotated[int | None, typer.Option("--limit", help="only the first so many items of each task")] = None,
    dtype: opt.Dtype = None,
    device: opt.Device = None,
    layered: opt.Layered = None,
    max_batch_tokens: opt.BatchTokens = None,
    trust_remote_code: opt.Trust = False,
    out: opt.Out = None,
    json: opt.Json = False,
) -> None:
    """Perplexity, with its protocol, and zero-shot tasks."""
    if tasks is None and (task_data is not None or limit is not None):
        raise UserError("--task-data and --limit speak of --tasks: name some, or commonsense7")
    wanted = Tasks(tuple(filter(None, (name.strip() for name in tasks.split(",")))), task_data, limit) if tasks is not None else None
    result = stages.evaluate(
        model,
        texts=text or (),
        tokens=tokens,
        protocol=opt.protocol(protocol, length, max_tokens, stride, bos),
        tasks=wanted,
        compute=stages.Compute(dtype, device, trust_remote_code, layered, max_batch_tokens),
        out=out,
    )
    opt.finish(result, json, tables.evaluation, out)


def sweep(
    model: opt.ModelArg,
    remove: Annotated[str, typer.Option("--remove", help="numbers of layers to remove, such as 1..12 or 3,6,9")],
    criterion: opt.CriterionOpt = "taylor",
    selection: opt.SelectionOpt = "lowest",
    iterative: opt.Iterative = False,
    budget: opt.Budget = None,
    keep_first: opt.KeepFirst = "auto",
    keep_last: opt.KeepLast = "auto",
    settings: opt.Settings = None,
    text: opt.Text = None,
    dataset: opt.Dataset = None,
    tokens: opt.Tokens = None,
    samples: opt.Samples = 10,
    length: opt.Length = 128,
    seed: opt.Seed = 1234,
    bos: opt.Bos = "auto",
    eval_text: opt.EvalText = None,
    protocol: opt.ProtocolOpt = "shortened-llama",
    eval_length: opt.EvalLength = None,
    max_tokens: opt.MaxTokens = None,
    dtype: opt.Dtype = None,
    device: opt.Device = None,
    layered: opt.Layered = None,
    max_batch_tokens: opt.BatchTokens = None,
    trust_remote_code: opt.Trust = False,
    out: opt.Out = None,
    json: opt.Json = False,
) -> None:
    """Perplexity against layers removed: scores once, then evaluates every size by virtual removal."""
    mine, its, _ = opt.split_settings(opt.pairs(settings), criterion, selection)
    result = stages.sweep(
        model,
        sizes=sizes_of(remove),
        criterion=criterion,
        settings=mine,
        choosing=opt.choosing(selection, its, (keep_first, keep_last), iterative, budget),
        calibration=Calibration(text, dataset, tokens, samples, length, seed, bos),
        texts=eval_text or (),
        protocol=opt.protocol(protocol, eval_length, max_tokens),
        compute=stages.Compute(dtype, device, trust_remote_code, layered, max_batch_tokens),
        out=out,
    )
    opt.finish(result, json, tables.sweep, out)


def bench(
    model: opt.ModelArg,
    against: Annotated[str | None, typer.Option("--against", metavar="BASE", help="a model to compare with, in turns")] = None,
    protocol: Annotated[str, typer.Option("--protocol", help=" | ".join(PROTOCOLS))] = "default",
    batch: Annotated[str | None, typer.Option("--batch", help="batch sizes, such as 1,4; by default the protocol's")] = None,
    prompt: Annotated[str | None, typer.Option("--prompt", help="prompt lengths in tokens, such as 128,1024")] = None,
    new: Annotated[str | None, typer.Option("--new", help="tokens to make, exactly, such as 32,128")] = None,
    repeats: Annotated[int | None, typer.Option("--repeats", help="runs kept per setting; lifts the default's limit of time")] = None,
    warmup: Annotated[int | None, typer.Option("--warmup", help="runs dropped before them")] = None,
    cache: Annotated[str, typer.Option("--cache", help=" | ".join(CACHES))] = "dynamic",
    compiled: Annotated[bool, typer.Option("--compile", help="torch.compile the steps (CUDA graphs); with --cache static")] = False,
    dtype: opt.Dtype = None,
    device: opt.Device = None,
    trust_remote_code: opt.Trust = False,
    out: opt.Out = None,
    json: opt.Json = False,
) -> None:
    """Speed: prefill and decode apart, memory, and the share of the memory's bandwidth."""
    sizes = {"batches": counts("--batch", batch), "prompts": counts("--prompt", prompt), "new": counts("--new", new)}
    grid = Grid.of(protocol, **sizes, repeats=repeats, warmup=warmup, cache=cache, compiled=compiled)
    compute = stages.Compute(dtype, device, trust_remote_code)
    opt.finish(stages.bench(model, against=against, grid=grid, compute=compute, out=out), json, tables.speed, out)


def compare(
    sources: Annotated[
        list[str],
        typer.Argument(metavar="RUN|MODEL...", help="folders with artifacts, evaluation files or models; NAME=PATH names one"),
    ],
    dtype: opt.Dtype = None,
    device: opt.Device = None,
    layered: opt.Layered = None,
    max_batch_tokens: opt.BatchTokens = None,
    trust_remote_code: opt.Trust = False,
    out: Annotated[Path | None, typer.Option("--out", help="folder for comparison.json, its table and its pictures")] = None,
    overwrite: opt.Overwrite = False,
    json: opt.Json = False,
) -> None:
    """Models side by side, the first is the base. Models without an evaluation are evaluated first, by the defaults of evaluate."""
    compute = stages.Compute(dtype, device, trust_remote_code, layered, max_batch_tokens)
    opt.finish(stages.compare(sources, compute=compute, out=out, overwrite=overwrite), json, tables.comparison, out)


def report(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="where artifacts lie, there or in folders below", show_default=False)],
    out: Annotated[Path | None, typer.Option("--out", help="the page; by default DIR/report.html")] = None,
) -> None:
    """One self-contained HTML page from the artifacts in a folder, with its figures as SVG and PNG beside it."""
    made = stages.report(folder, out=out)
    tables.plain_console().print(f"written to {made}, its figures to {made.with_suffix('')}", soft_wrap=True)


def card(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="a model that shallower wrote", show_default=False)],
    evaluations: Annotated[list[str] | None, typer.Argument(metavar="EVALUATION...", help="evaluations of it and of its base")] = None,
) -> None:
    """Write the model card of a pruned model anew, with what was measured since."""
    tables.plain_console().print(f"written to {stages.card(folder, evaluations or ())}", soft_wrap=True)


def demo(
    out: Annotated[Path, typer.Option("--out", help="folder for everything that the demo makes")] = Path("shallower-demo"),
    overwrite: Annotated[bool, typer.Option("--overwrite", help="replace a non-empty --out")] = False,
) -> None:
    """The main job on a real model: SmolLM2-135M-Instruct, 6 of 30 layers removed, the rest repaired without training."""
    run_demo(out, overwrite=overwrite)
