"""Training setup.

What a training is of, its micro-batch by memory, its run, its announcement and its measured perplexities.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from ..anatomy.model import Model
from ..anatomy.stack import parameter_count
from ..data.packing import Packed
from ..data.streams import Stream
from ..errors import UserError, argument
from ..evaluation.perplexity import Segments, perplexity_of
from ..runtime import distributed
from ..runtime.format import byte_count, millions
from ..runtime.memory import total_memory
from ..runtime.progress import say
from ..settings.training import Training
from .checkpoints import Checkpointer
from .loop import TrainingRun
from .objective import Objective, activation_bytes
from .schedule import Schedule

MICRO_TOKENS = {"cpu": 1024, "cuda": 65536}  # run through the model at once, at most, unless it is said otherwise
FILLED = 0.85  # of a GPU's memory that weights, gradients, optimiser and activations may take
MOMENTS = {"adamw": 8, "lion": 4, "adamw8bit": 2}  # bytes that an optimiser keeps of a parameter


@dataclass(frozen=True)
class Setup:
    """What the training of a pruned model and of the dense one beside it share.

    Attributes:
        texts: to measure perplexity on.
        isolated: positions are given to the model, so that documents in a row are kept apart.
        bf16: products in bf16.
    """

    data: Packed | Stream
    schedule: Schedule
    training: Training
    texts: dict[str, Segments]
    device: str
    isolated: bool
    bf16: bool


def check_batch(schedule: Schedule, *, shard: bool) -> None:
    """Raise a UserError if the processes cannot split a batch."""
    many = distributed.size()
    if schedule.batch < many:
        raise UserError(
            f"a batch of {schedule.batch} sequences cannot be split among {many} processes: raise "
            f"{argument('batch_tokens')}"
        )
    if shard and schedule.batch % many:
        fitting = schedule.batch // many * many * schedule.length
        raise UserError(
            f"a batch of {schedule.batch} sequences does not split evenly: {argument('batch_tokens', fitting)} does",
            shard=True,
        )


def held_bytes(model: Model, objective: Objective, schedule: Schedule) -> int:
    """Bytes of the weights in fp32, of the gradients and of what the optimiser keeps."""
    trained = sum(one.numel() for one in objective.parameters() if one.requires_grad)
    return 4 * parameter_count(model.module) + (4 + MOMENTS[schedule.recipe.optimizer]) * trained


def _micro_batch(model: Model, objective: Objective, setup: Setup) -> int:
    """Sequences to run at once: on a GPU as many as its memory has room for beside weights, gradients and optimiser."""
    length = setup.schedule.length
    cuda = setup.device.startswith("cuda")
    most = max(1, MICRO_TOKENS["cuda" if cuda else "cpu"] // length)
    if not cuda or setup.training.shard:
        return most
    free = FILLED * total_memory(setup.device) - held_bytes(model, objective, setup.schedule)
    return min(most, activation_bytes(objective, length, bf16=setup.bf16).fitting(free))


def run_of(model: Model, objective: Objective, setup: Setup, checkpointer: Checkpointer) -> TrainingRun:
    """The run of an objective, which also measures perplexity on the texts."""
    schedule, training = setup.schedule, setup.training
    run = TrainingRun(
        objective=objective,
        data=setup.data,
        schedule=schedule,
        checkpointer=checkpointer,
        device=setup.device,
        isolated=setup.isolated,
        micro_batch=min(training.micro_batch or _micro_batch(model, objective, setup), schedule.batch),
        seed=training.seed,
        bf16=setup.bf16,
        checkpoint_steps=training.checkpoint_steps,
        checkpoint_minutes=training.checkpoint_minutes,
        evaluate_steps=eval_steps(training, schedule),
        layers=tuple(model.module.get_submodule(model.outline.name)) if training.shard else (),
        keep_state=training.keep_optimizer,
    )
    run.evaluate = _evaluator(run, setup.texts)
    return run


def eval_steps(training: Training, schedule: Schedule) -> int:
    """Steps between two measurements of perplexity."""
    return training.eval_steps or max(1, schedule.steps // 10)


def announce(model: Model, run: TrainingRun, changes: list[str], teacher: Model | None) -> None:
    """The plan, on stderr, before the first step."""
    every = parameter_count(model.module)
    trained = sum(parameter.numel() for parameter in run.trained.values())
    maps = trained - sum(parameter.numel() for parameter in model.module.parameters() if parameter.requires_grad)
    schedule = run.schedule
    about = run.data.about
    needed = held_bytes(model, run.objective, schedule)
    what = "weights, gradients, optimiser"
    if teacher:
        own = {parameter.data_ptr() for parameter in model.module.parameters()}
        needed += sum(
            one.numel() * one.element_size() for one in teacher.module.parameters() if one.data_ptr() not in own
        )
        what += ", teacher"
    if run.layers:  # a split model cannot be called before it is split
        needed //= distributed.size()
        what += " in each process"
    else:
        needed += activation_bytes(run.objective, schedule.length, bf16=run.bf16).of(run.micro_batch)
        what += f", activations of {run.micro_batch} x {schedule.length} tokens"
    also = f" and {millions(maps)} of maps" if maps else ""
    more = ", plus activations" if run.layers else ""
    say(
        f"trains {millions(trained - maps)} of {millions(every)} parameters{also}; about {byte_count(needed)} "
        f"for {what}{more}"
    )
    kind = "examples" if about.kind == "instructions" else "documents"
    if about.sequences:
        passes = schedule.steps * schedule.batch / about.sequences
        what = f"{about.documents} {kind}, {millions(about.tokens)} tokens, {passes:.2f} passes"
    else:
        what = f"{about.source}, read on the way"
    steps = f"{schedule.steps} steps of {schedule.batch} x {schedule.length} tokens"
    say(f"{steps}, {run.micro_batch} at once, {distributed.size()} processes; {what}")
    for line in changes:
        say(f"smaller than the recipe: {line}")
    if about.dropped:
        say(f"{about.dropped} examples have no answer within the cut-off and are left out")
    if not run.isolated:
        say(
            "this model does not keep documents of one row apart: "
            + ("examples are padded" if about.kind == "instructions" else "they see what stands before")
        )


def _evaluator(run: TrainingRun, texts: dict[str, Segments]) -> Callable[[int], dict[str, Any]]:
    """step -> perplexity of every text, each process taking a share of the segments."""

    def evaluate(step: int) -> dict[str, Any]:
        perplexities = _perplexities(run.objective, texts, run.device, bf16=run.bf16, micro_batch=run.micro_batch)
        for name, item in perplexities.items():
            say(f"step {step}: perplexity {name} {item['value']:.3f}")
        return {"eval": perplexities} if perplexities else {}

    return evaluate


def measure_written(
    module: nn.Module, *, texts: dict[str, Segments], device: str, bf16: bool, micro_batch: int
) -> dict[str, Any]:
    """Perplexities of a model that this process alone has, as its files give it."""
    perplexities = _perplexities(Objective(module), texts, device, bf16=bf16, micro_batch=micro_batch, alone=True)
    for name, item in perplexities.items():
        say(f"written: perplexity {name} {item['value']:.3f}")
    return {"eval": perplexities} if perplexities else {}


@torch.no_grad()
def _perplexities(
    objective: Objective, texts: dict[str, Segments], device: str, *, bf16: bool, micro_batch: int, alone: bool = False
) -> dict[str, dict[str, Any]]:
    """Text -> nll, value (perplexity) and tokens; each process takes a share of the segments unless it is ``alone``."""
    perplexities: dict[str, dict[str, Any]] = {}
    rank, size = (0, 1) if alone else (distributed.rank(), distributed.size())
    objective.eval()
    for name, segments in texts.items():
        total, count = torch.zeros(2, dtype=torch.float64)
        mine = segments.tokens[rank::size].split(micro_batch)
        for number in range(
            len(mine) if alone else max(distributed.all_gather(len(mine)))
        ):  # a split model must be called equally often by all
            rows = mine[number] if number < len(mine) else segments.tokens[:1]
            loss_mask = torch.full_like(rows, number < len(mine), dtype=torch.bool)
            with torch.autocast(torch.device(device).type, torch.bfloat16, enabled=bf16):
                total += objective(rows.to(device), None, loss_mask.to(device))[0].double().cpu()
            count += loss_mask[:, 1:].sum()
        nll = float(total if alone else distributed.all_sum(total)) / float(
            count if alone else distributed.all_sum(count)
        )
        perplexities[name] = {"nll": nll, "value": perplexity_of(nll), "tokens": segments.tokens[:, 1:].numel()}
    return perplexities
