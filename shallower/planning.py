"""How much goes, what is protected and how long it may take: running a selection until the amount is met."""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from types import ModuleType

import torch
from torch import Tensor

from . import ranks
from .artifacts import CalibrationRecord, ModelRecord, Plan, Scores
from .errors import UserError
from .selection import Choice, Problem, greedy
from .settings.amount import Amount


def settled_amount(amount: Amount, record: ModelRecord, dtype: str) -> tuple[Amount, str]:
    """(the amount with a target of memory or speed as one of parameters, what that rests on)."""
    if amount.target_memory is not None:
        each = torch.empty(0, dtype=getattr(torch, dtype)).element_size()
        said = f"--target-memory {amount.target_memory / 1e9:g}GB"
        assumed = f"weights in {dtype}, {each} bytes each; the cache and activations come on top"
        return Amount(target_params=amount.target_memory / each, said=said), assumed
    if amount.target_speedup is not None:
        read = record.parameters - record.lookup_parameters
        wanted = read / amount.target_speedup + record.lookup_parameters
        assumed = (
            "the time of decoding one sequence is that of reading every weight once per token (memory-bound, short context): "
            f"{read} parameters read before, at most {wanted - record.lookup_parameters:.0f} after; measure it with shallower bench"
        )
        return Amount(target_params=wanted, said=f"--target-speedup {amount.target_speedup:g}"), assumed
    return amount, ""


def agreement(selection: ModuleType, problem: Problem, choice: Choice, scores: Scores) -> int | None:
    """How many of the chosen layers both halves of the calibration samples choose too, each by itself; None without halves."""
    if len(scores.halves) != 2:
        return None
    windows = scores.halves_windows or (None, None)
    alone = [
        selection.select(replace(problem, amount=len(choice.order), scores=half, windows=spans)).order
        for half, spans in zip(scores.halves, windows, strict=True)
    ]
    return len(set(choice.order).intersection(*alone))


class Stopwatch:
    """Keeps a search within its time, counted from now on; all processes go by the clock of the first.

    Args:
        budget: seconds, or None for no limit.
    """

    def __init__(self, budget: float | None):
        self.budget, self.started, self.pace = budget, time.monotonic(), 0.0

    def timed(self, losses: Callable[..., Tensor]) -> Callable[..., Tensor]:
        """The same losses; the seconds that each variant of the last call took are noted."""

        def call(masks: Tensor, label: str, **options) -> Tensor:
            started = time.monotonic()
            found = losses(masks, label, **options)
            self.pace = (time.monotonic() - started) / len(masks)
            return found

        return call

    def affords(self, variants: int) -> bool:
        """Whether so many variants would end in time, at the pace of the last call."""
        ends = time.monotonic() - self.started + self.pace * variants
        return self.budget is None or ranks.gathered(ends)[0] <= self.budget


def protection(layers: int, selection: ModuleType | None = None, first: int | None = None, last: int | None = None) -> tuple[int, int]:
    """How many layers at each end never go: as given, else the selection's own, else 4 and 2 scaled down below 24 layers.

    Raises:
        UserError: nothing would be left to remove.
    """
    own = getattr(selection, "PROTECT", None)
    scale = min(1.0, layers / 24)
    auto = own or (max(1, round(4 * scale)), max(1, round(2 * scale)))
    first, last = (value if value is not None else usual for value, usual in zip((first, last), auto, strict=True))
    if first < 0 or last < 0:
        raise UserError("--keep-first and --keep-last are numbers of layers, 0 or more")
    if first + last >= layers:
        raise UserError(f"--keep-first {first} and --keep-last {last} protect all {layers} layers; lower them")
    return first, last


def check_amount(amount: Amount, record: ModelRecord, allowed: Sequence[int]) -> int:
    """The number of layers to start with.

    Raises:
        UserError: more than may go, or less than half a layer.
    """
    most = min(len(allowed), record.layers - 1)
    size = _wanted(amount, record, most)
    if size > most:
        raise UserError(
            f"{size} layers cannot go: {record.layers} layers, of which {record.layers - len(allowed)} are protected, "
            f"leave at most {most}; lower the amount, --keep-first or --keep-last"
        )
    return size


def select_amount(selection: ModuleType, problem: Problem, amount: Amount, record: ModelRecord) -> Choice:
    """Run the selection, from greedy's choice where it searches; for a parameter target, with more layers until it is met."""
    size = check_amount(amount, record, problem.allowed)
    while True:
        sized = replace(problem, amount=size)
        choice = selection.select(replace(sized, start=greedy.select(sized)) if searches(selection) else sized)
        left = record.parameters - sum(record.layer_parameters[index] for index in choice.order)
        if amount.target_params is None or left <= amount.target_params:
            return choice
        size += 1
        if size > min(len(problem.allowed), record.layers - 1):
            raise UserError(
                f"{amount.name} cannot be met: without {size - 1} layers "
                f"{left} parameters are left, and no more may go; raise it, or lower --keep-first or --keep-last"
            )


def searches(selection: ModuleType) -> bool:
    """Whether a selection starts from greedy's choice and keeps to a time budget."""
    return getattr(selection, "SEARCHES", False)


def _wanted(amount: Amount, record: ModelRecord, most: int) -> int:
    if amount.remove is not None:
        return amount.remove
    mean = sum(record.layer_parameters) / record.layers
    if amount.ratio is not None:
        size = round(amount.ratio * record.parameters / mean)
        if size == 0:
            share = mean / record.parameters
            raise UserError(f"--ratio {amount.ratio:g} is less than half a layer (one layer is {share:.1%} of the parameters); raise it")
        return size
    if amount.target_params >= record.parameters:
        raise UserError(f"{amount.name}: the model has {record.parameters} parameters already, which meets it; ask for less")
    surplus = record.parameters - amount.target_params
    return min(max(1, math.ceil(surplus / max(record.layer_parameters))), most)


def plan_of(
    record: ModelRecord,
    order: tuple[int, ...],
    selection: str,
    *,
    calibration: CalibrationRecord | None = None,
    trace: Sequence[float] = (),
) -> Plan:
    """The plan that removes these layers, with the parameters counted."""
    removed = sorted(order)
    return Plan(
        removed=removed,
        kept=[index for index in range(record.layers) if index not in order],
        order=list(order),
        params_before=record.parameters,
        params_after=record.parameters - sum(record.layer_parameters[index] for index in removed),
        bytes_before=record.weight_bytes,
        bytes_after=record.weight_bytes - sum(record.layer_bytes[index] for index in removed) if record.layer_bytes else 0,
        selection=selection,
        criterion=None,
        settings={},
        keep_first=0,
        keep_last=0,
        iterative=False,
        model=record,
        calibration=calibration,
        trace=list(trace),
    )


def shortened(plan: Plan, size: int) -> Plan:
    """The beginning of a plan whose selection is nested: only the first ``size`` of its layers go."""
    order = plan.order[:size]
    short = plan_of(plan.model, tuple(order), plan.selection)
    fields = {name: getattr(short, name) for name in ("removed", "kept", "params_after", "bytes_after", "agreement")}
    return replace(plan, order=order, trace=plan.trace[:size], **fields)
