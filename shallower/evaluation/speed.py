"""Speed by a stated protocol: prefill and decode apart, exact output length, models in turns so that drift cancels.

A run is one prefill and as many single steps as make exactly ``new`` tokens per row (the prefill makes the first; the
token with the largest logit is fed back, the end token means nothing). Runs of two models alternate, A B A B, and
their speed-up is the median of the ratios of neighbouring runs.
"""

import os
import re
import time
import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from ..anatomy.decoding import Decoder
from ..anatomy.loading import one_line
from ..anatomy.model import RESIDENT_SHARE, Model
from ..anatomy.quantised import refuse
from ..anatomy.stack import dry_tokens
from ..artifacts import Analytic, FailedRow, SpeedRow, SpeedSettings, Speedup, Spread
from ..errors import UserError, argument
from ..runtime.memory import Peak, total_memory
from ..runtime.progress import Meter, meter, say
from ..settings.speed import Grid
from .analytic import analytic, bandwidth, synchronize

LEAST = 3  # runs that are kept of each setting, however little time there is
PHASES_TIMED = ("prefill", "decode", "latency")


@dataclass(frozen=True)
class TimedRun:
    """Seconds of the prefill, of one step and of the whole; bytes at the peak and, on average, in the cache."""

    prefill: float
    decode: float
    latency: float
    memory: int
    cache: float


def check_resident(models: dict[str, Model]) -> None:
    """Raise a UserError unless the weights of all models fit into memory together and are plain; loads nothing."""
    for model in models.values():
        why = "which bytes of packed weights a step reads, and its products, are not seen: bench the unquantised model"
        refuse(model.checkpoint.source, model.checkpoint.quantised, why)
        if model.layered:
            raise UserError(
                f"{model.checkpoint.source} has one layer in memory: its speed would be the disk's; try "
                f"{argument('dtype', 'bf16')}"
            )
    sizes = {}
    for model in models.values():
        width = (model.dtype or model.checkpoint.config.dtype or torch.float32).itemsize
        sizes[model.device] = sizes.get(model.device, 0) + model.record.parameters * width
    for device, size in sizes.items():
        if size > RESIDENT_SHARE * total_memory(device):
            what = f"{size / 1e9:.1f} GB of weights do not fit {total_memory(device) / 1e9:.1f} GB of memory together"
            raise UserError(f"{what}: measure the models one by one, without {argument('against')}")


def measure(models: dict[str, Model], grid: Grid) -> dict[str, Any]:
    """Settings, rows, speed-ups, analytic figures and bandwidth as in the record ``Speed``.

    ``settings.load`` is the machine's load (processes that want a core, mean of a minute) before the first run.

    Args:
        models: ``model``, and ``against`` where there is one; they take turns in this order.
    Raises:
        UserError: a model cannot decode so, or yields NaN.
    """
    record = SpeedSettings(**grid.as_record(), load=os.getloadavg()[0])
    figures = {name: _figures(model) for name, model in models.items()}
    speed = bandwidth(models["model"].device)
    rows = []
    speedups = []
    settings = grid.settings
    deadline = time.monotonic() + (grid.seconds or float("inf"))
    spent: set[tuple[str, int, int]] = set()  # (model, prompt, new) that ran out of memory at a smaller batch
    each = (grid.warmup + grid.repeats) * len(models)
    with meter("speed", each * len(settings)) as done:
        for index, (batch, prompt, new) in enumerate(settings):
            lanes = {
                name: Lane(name, models, grid, (batch, prompt, new), figures[name])
                for name in models
                if (name, prompt, new) not in spent
            }
            until = time.monotonic() + (deadline - time.monotonic()) / (len(settings) - index)
            take_turns(lanes, grid, until, done)
            done.add(each * (index + 1) - done.done)
            rows += [lane.row(speed) for lane in lanes.values()]
            spent |= {(name, prompt, new) for name, lane in lanes.items() if lane.full}
            if len(lanes) == 2 and not any(lane.full for lane in lanes.values()):
                speedups.append(_speedup(*(lanes[name] for name in ("model", "against"))))
    return {"settings": record, "analytic": figures, "bandwidth": speed, "rows": rows, "speedups": speedups}


