"""How much goes, what is protected and how long it may take: running a selection until the amount is met."""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from types import ModuleType

import torch
from torch import Tensor

from . import ranks
from .artifacts import CalibrationRecord, ModelRecord, Plan
from .errors import UserError
from .selection import Choice, Problem, greedy


@dataclass(frozen=True)
class Amount:
    """How much goes; give one.

    Attributes:
        remove: a number of layers.
        ratio: a share of the parameters, to the nearest number of layers.
        target_params: parameters that may be left.
        target_memory: bytes that the weights may take.
        target_speedup: how many times faster decoding should be.
        max_ppl_increase: share by which the perplexity of evaluation texts may grow: as many layers as stay within it.
        said: how a settled target was given, for messages.
    """

    remove: int | None = None
    ratio: float | None = None
    target_params: float | int | None = None
    target_memory: int | None = None
    target_speedup: float | None = None
    max_ppl_increase: float | None = None
    said: str = ""

    def __post_init__(self) -> None:
        targets = (self.target_params, self.target_memory, self.target_speedup, self.max_ppl_increase)
        given = [value for value in (self.remove, self.ratio, *targets) if value is not None]
        if len(given) != 1:
            raise UserError(
                "say how much to remove: one of --remove N, --ratio R, --target-params P, --target-memory SIZE, --target-speedup X "
                "and --max-ppl-increase SHARE"
            )
        if self.target_speedup is not None and not 1 < self.target_speedup < math.inf:
            raise UserError(f"--target-speedup {self.target_speedup:g}: how many times faster, more than 1 (1.25 is a quarter faster)")
        if self.max_ppl_increase is not None and not 0 < self.max_ppl_increase < math.inf:
            raise UserError(f"--max-ppl-increase {self.max_ppl_increase:g}: a share above 0, such as 0.2 or 20%")
        if self.remove is not None and self.remove < 1:
            raise UserError(f"--remove {self.remove}: at least 1 layer")
        if self.ratio is not None and not 0 < self.ratio < 1:
            raise UserError(f"--ratio {self.ratio:g}: a share of the parameters between 0 and 1 (20 % is 0.2)")
        if self.target_params is not None and not self.target_params > 0:
            raise UserError(f"{self.name}: a number of parameters such as 5.5B")

    @property
    def name(self) -> str:
        """How a target was given."""
        return self.said or f"--target-params {self.target_params:g}"

    def settled(self, record: ModelRecord, dtype: str) -> tuple["Amount", str]:
        """(the amount with a target of memory or speed as one of parameters, what that rests on)."""
        if self.target_memory is not None:
            each = torch.empty(0, dtype=getattr(torch, dtype)).element_size()
            said = f"--target-memory {self.target_memory / 1e9:g}GB"
            assumed = f"weights in {dtype}, {each} bytes each; the cache and activations come on top"
            return Amount(target_params=self.target_memory / each, said=said), assumed
        if self.target_speedup is not None:
            read = record.parameters - record.lookup_parameters
            wanted = read / self.target_speedup + record.lookup_parameters
            assumed = (
                "the time of decoding one sequence is that of reading every weight once per token (memory-bound, short context): "
                f"{read} parameters read before, at most {wanted - record.lookup_parameters:.0f} after; measure it with shallower bench"
            )
            return Amount(target_params=wanted, said=f"--target-speedup {self.target_speedup:g}"), assumed
        return self, ""


@dataclass(frozen=True)
class Choosing:
    """How layers are chosen: the method of selection and its settings, protection (None: auto), the schedule, and the time.

    ``budget`` is in seconds, for a selection that searches: counted from its first loss on, greedy's part included.
    """

    selection: str = "lowest"
    settings: dict[str, str] = field(default_factory=dict)
    keep_first: int | None = None
    keep_last: int | None = None
    iterative: bool = False
    budget: float | None = None

    def __post_init__(self) -> None:
        if self.budget is not None and not 0 <= self.budget < math.inf:
            raise UserError(f"--budget {self.budget:g}: a number of seconds, 0 or more")


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
    return replace(plan, removed=short.removed, kept=short.kept, order=order, params_after=short.params_after, trace=plan.trace[:size])
