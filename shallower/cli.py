"""The command line: typer over ``stages``. Results go to stdout, progress and errors to stderr, mistakes exit with 2."""

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer

from . import methods, ranks, stages, tables
from .anatomy.loading import parse_dtype, quiet
from .artifacts import dumps, load, versions
from .calibration import BOS_RULES, Calibration
from .demo import demo as run_demo
from .errors import UserError
from .evaluation.perplexity import Protocol
from .files import check_free
from .journal import journaled
from .planning import Amount, Choosing, layers_of, parameters_of, seconds_of
from .progress import shown
from .repairs import FITTED, Compensating
from .tensors import total_size

app = typer.Typer(
    add_completion=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    rich_markup_mode=None,
    help="Make decoder language models shallower: score, plan, prune, prove, evaluate.\n\n"
    "MODEL is a folder, a Hub id or a .gguf file. VERB --help NAME explains a method; --version says which one this is.",
)

INTERRUPTED = 130
TOGETHER = ("score", "plan")  # the verbs that many processes can share
UsageError = typer.BadParameter.__mro__[2]  # click's base class, wherever this typer keeps its click
CRITERIA = ", ".join(methods.names("criteria"))
SELECTIONS = ", ".join(methods.names("selection"))
COMPENSATIONS = ", ".join(methods.names("compensation"))

ModelArg = Annotated[str, typer.Argument(metavar="MODEL", help="a folder, a Hub id or a .gguf file", show_default=False)]
Out = Annotated[Path | None, typer.Option("--out", help="write the artifact there; parent folders are made")]
Json = Annotated[bool, typer.Option("--json", help="print the artifact on stdout and nothing else")]
Dtype = Annotated[str | None, typer.Option("--dtype", help="compute in fp32, bf16 or fp16; by default as stored")]
Device = Annotated[str | None, typer.Option("--device", help="cpu, cuda, cuda:0 …; by default CUDA where there is one")]
LAYERED = "one layer in memory, the others on disk; by default where the weights would not fit"
Layered = Annotated[bool | None, typer.Option("--layered/--resident", help=LAYERED, show_default=False)]
BatchTokens = Annotated[int | None, typer.Option("--max-batch-tokens", help="tokens run through a layer at once; by default by device")]
Trust = Annotated[bool, typer.Option("--trust-remote-code", help="run code that comes with the model")]
Text = Annotated[str | None, typer.Option("--text", help="calibration text: .txt, .jsonl or .parquet; by default the shipped prose")]
Dataset = Annotated[str | None, typer.Option("--dataset", help="Hub data set: NAME, NAME:CONFIG or NAME:CONFIG:SPLIT")]
Tokens = Annotated[str | None, typer.Option("--tokens", help="a .npy file of integers, (sample, position), used exactly as it is")]
Samples = Annotated[int, typer.Option("--samples", help="number of calibration samples")]
Length = Annotated[int, typer.Option("--length", help="tokens per sample or segment, BOS counted")]
Seed = Annotated[int, typer.Option("--seed", help="which parts of the text are taken; also seeds methods that draw")]
Bos = Annotated[str, typer.Option("--bos", help=" | ".join(BOS_RULES))]
CriterionOpt = Annotated[str, typer.Option("--criterion", help=CRITERIA)]
SelectionOpt = Annotated[str, typer.Option("--selection", help=SELECTIONS)]
Iterative = Annotated[bool, typer.Option("--iterative", help="score anew after every removal")]
BUDGET = "time for a selection that searches, such as 120s, 10m or 2h; then the best so far, at least greedy's, is the result"
Budget = Annotated[str | None, typer.Option("--budget", help=BUDGET)]
KeepFirst = Annotated[str, typer.Option("--keep-first", help="layers at the start that never go, or auto")]
KeepLast = Annotated[str, typer.Option("--keep-last", help="layers at the end that never go, or auto")]
Remove = Annotated[int | None, typer.Option("--remove", help="number of layers to remove")]
Ratio = Annotated[float | None, typer.Option("--ratio", help="share of all parameters to remove, to the nearest number of layers")]
Target = Annotated[str | None, typer.Option("--target-params", help="parameters that may be left, such as 5.5B")]
CompensateSamples = Annotated[int, typer.Option("--compensate-samples", help="samples to fit --compensate on, at most")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="replace a non-empty --out")]
Verify = Annotated[bool, typer.Option("--verify/--no-verify", help="reload what was written and prove it")]
SaveDtype = Annotated[str | None, typer.Option("--save-dtype", help="store floating tensors in fp32, bf16 or fp16")]
ShardSize = Annotated[str, typer.Option("--max-shard-size", help="largest weight file")]
PrunedOut = Annotated[Path, typer.Option("--out", help="folder for the pruned model; it appears only when complete")]
Settings = Annotated[list[str] | None, typer.Option("--set", help="a method's own setting, key=value; may be repeated")]