def _figures(model: Model) -> Analytic:
    try:
        return analytic(model)
    except UserError:
        raise
    except Exception as error:  # models and their caches fail in many ways
        what = f"{model.checkpoint.source} cannot decode with its cache ({type(error).__name__}: {one_line(error)})"
        raise UserError(f"{what}; bench measures cached decoding only") from error


def take_turns(lanes: dict[str, "Lane"], grid: Grid, until: float, done: Meter) -> None:
    """Run the lanes one after the other, again and again: fewer times where ``until`` has passed."""
    for turn in range(grid.warmup + grid.repeats):
        if turn >= grid.warmup + min(LEAST, grid.repeats) and time.monotonic() > until:
            return
        for name, lane in lanes.items():
            if not lane.full:
                lane.run(
                    kept=turn >= grid.warmup,
                    beside=sum(other.decoder.cached_bytes for other in lanes.values() if other is not lane),
                )
            batch, prompt, new = lane.setting
            done.add(1, f"{name}, batch {batch}, {prompt} + {new} tokens")


class Lane:
    """The runs of one model in one setting."""

    def __init__(
        self, name: str, models: dict[str, Model], grid: Grid, setting: tuple[int, int, int], figures: Analytic
    ):
        self.name = name
        self.model = models[name]
        self.grid = grid
        self.setting = setting
        self.figures = figures
        self.runs: list[TimedRun] = []
        self.others = sum(
            _weight_bytes(model)
            for other, model in models.items()
            if other != name and model.device == self.model.device
        )
        batch, prompt, new = setting
        cached = batch * (figures.state_bytes + figures.kv_bytes_per_token * (prompt + new))
        self.full = self.others + figures.weight_bytes + cached > total_memory(
            self.model.device
        )  # a CPU would kill, not raise
        if grid.compiled:
            torch.compiler.reset()  # graphs of other batches count towards dynamo's limit
        room = prompt + new if grid.cache == "static" else None
        self.decoder = Decoder(self.model.module, room=room, compiled=grid.compiled)
        self.vocabulary = min(model.vocabulary for model in models.values())

    def run(self, *, kept: bool, beside: int) -> None:
        """One more run; out of memory, the lane is full.

        Args:
            kept: it counts.
            beside: bytes that the caches of other lanes hold meanwhile.
        Raises:
            UserError: the model cannot decode so, or yields NaN.
        """
        try:
            with Peak(self.model.device) as peak, warnings.catch_warnings():
                # products in fp32 are meant to be exact
                warnings.filterwarnings("ignore", "TensorFloat32", UserWarning)
                prefill, step, latency, cache = self._run()
            if kept:
                self.runs.append(TimedRun(prefill, step, latency, peak.bytes - self.others - beside, cache))
            self.decoder.rest()
            return
        except UserError:
            raise
        except Exception as error:  # models and their caches fail in many ways
            self.full = is_out_of_memory(error)
            if not self.full:
                raise UserError(self._refusal(error)) from error
        self.decoder = Decoder(self.model.module)  # lets go of the cache
        if self.model.device.startswith("cuda"):
            torch.cuda.empty_cache()
        say(f"{self.name}: out of memory at batch {self.setting[0]}")

    @torch.no_grad()
    def _run(self) -> tuple[float, float, float, float]:
        """(seconds of the prefill, of a step, of the whole, bytes of the cache on average)."""
        device = self.model.device
        batch, prompt, new = self.setting
        tokens = prompts(self.vocabulary, batch, prompt, repeated=self.grid.repeated).to(device)
        synchronize(device)
        started = time.perf_counter()
        token = self.decoder.prefill(tokens).argmax(-1, keepdim=True)
        synchronize(device)
        prefill = time.perf_counter() - started
        before = self.decoder.cached_bytes
        started = time.perf_counter()
        for _ in range(new - 1):
            logits = self.decoder.step(token)
            token = logits.argmax(-1, keepdim=True)
        synchronize(device)
        decode = time.perf_counter() - started
        if logits.isnan().any():
            raise UserError(
                f"{self.model.checkpoint.source} yields NaN while decoding: are its weights whole, and does "
                "the dtype suffice?"
            )
        return prefill, decode / (new - 1), prefill + decode, (before + self.decoder.cached_bytes) / 2

    def _refusal(self, error: Exception) -> str:
        batch, prompt, new = self.setting
        what = (
            f"{self.model.checkpoint.source} cannot decode {batch} x ({prompt} + {new}) tokens with a "
            f"{self.grid.cache} cache"
        )
        lower = (
            f"lower {argument('prompts')} or {argument('new')}"
            if isinstance(error, IndexError)
            else f"try {argument('batches', 1)}, or {argument('cache', 'dynamic')} without {argument('compiled', True)}"
        )
        return f"{what} ({type(error).__name__}: {one_line(error)}); {lower}"

    def row(self, speed: float) -> SpeedRow | FailedRow:
        """The row of the record."""
        batch, prompt, new = self.setting
        place = {"of": self.name, "batch": batch, "prompt": prompt, "new": new}
        if self.full:
            return FailedRow(**place, error="out of memory")
        timed = {key: summary(self.seconds(key)) for key in PHASES_TIMED}
        return SpeedRow(
            **place,
            **timed,
            tokens_per_second=batch * new / timed["latency"].of(self.grid.typical),
            peak_memory_bytes=max(run.memory for run in self.runs),
            runs=len(self.runs),
            bound=self.step_bytes / timed["decode"].of(self.grid.typical) / speed,
        )

    def seconds(self, key: str) -> list[float]:
        """One of TIMES of every kept run."""
        return [getattr(run, key) for run in self.runs]

    @property
    def step_bytes(self) -> float:
        """Bytes that a step has to read: the weights, as a single row uses them, and the cache of all rows."""
        return self.figures.read_bytes_per_token + sum(run.cache for run in self.runs) / len(self.runs)


