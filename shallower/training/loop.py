"""Training loop: batches in a fixed order, gradients summed to the global batch, checkpoints, figures, a watch
on the loss.

A step's loss is the mean over all tokens of the global batch that bear one, whatever micro-batches and processes they
fall into, so that one process and many follow the same curve. Weights and the optimiser's state are fp32; in bf16 only
the products are computed. The step alone decides data and dropout.
"""

import math
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch
from accelerate import Accelerator, DistributedDataParallelKwargs
from accelerate.state import AcceleratorState
from accelerate.tracking import LOGGER_TYPE_TO_CLASS, get_available_trackers
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from ..anatomy.kernels import fast_products
from ..artifacts import Recipe, plain
from ..data.packing import Packed, Rows
from ..data.streams import Stream
from ..errors import Stopped, UserError, argument
from ..runtime import distributed
from ..runtime.progress import Meter, meter, say
from ..runtime.signals import patient, stop_asked
from .checkpoints import Checkpointer, put_state, state_of
from .lion import Lion
from .loss_guard import LossGuard
from .objective import Objective
from .schedule import Schedule
from .sharding import shard, whole

EARLY = 60  # seconds after which the first checkpoint is due
MOST = 0.95  # of all tokens bear a loss in plain text; where fewer do, both rates are shown
FIRST_STEPS = 3  # after these the time that the rest takes is said


@dataclass
class TrainingRun:
    """What is trained on what, and what happens on the way.

    Attributes:
        objective: the loss of a module in fp32, with ``requires_grad`` on what is trained.
        isolated: positions are given to the model, so that documents in a row are kept apart.
        micro_batch: sequences per forward pass and process.
        bf16: products in bf16.
        checkpoint_steps, checkpoint_minutes: when a checkpoint is due.
        evaluate: step -> further figures, every ``evaluate_steps`` steps and at both ends.
        state: what an optimiser has kept in an earlier training, to begin with.
        layers: the modules to split among the processes; empty: every process holds the whole model.
        keep_state: tell what the optimiser keeps at the end.
        tracker: where the figures go beside ``metrics.jsonl``: a name that accelerate knows, and a folder for what
            lies in files.
    """

    objective: Objective
    data: Packed | Stream
    schedule: Schedule
    checkpointer: Checkpointer
    device: str
    isolated: bool
    micro_batch: int
    seed: int
    bf16: bool = False
    checkpoint_steps: int | None = None
    checkpoint_minutes: float = 10.0
    evaluate: Callable[[int], dict[str, Any]] = field(default=lambda step: {})
    evaluate_steps: int = 0
    state: dict[str, Tensor] = field(default_factory=dict)
    layers: tuple[nn.Module, ...] = ()
    keep_state: bool = False
    tracker: tuple[str, Path] | None = None

    @property
    def trained(self) -> dict[str, nn.Parameter]:
        """All that is trained, by name: the model's, and what the objective learns along."""
        return {name: parameter for name, parameter in self.objective.named_parameters() if parameter.requires_grad}


class StepMetrics(NamedTuple):
    """Metrics of one step: the means of the objective's terms, the tokens that bore a loss, and the gradient's norm
    before it was clipped.
    """

    terms: list[float]  # the loss first
    loss_tokens: int
    norm: float


@dataclass(frozen=True)
class Outcome:
    """What came of it: the rows of ``metrics.jsonl``, seconds (of earlier processes too), what the optimiser keeps at
    the end if that
    is wanted, and, in the first process, the trained weights by name if they had been split."""

    rows: list[dict[str, Any]]
    seconds: float
    state: dict[str, Tensor] | None
    weights: dict[str, Tensor] | None