@app.command()
def inspect(model: ModelArg, out: Out = None, json: Json = False, trust_remote_code: Trust = False) -> None:
    """What a model is: family, layers, parameters per layer, legal removals. Loads no weights."""
    compute = stages.Compute(trust_remote_code=trust_remote_code)
    _finish(stages.inspect(model, compute=compute, out=out), json, tables.inspection, out)


@app.command()
def score(
    model: ModelArg,
    criterion: CriterionOpt = "taylor",
    settings: Settings = None,
    text: Text = None,
    dataset: Dataset = None,
    tokens: Tokens = None,
    samples: Samples = 10,
    length: Length = 128,
    seed: Seed = 1234,
    bos: Bos = "auto",
    dtype: Dtype = None,
    device: Device = None,
    layered: Layered = None,
    max_batch_tokens: BatchTokens = None,
    trust_remote_code: Trust = False,
    out: Out = None,
    json: Json = False,
) -> None:
    """Score every layer; the lowest is removed first."""
    result = stages.score(
        model,
        criterion=criterion,
        settings=_pairs(settings),
        calibration=Calibration(text, dataset, tokens, samples, length, seed, bos),
        compute=stages.Compute(dtype, device, trust_remote_code, layered, max_batch_tokens),
        out=out,
    )
    _finish(result, json, tables.scores, out)


@app.command()
def plan(
    source: Annotated[str, typer.Argument(metavar="SCORES|MODEL", help="a scores.json, or a model to score first", show_default=False)],
    remove: Remove = None,
    ratio: Ratio = None,
    target_params: Target = None,
    criterion: CriterionOpt = "taylor",
    selection: SelectionOpt = "lowest",
    iterative: Iterative = False,
    budget: Budget = None,
    keep_first: KeepFirst = "auto",
    keep_last: KeepLast = "auto",
    settings: Settings = None,
    text: Text = None,
    dataset: Dataset = None,
    tokens: Tokens = None,
    samples: Samples = 10,
    length: Length = 128,
    seed: Seed = 1234,
    bos: Bos = "auto",
    dtype: Dtype = None,
    device: Device = None,
    layered: Layered = None,
    max_batch_tokens: BatchTokens = None,
    trust_remote_code: Trust = False,
    out: Out = None,
    json: Json = False,
) -> None:
    """Decide which layers go."""
    mine, its, _ = _split_settings(_pairs(settings), criterion, selection)
    result = stages.plan(
        source,
        amount=_amount(remove, ratio, target_params),
        choosing=Choosing(selection, its, _kept("first", keep_first), _kept("last", keep_last), iterative, _seconds(budget)),
        criterion=criterion,
        settings=mine,
        calibration=Calibration(text, dataset, tokens, samples, length, seed, bos),
        compute=stages.Compute(dtype, device, trust_remote_code, layered, max_batch_tokens),
        out=out,
    )
    _finish(result, json, tables.plan, out)


@app.command()
def prune(
    model: ModelArg,
    out: PrunedOut,
    plan: Annotated[str | None, typer.Option("--plan", help="a plan.json made for this model")] = None,
    drop: Annotated[str | None, typer.Option("--drop", help="exactly these layers, such as 3,4,5; ignores protection")] = None,
    remove: Remove = None,
    ratio: Ratio = None,
    target_params: Target = None,
    criterion: CriterionOpt = "taylor",
    selection: SelectionOpt = "lowest",
    iterative: Iterative = False,
    budget: Budget = None,
    keep_first: KeepFirst = "auto",
    keep_last: KeepLast = "auto",
    settings: Settings = None,
    text: Text = None,
    dataset: Dataset = None,
    tokens: Tokens = None,
    samples: Samples = 10,
    length: Length = 128,
    seed: Seed = 1234,
    bos: Bos = "auto",
    dtype: Dtype = None,
    device: Device = None,
    layered: Layered = None,
    max_batch_tokens: BatchTokens = None,
    trust_remote_code: Trust = False,
    compensate: Annotated[str | None, typer.Option("--compensate", help=f"repair what is left: {COMPENSATIONS}")] = None,
    compensate_samples: CompensateSamples = FITTED,
    save_dtype: SaveDtype = None,
    max_shard_size: ShardSize = "5GB",
    overwrite: Overwrite = False,
    verify: Verify = True,
    json: Json = False,
) -> None:
    """Write the pruned model as a plain checkpoint, and prove that it is the intended one."""
    if sum(way is not None for way in (plan, drop, remove, ratio, target_params)) != 1:
        raise UserError("say what to remove: one of --plan, --drop, --remove, --ratio and --target-params")
    check_free(out, overwrite=overwrite)
    parse_dtype(save_dtype)
    total_size(max_shard_size)
    mine, its, theirs = _split_settings(_pairs(settings), criterion, selection, compensate)
    repair = None
    if compensate is not None:
        fitting = Calibration(text, dataset, tokens, compensate_samples, length, seed, bos, at_most=True)
        repair = Compensating(compensate, theirs, fitting)
    with journaled(out):
        opened = stages.open_model(model, stages.Compute(dtype, device, trust_remote_code, layered, max_batch_tokens))
        if plan is not None:
            chosen = load(plan, "plan")
        elif drop is not None:
            chosen = stages.drop(opened, layers_of(drop))
        else:
            chosen = stages.plan(
                opened,
                amount=_amount(remove, ratio, target_params),
                choosing=Choosing(selection, its, _kept("first", keep_first), _kept("last", keep_last), iterative, _seconds(budget)),
                criterion=criterion,
                settings=mine,
                calibration=Calibration(text, dataset, tokens, samples, length, seed, bos),
            )
        options = {"overwrite": overwrite, "verify": verify, "save_dtype": save_dtype, "max_shard_size": max_shard_size}
        result = stages.prune(opened, chosen, out=out, compensating=repair, **options)
    _finish(result, json, tables.pruned, out)


