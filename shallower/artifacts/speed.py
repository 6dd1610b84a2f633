"""Speed record: seconds and memory of cached decoding (speed.json)."""

from dataclasses import field
from typing import ClassVar, Literal

from ..runtime.provenance import Provenance
from .model import ModelRecord
from .record import SCHEMA, Count, NonNegative, Positive, Size, TypedRecord, check, either, record

Side = Literal["model", "against"]
Typical = Literal["median", "mean"]


@record
class SpeedSettings(TypedRecord):
    """Grid of what was measured, and how."""

    batches: list[Size] = field(default_factory=list)
    """Batch sizes."""
    prompts: list[Size] = field(default_factory=list)
    """Prompt lengths in tokens."""
    new: list[Size] = field(default_factory=list)
    """Numbers of new tokens."""
    repeats: Count = 0
    """Runs kept of each setting, at most."""
    warmup: Count = 0
    """Runs dropped before them."""
    cache: str = "dynamic"
    """Kind of cache: `dynamic`, or `static` with room for all positions from the start."""
    compiled: bool = False
    """Steps ran through torch.compile."""
    seconds: NonNegative | None = None
    """Limit of time for the whole grid, or null."""
    repeated: bool = False
    """All rows of a batch are the same prompt."""
    typical: Typical = "median"
    """Figure that stands for all runs."""
    load: NonNegative = 0.0
    """Load of the machine before the first run: processes that want a core, mean of a minute."""


@record
class Analytic(TypedRecord):
    """Figures of one decoded token at batch 1, counted rather than measured."""

    parameters: NonNegative
    """Distinct parameters."""
    weight_bytes: NonNegative
    """Bytes of distinct weights as they are in memory."""
    read_bytes_per_token: NonNegative
    """Bytes of weights that a step reads."""
    kv_bytes_per_token: NonNegative
    """Bytes by which the cache grows per token and sequence while no sliding window is full."""
    state_bytes: NonNegative
    """Bytes that the cache holds per sequence besides, such as recurrent states."""
    flops_per_token: NonNegative
    """FLOPs of the products with weights."""


@record
class Spread(TypedRecord):
    """Seconds of several runs."""

    LEFT_OUT: ClassVar[tuple[str, ...]] = ("mean",)

    median: Positive
    """Median."""
    p10: Positive
    """10th percentile."""
    p90: Positive
    """90th percentile."""
    mean: Positive | None = None
    """Mean."""

    def of(self, typical: Typical) -> float:
        """The figure that stands for all runs."""
        return self.mean if typical == "mean" and self.mean else self.median


@record
class SpeedRow(TypedRecord):
    """Measured speed of one model in one setting."""

    of: Side
    """Model that was measured."""
    batch: Size
    """Batch size."""
    prompt: Size
    """Prompt length in tokens."""
    new: Size
    """New tokens."""
    prefill: Spread
    """Seconds of the prefill."""
    decode: Spread
    """Seconds per step."""
    latency: Spread
    """Seconds of the whole."""
    tokens_per_second: Positive
    """New tokens of all rows per second of the whole."""
    peak_memory_bytes: int
    """Peak of the memory in bytes, the other model's weights left out; on a CPU it is the process's."""
    runs: Size
    """Runs that were kept."""
    bound: NonNegative
    """Share of the measured memory bandwidth that decoding reaches."""


@record
class FailedRow(TypedRecord):
    """Setting that could not be measured."""

    of: Side
    """Model that was measured."""
    batch: Size
    """Batch size."""
    prompt: Size
    """Prompt length in tokens."""
    new: Size
    """New tokens."""
    error: str
    """Reason, such as `out of memory`."""


@record
class Speedup(TypedRecord):
    """Speed-ups in one setting, medians of the ratios of neighbouring runs."""

    batch: Size
    """Batch size."""
    prompt: Size
    """Prompt length in tokens."""
    new: Size
    """New tokens."""
    prefill: Positive
    """Times as fast in the prefill."""
    decode: Positive
    """Times as fast per step."""
    latency: Positive
    """Times as fast in the whole."""
    ideal: Positive
    """Ratio of the bytes that a step reads."""


AnyRow = either(SpeedRow, "measured", FailedRow, "error", "failed")


@record
class Speed(TypedRecord):
    """Measured speed of a model and, in turns with it, of the model that it is held against."""

    model: ModelRecord
    """Model that was measured."""
    against: ModelRecord | None
    """Model that it is held against, or null."""
    protocol: str
    """Protocol by name."""
    settings: SpeedSettings
    """Grid of what was measured."""
    device: str
    """Device by name."""
    threads: Size
    """Threads of the processor."""
    analytic: dict[Side, Analytic]
    """Counted figures of either model."""
    rows: list[AnyRow]
    """Measured figures, one row per model, batch, prompt and new tokens."""
    speedups: list[Speedup]
    """Speed-ups per setting, none without a model to hold against."""
    bandwidth: Positive | None
    """Bytes per second that the device reads from its memory."""
    seconds: NonNegative
    """Seconds of measuring, loading left out."""
    dtype: str
    """Type of numbers that was computed in."""
    provenance: Provenance = field(default_factory=Provenance.now)
    """Origin of the file."""
    kind: Literal["speed"] = "speed"
    """Kind of the file."""
    schema: Literal[2] = SCHEMA
    """Version of the form."""

    @check
    def _check(self) -> "Speed":
        sides = {row.of for row in self.rows} | set(self.analytic)
        if self.against is None and ("against" in sides or self.speedups):
            raise ValueError("rows, analytic and speedups speak of a model to hold against, and there is none")
        return self

    @property
    def measured(self) -> list[SpeedRow]:
        """The rows of settings that could be measured."""
        return [row for row in self.rows if isinstance(row, SpeedRow)]

    def __repr__(self) -> str:
        gained = [f"{row.decode:.3f}x at batch {row.batch}" for row in self.speedups]
        return f"<Speed of {self.model!r} on {self.device}: decode {', '.join(gained) or 'measured alone'}>"