def train(run: TrainingRun) -> Outcome:
    """Train to the end of the schedule, from the last checkpoint on where there is one.

    Raises:
        UserError: the loss is not finite, or diverges; the last good checkpoint is kept.
    """
    accelerator = _accelerator(run)
    if run.layers:
        shard(run.objective, run.layers, run.device)
    trained = run.trained
    optimizer = _optimizer(list(trained.values()), run.schedule.recipe)
    put_state(run.state, trained, optimizer)
    step, before, place = run.checkpointer.restore(trained, optimizer)
    run.data.seek(place)
    if not run.objective.chunked:
        say("the model has no plain linear head behind its decoder: its logits are held whole")
    prepared, optimizer = _prepare(run, accelerator, optimizer)
    started = time.monotonic()
    guard = LossGuard(run.checkpointer)
    saved = (step, started)
    progress = meter("training", run.schedule.steps, step)
    with fast_products(run.objective), progress as shown, _track_rows(run, accelerator) as note, patient():
        if not step:
            note({"step": 0, "tokens": 0, **run.evaluate(0)})
        while step < run.schedule.steps:
            begun = time.monotonic()
            try:
                metrics = _step(run, accelerator, prepared, optimizer, list(trained.values()), step)
            except Stopped:  # in the middle of a step, of which nothing has reached the weights
                optimizer.zero_grad()
                _keep(run, step, before + begun - started, (trained, optimizer), saved)
                raise
            guard.check(step + 1, metrics.terms[0], metrics.norm)
            step += 1
            now = time.monotonic()
            row = _row(run, step, metrics, now - begun, before + now - started)
            if step == run.schedule.steps or (run.evaluate_steps and step % run.evaluate_steps == 0):
                row |= run.evaluate(step)
            note(row)
            _tell(shown, row, step)
            asked = max(distributed.all_gather(stop_asked()))
            if step < run.schedule.steps and (asked or _due(run, step, saved)):
                _keep(run, step, row["seconds"], (trained, optimizer), saved)
                saved = (step, time.monotonic())
            if asked and step < run.schedule.steps:
                raise Stopped(asked)
    state = state_of(trained, _inner(optimizer)) if run.keep_state else None
    weights = {name: whole(parameter.detach()) for name, parameter in trained.items()} if run.layers else None
    return Outcome(run.checkpointer.rows(), before + time.monotonic() - started, state, weights)


def _prepare(run: TrainingRun, accelerator: Accelerator, optimizer) -> tuple[nn.Module, Any]:
    """Objective and optimiser as accelerate wraps them; those of a split model stay as they are."""
    if run.layers:
        return run.objective, optimizer
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # torch 2.13 renames broadcast_buffers, 2.11 knows no other name
        return accelerator.prepare(run.objective, optimizer)


def _row(run: TrainingRun, step: int, metrics: StepMetrics, took: float, seconds: float) -> dict[str, Any]:
    """Row of ``metrics.jsonl`` for a step that took ``took`` seconds, ``seconds`` after the run began."""
    batch_tokens = run.schedule.batch * run.schedule.length
    row = {
        "step": step,
        "tokens": step * batch_tokens,
        "loss": metrics.terms[0],
        "lr": run.schedule.lr(step - 1),
        "grad_norm": metrics.norm,
        "tokens_per_second": metrics.loss_tokens / took,
        "seconds": seconds,
        "all_tokens_per_second": batch_tokens / took,
    }
    if len(metrics.terms) > 1:
        row["terms"] = dict(zip(run.objective.terms[1:], metrics.terms[1:], strict=True))
    return row


@contextmanager
def _track_rows(run: TrainingRun, accelerator: Accelerator) -> Iterator[Callable[[dict[str, Any]], None]]:
    """Where a row of figures goes: ``metrics.jsonl``, and the tracker if there is one."""
    if run.tracker:
        accelerator.init_trackers(
            "shallower", config=_flat({"recipe": vars(run.schedule.recipe), "data": plain(run.data.about)})
        )

    def note(row: dict[str, Any]) -> None:
        run.checkpointer.note(row)
        if run.tracker:
            accelerator.log(_flat(row), step=row["step"])

    try:
        yield note
    finally:
        if run.tracker:
            accelerator.end_training()