@app.command()
def compensate(
    model: ModelArg,
    plan: Annotated[str, typer.Option("--plan", help="a plan.json made for this model")],
    out: PrunedOut,
    method: Annotated[str, typer.Option("--method", help=COMPENSATIONS)] = "sequential",
    settings: Settings = None,
    text: Text = None,
    dataset: Dataset = None,
    tokens: Tokens = None,
    samples: Annotated[int, typer.Option("--samples", help="samples to fit on, at most")] = FITTED,
    length: Length = 128,
    seed: Seed = 1234,
    bos: Bos = "auto",
    dtype: Dtype = None,
    device: Device = None,
    layered: Layered = None,
    max_batch_tokens: BatchTokens = None,
    trust_remote_code: Trust = False,
    save_dtype: SaveDtype = None,
    max_shard_size: ShardSize = "5GB",
    overwrite: Overwrite = False,
    verify: Verify = True,
    json: Json = False,
) -> None:
    """Remove what a plan says, repair what is left without training, write it and prove it."""
    check_free(out, overwrite=overwrite)
    parse_dtype(save_dtype)
    total_size(max_shard_size)
    fitting = Calibration(text, dataset, tokens, samples, length, seed, bos, at_most=True)
    how = Compensating(method, _pairs(settings), fitting)
    with journaled(out):
        opened = stages.open_model(model, stages.Compute(dtype, device, trust_remote_code, layered, max_batch_tokens))
        options = {"overwrite": overwrite, "verify": verify, "save_dtype": save_dtype, "max_shard_size": max_shard_size}
        result = stages.compensate(opened, plan, compensating=how, out=out, **options)
    _finish(result, json, tables.pruned, out)


@app.command()
def evaluate(
    model: ModelArg,
    text: Annotated[
        list[str] | None, typer.Option("--text", help="text to evaluate on; may be repeated; by default the shipped prose")
    ] = None,
    tokens: Tokens = None,
    length: Length = 128,
    stride: Annotated[int | None, typer.Option("--stride", help="step between segments; by default --length")] = None,
    bos: Bos = "auto",
    max_tokens: Annotated[int | None, typer.Option("--max-tokens", help="use only the start of each text")] = None,
    dtype: Dtype = None,
    device: Device = None,
    layered: Layered = None,
    max_batch_tokens: BatchTokens = None,
    trust_remote_code: Trust = False,
    out: Out = None,
    json: Json = False,
) -> None:
    """Perplexity, with its protocol."""
    result = stages.evaluate(
        model,
        texts=text or (),
        tokens=tokens,
        protocol=Protocol(length, stride, bos, max_tokens),
        compute=stages.Compute(dtype, device, trust_remote_code, layered, max_batch_tokens),
        out=out,
    )
    _finish(result, json, tables.evaluation, out)


@app.command()
def report(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="where artifacts lie, there or in folders below", show_default=False)],
    out: Annotated[Path | None, typer.Option("--out", help="the page; by default DIR/report.html")] = None,
) -> None:
    """One self-contained HTML page from the artifacts in a folder, with its figures as SVG and PNG beside it."""
    made = stages.report(folder, out=out)
    tables.plain_console().print(f"written to {made}, its figures to {made.with_suffix('')}", soft_wrap=True)