def ratios(seconds: list[float], against: list[float]) -> list[float]:
    """against / seconds of neighbouring runs, A1 B1, B1 A2, A2 B2 ….

    What drifts steadily cancels between a pair and the next.
    """
    pairs = [*zip(seconds, against, strict=True), *zip(seconds[1:], against[:-1], strict=True)]
    return [base / own for own, base in pairs]


def _speedup(model: Lane, against: Lane) -> Speedup:
    ratio_by_phase = {key: float(np.median(ratios(model.seconds(key), against.seconds(key)))) for key in PHASES_TIMED}
    batch, prompt, new = model.setting
    return Speedup(batch, prompt, new, **ratio_by_phase, ideal=against.step_bytes / model.step_bytes)


def summary(values: list[float]) -> Spread:
    """Median, 10th and 90th percentile, and mean."""
    low, middle, high = np.percentile(values, (10, 50, 90))
    return Spread(float(middle), float(low), float(high), float(np.mean(values)))


def prompts(vocabulary: int, batch: int, length: int, *, repeated: bool) -> Int[Tensor, "batch position"]:
    """Fixed pseudo-random token ids; the rows are one prompt where it is repeated, else they differ."""
    return dry_tokens(vocabulary, 1, length).repeat(batch, 1) if repeated else dry_tokens(vocabulary, batch, length)


def is_out_of_memory(error: Exception) -> bool:
    """CUDA says so by type, the CPU's allocator by its message, a compiler by what its own error came from."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, (torch.OutOfMemoryError, MemoryError)) or re.search(
            "can't allocate memory|out of memory", str(cause)
        ):
            return True
        cause = cause.__cause__ or cause.__context__
    return False


def _weight_bytes(model: Model) -> int:
    return sum(parameter.nbytes for parameter in model.module.parameters())