def tracker_of(name: str | None, out: Path) -> tuple[str, Path] | None:
    """The tracker of that name; what it keeps in files lies beside the output.

    Raises:
        UserError: accelerate does not know it, or its package is missing.
    """
    if name is None:
        return None
    if name not in LOGGER_TYPE_TO_CLASS:
        raise UserError(f"known are {', '.join(sorted(LOGGER_TYPE_TO_CLASS))}", track=name)
    if name not in [str(one) for one in get_available_trackers()]:
        raise UserError(f"{argument('track', name)} needs its package; pip install {name}")
    return name, out.with_name(f"{out.name}-logs")


def _flat(row: dict[str, Any], before: str = "") -> dict[str, Any]:
    """Names joined by slashes -> numbers and texts."""
    figures = {}
    for name, value in row.items():
        if isinstance(value, dict):
            figures |= _flat(value, f"{before}{name}/")
        else:
            figures[before + name] = value if isinstance(value, int | float | str) else str(value)
    return figures


def _step(
    run: TrainingRun,
    accelerator: Accelerator,
    objective: nn.Module,
    optimizer,
    parameters: list[nn.Parameter],
    step: int,
) -> StepMetrics:
    """Metrics of a step, which is made here.

    Where a GPU has no room for the micro-batch, it is halved from here on and the step begun again.

    Raises:
        UserError: there is no room for one sequence, or for a micro-batch of one of several processes.
    """
    for group in optimizer.param_groups:
        group["lr"] = run.schedule.lr(step)
    mine = Rows(*(part[distributed.rank() :: distributed.size()] for part in run.data.rows(step, run.schedule.batch)))
    loss_tokens = int(distributed.all_sum(mine.loss_mask.sum()))
    while True:
        try:
            sums = _gradients(run, accelerator, objective, mine, (step, loss_tokens))
            break
        except torch.OutOfMemoryError as error:
            if (
                run.micro_batch == 1 or distributed.size() > 1
            ):  # processes would have to halve together, in the middle of a step
                raise UserError(
                    f"out of memory in step {step + 1} with {argument('micro_batch', run.micro_batch)}: a smaller one "
                    f"or {argument('gradient_checkpointing', True)} may fit;"
                    f" with {argument('resume', True)} it goes on from the last checkpoint, if there is one"
                ) from error
            run.micro_batch //= 2
            say(f"out of memory: from now on {run.micro_batch} sequences at once")
            optimizer.zero_grad()
        torch.cuda.empty_cache()  # here, where the traceback no longer holds the forward's tensors
    norm = accelerator.clip_grad_norm_(parameters, run.schedule.recipe.clip)
    norm = float(norm.full_tensor() if isinstance(norm, DTensor) else norm)
    terms = (distributed.all_sum(sums.double().cpu()) / loss_tokens).tolist()
    if math.isfinite(terms[0]) and math.isfinite(norm):
        optimizer.step()
    optimizer.zero_grad()
    return StepMetrics(terms, loss_tokens, norm)