@app.command()
def card(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="a model that shallower wrote", show_default=False)],
    evaluations: Annotated[list[str] | None, typer.Argument(metavar="EVALUATION...", help="evaluations of it and of its base")] = None,
) -> None:
    """Write the model card of a pruned model anew, with what was measured since."""
    tables.plain_console().print(f"written to {stages.card(folder, evaluations or ())}", soft_wrap=True)


@app.command()
def demo(
    out: Annotated[Path, typer.Option("--out", help="folder for everything that the demo makes")] = Path("shallower-demo"),
    overwrite: Annotated[bool, typer.Option("--overwrite", help="replace a non-empty --out")] = False,
) -> None:
    """The main job on a real model: SmolLM2-135M-Instruct, 6 of 30 layers removed, the rest repaired without training."""
    run_demo(out, overwrite=overwrite)


def _finish(result, json: bool, table: Callable[..., None], out: Path | None) -> None:
    if ranks.rank():
        return
    if json:
        sys.stdout.write(dumps(result))
    else:
        table(result, out)


def _pairs(settings: list[str] | None) -> dict[str, str]:
    pairs = {}
    for item in settings or ():
        key, equals, value = item.partition("=")
        if not equals or not key:
            raise UserError(f"--set {item!r}: write key=value")
        pairs[key] = value
    return pairs


def _split_settings(
    given: dict[str, str], criterion: str, selection: str, compensation: str | None = None
) -> tuple[dict[str, str], dict[str, str], dict[str, str]]:
    """Settings of the criterion, the selection and the compensation; what none knows stays with one that has settings, to be refused."""
    named = [("compensation", compensation), ("selection", selection), ("criteria", criterion)]
    known = {kind: methods.setting_names(methods.find(kind, name)) if name else () for kind, name in named}
    last = next((kind for kind in ("criteria", "selection", "compensation") if known[kind]), "criteria")
    parts: dict[str, dict[str, str]] = {kind: {} for kind in known}
    for key, value in given.items():
        parts[next((kind for kind in known if key in known[kind]), last)][key] = value
    return parts["criteria"], parts["selection"], parts["compensation"]


def _kept(end: str, text: str) -> int | None:
    if text == "auto":
        return None
    if not (text.isascii() and text.isdigit()):
        raise UserError(f"--keep-{end} {text}: give a number of layers, or auto")
    return int(text)


def _seconds(text: str | None) -> float | None:
    return seconds_of(text) if text is not None else None


def _amount(remove: int | None, ratio: float | None, target: str | None) -> Amount:
    return Amount(remove, ratio, parameters_of(target) if target is not None else None)


def _explain(arguments: list[str]) -> bool:
    """``VERB --help NAME``: print what the method NAME does and its settings; a name may be that of two methods."""
    if len(arguments) == 3 and arguments[1] in ("--help", "-h"):
        for kind in sorted(methods.KINDS, key=lambda kind: (kind == "compensation") != (arguments[0] == "compensate")):
            if arguments[2] in methods.names(kind):
                print(f"{methods.KINDS[kind]} {arguments[2]}\n\n{methods.describe(methods.find(kind, arguments[2]))}")
                return True
        raise UserError(
            f"unknown method {arguments[2]!r}: criteria are {CRITERIA}; selections are {SELECTIONS}; compensations are {COMPENSATIONS}"
        )
    return False


def main(arguments: list[str] | None = None) -> None:
    """Run the command line and exit: 0 done, 2 a mistake of the user's, 130 interrupted."""
    arguments = (sys.argv[1:] if arguments is None else arguments) or ["--help"]
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(errors="replace")  # a formula must not fail on a terminal that knows only ASCII
    try:
        if _run(arguments) == INTERRUPTED:
            raise KeyboardInterrupt
        sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # the reader has gone, as head does
    except (UserError, UsageError) as error:
        text = error.format_message() if isinstance(error, UsageError) else str(error)
        print("error:", " ".join(text.split()) or "see --help", file=sys.stderr)
        sys.exit(2)
    except (KeyboardInterrupt, typer.Abort):
        print("interrupted: nothing was left half-written; run the same command again", file=sys.stderr)
        sys.exit(INTERRUPTED)


def _run(arguments: list[str]) -> int | None:
    """Run one command; typer reports an interruption as a status instead of raising it."""
    if arguments == ["--version"]:
        print("shallower", versions()["shallower"])
    elif not _explain(arguments):
        if ranks.launched() > 1 and arguments[0] not in TOGETHER:
            raise UserError(f"{arguments[0]} runs in one process: start it without torchrun; {' and '.join(TOGETHER)} run in many")
        with ranks.joined(), shown(ranks.rank() == 0), quiet():
            return app(args=arguments, standalone_mode=False)
    return None
