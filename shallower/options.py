"""The options that several verbs share, each with its help, and how what they give is read and shown."""

from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer

from . import methods, ranks
from .artifacts import dumps
from .calibration import BOS_RULES
from .errors import UserError
from .evaluation.perplexity import PROTOCOLS, Protocol
from .planning import Amount, Choosing
from .progress import stdout
from .quantities import bytes_of, parameters_of, seconds_of, share_of

CRITERIA = ", ".join(methods.names("criteria"))
SELECTIONS = ", ".join(methods.names("selection"))
COMPENSATIONS = ", ".join(methods.names("compensation"))
HEALINGS = ", ".join(methods.names("healing"))

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
Memory = Annotated[str | None, typer.Option("--target-memory", help="what the weights may take, such as 200MB or 8GB")]
Speedup = Annotated[float | None, typer.Option("--target-speedup", help="how many times faster decoding should be, such as 1.25")]
INCREASE = "share by which the perplexity of --eval-text may grow, such as 20%; as many layers go as stay within it"
Increase = Annotated[str | None, typer.Option("--max-ppl-increase", help=INCREASE)]
EVAL_TEXT = "text to measure perplexity on; may be repeated; by default the shipped prose"
EvalText = Annotated[list[str] | None, typer.Option("--eval-text", help=EVAL_TEXT)]
ProtocolOpt = Annotated[str, typer.Option("--protocol", help=f"how texts are cut: {' | '.join(PROTOCOLS)}")]
EvalLength = Annotated[int | None, typer.Option("--eval-length", help="tokens per segment; by default the protocol's")]
MaxTokens = Annotated[int | None, typer.Option("--max-tokens", help="use only the start of each text to measure on")]
CompensateSamples = Annotated[int, typer.Option("--compensate-samples", help="samples to fit --compensate on, at most")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="replace a non-empty --out")]
Verify = Annotated[bool, typer.Option("--verify/--no-verify", help="reload what was written and prove it")]
SaveDtype = Annotated[str | None, typer.Option("--save-dtype", help="store floating tensors in fp32, bf16 or fp16")]
ShardSize = Annotated[str, typer.Option("--max-shard-size", help="largest weight file")]
PrunedOut = Annotated[Path, typer.Option("--out", help="folder for the pruned model; it appears only when complete")]
HealMethod = Annotated[str, typer.Option("--method", help=HEALINGS)]
Data = Annotated[list[str] | None, typer.Option("--data", help="text or instructions to train on: .txt, .jsonl, .parquet; repeatable")]
TrainTokens = Annotated[str, typer.Option("--train-tokens", help="how long to train, repetitions counted, such as 500K or 20M")]
BATCH = "tokens of the global batch; by default the method's, or less where the budget is small"
TrainBatch = Annotated[int | None, typer.Option("--batch-tokens", help=BATCH)]
MicroBatch = Annotated[int | None, typer.Option("--micro-batch", help="sequences run through the model at once; by default by device")]
Rate = Annotated[float | None, typer.Option("--lr", help="peak learning rate; by default the method's")]
CheckpointSteps = Annotated[int | None, typer.Option("--checkpoint-steps", help="keep a checkpoint every so many steps")]
CheckpointMinutes = Annotated[float, typer.Option("--checkpoint-minutes", help="and one every so many minutes")]
Resume = Annotated[bool, typer.Option("--resume", help="go on from the last checkpoint of an interrupted run, if there is one")]
HealText = Annotated[list[str] | None, typer.Option("--eval-text", help="text to measure perplexity on before, meanwhile and after")]
EvalSteps = Annotated[int | None, typer.Option("--eval-steps", help="measure every so many steps; by default ten times in all")]
Halved = Annotated[bool, typer.Option("--gradient-checkpointing", help="less memory: each layer is computed twice")]
Control = Annotated[bool, typer.Option("--control", help="train the unpruned model on the same tokens too, to see what the text gives")]
KeepOptimizer = Annotated[bool, typer.Option("--keep-optimizer", help="leave the optimiser's state in the output")]
OPTIMIZER = "a healed folder with the optimiser's state to begin with, also of before layers were removed"
OptimizerFrom = Annotated[str | None, typer.Option("--optimizer-from", help=OPTIMIZER)]
Shard = Annotated[bool, typer.Option("--shard", help="split the model among the processes (FSDP2) rather than hold it in each")]
Track = Annotated[str | None, typer.Option("--track", help="also send the figures to tensorboard, trackio, wandb or another tracker")]
Settings = Annotated[list[str] | None, typer.Option("--set", help="a method's own setting, key=value; may be repeated")]


def finish(result, json: bool, table: Callable[..., None], out: Path | None) -> None:
    if ranks.rank():
        return
    if json:
        stdout().write(dumps(result))
    else:
        table(result, out)


def pairs(settings: list[str] | None) -> dict[str, str]:
    found = {}
    for item in settings or ():
        key, equals, value = item.partition("=")
        if not equals or not key:
            raise UserError(f"--set {item!r}: write key=value")
        found[key] = value
    return found


def split_settings(
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


def kept(end: str, text: str) -> int | None:
    if text == "auto":
        return None
    if not (text.isascii() and text.isdigit()):
        raise UserError(f"--keep-{end} {text}: give a number of layers, or auto")
    return int(text)


def choosing(selection: str, settings: dict[str, str], keep: tuple[str, str], iterative: bool, budget: str | None) -> Choosing:
    seconds = seconds_of(budget) if budget is not None else None
    return Choosing(selection, settings, kept("first", keep[0]), kept("last", keep[1]), iterative, seconds)


def amount(
    remove: int | None, ratio: float | None, target: str | None, memory: str | None, speedup: float | None, increase: str | None
) -> Amount:
    parameters = parameters_of(target) if target is not None else None
    size = bytes_of(memory) if memory is not None else None
    return Amount(remove, ratio, parameters, size, speedup, share_of(increase) if increase is not None else None)


def protocol(name: str, length: int | None, max_tokens: int | None, stride: int | None = None, bos: str = "auto") -> Protocol:
    return Protocol(length, stride, bos, max_tokens, name)