def _gradients(
    run: TrainingRun, accelerator: Accelerator, objective: nn.Module, mine: Rows, where: tuple[int, int]
) -> Tensor:
    """Sum the gradients of this process's sequences, and return the sums of the objective's terms."""
    step, loss_tokens = where
    run.objective.train()
    torch.manual_seed(
        ((run.seed * 1_000_003 + step) * 1009 + distributed.rank()) % 2**63
    )  # dropout, by step and process
    total = torch.zeros(len(run.objective.terms), device=run.device)
    count = -(-len(mine.tokens) // run.micro_batch)  # even ones: a small rest would cost nearly as much as a whole one
    pieces = [Rows(*parts) for parts in zip(*(part.tensor_split(count) for part in mine), strict=True)]
    for number, piece in enumerate(pieces):
        last = number == len(pieces) - 1
        if distributed.size() == 1 and (asked := stop_asked()):
            raise Stopped(asked)
        if run.layers:
            objective.set_requires_gradient_sync(last)
        with nullcontext() if last or run.layers else accelerator.no_sync(objective):
            with accelerator.autocast():
                loss, term_sums = objective(*inputs(piece, run.isolated, run.device))
            accelerator.backward(loss * (distributed.size() / loss_tokens))  # processes are averaged
        total += term_sums
    return total


def inputs(rows: Rows, isolated: bool, device: str) -> tuple[Tensor, Tensor | None, Tensor]:
    """What the objective takes of some sequences; positions only where a document begins within a row."""
    restarts = isolated and bool(
        (rows.positions[:, 1:] == 0).any()
    )  # asked before they are on the device, which would be waited for
    if device.startswith("cuda"):
        rows = Rows(*(part.pin_memory() for part in rows))
    tokens, positions, loss_mask = (part.to(device, non_blocking=True) for part in rows)
    return tokens, positions if restarts else None, loss_mask


def _accelerator(run: TrainingRun) -> Accelerator:
    AcceleratorState._reset_state(
        reset_partial_state=True
    )  # an earlier run in this process may have had other settings
    accelerator = Accelerator(
        cpu=not run.device.startswith("cuda"),
        log_with=run.tracker and run.tracker[0],
        project_dir=run.tracker and str(run.tracker[1]),
        device_placement=False,
        mixed_precision="bf16" if run.bf16 else "no",
        kwargs_handlers=[
            DistributedDataParallelKwargs(broadcast_buffers=False, find_unused_parameters=distributed.size() > 1)
        ],
    )
    if accelerator.distributed_type.name not in ("NO", "MULTI_CPU", "MULTI_GPU"):
        kind = accelerator.distributed_type.name
        raise UserError(
            f"{kind} as set up by accelerate is not used here: start it by torchrun, with {argument('shard', True)} to "
            "split the model"
        )
    return accelerator


def _optimizer(trained: list[nn.Parameter], recipe: Recipe) -> torch.optim.Optimizer:
    groups = [
        {"params": [one for one in trained if one.dim() >= 2], "weight_decay": recipe.weight_decay},
        {"params": [one for one in trained if one.dim() < 2], "weight_decay": 0.0},
    ]
    groups = [group for group in groups if group["params"]]
    if recipe.optimizer == "lion":
        return Lion(groups, lr=recipe.lr, betas=recipe.betas)
    if recipe.optimizer == "adamw8bit":
        try:
            from bitsandbytes.optim import AdamW8bit
        except ImportError as error:
            raise UserError(
                "optimizer=adamw8bit needs the package bitsandbytes; pip install 'shallower[8bit]'"
            ) from error
        return AdamW8bit(groups, lr=recipe.lr, betas=recipe.betas)
    return torch.optim.AdamW(groups, lr=recipe.lr, betas=recipe.betas, fused=True)


def _inner(optimizer) -> torch.optim.Optimizer:
    """The optimiser itself; accelerate wraps it."""
    return getattr(optimizer, "optimizer", optimizer)


def _due(run: TrainingRun, step: int, saved: tuple[int, float]) -> bool:
    """Whether a checkpoint is to be written; the first process's clock decides. The first one of all comes early."""
    by_steps = bool(run.checkpoint_steps) and step % run.checkpoint_steps == 0
    wait = 60 * run.checkpoint_minutes if saved[0] else min(EARLY, 60 * run.checkpoint_minutes)
    return bool(distributed.all_gather(by_steps or time.monotonic() - saved[1] >= wait)[0])


def _keep(
    run: TrainingRun, step: int, seconds: float, reached: tuple[dict[str, nn.Parameter], Any], saved: tuple[int, float]
) -> None:
    """A checkpoint of what has been reached after ``step`` steps, unless that is kept already."""
    if step > saved[0]:
        trained, optimizer = reached
        run.checkpointer.keep(step, trained, _inner(optimizer), seconds, run.data.place())


def _tell(shown: Meter, row: dict[str, Any], step: int) -> None:
    rate = row["all_tokens_per_second"]
    loss_rate = row["tokens_per_second"]
    answers = f" ({loss_rate:.0f} of answers)" if loss_rate < MOST * rate else ""
    shown.add(1, f"loss {row['loss']:.3f}, {rate:.0f} tokens/s{answers}, lr {row['lr']:.1e}")
    if step - shown.first == FIRST_STEPS and shown.seconds_left() > 30:
        say(f"about {shown.seconds_left() / 60:.1f} minutes for the rest, by the first {FIRST_STEPS} steps")
