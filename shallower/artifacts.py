"""The small files between the stages: frozen records <-> JSON, each with its kind and schema."""

import dataclasses
import json
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pydantic

from .errors import UserError
from .files import parse_json, write_atomic
from .provenance import Provenance


@dataclass(frozen=True)
class ModelRecord:
    """Which model an artifact speaks of.

    ``original`` maps its layers to those of its first, unpruned ancestor; ``lookup_parameters`` are those of an input
    embedding that is not the head too, of which a token reads one row.
    """

    source: str
    family: str
    layers: int
    parameters: int
    layer_parameters: list[int]
    fingerprint: str
    original: list[int]
    lookup_parameters: int = 0


@dataclass(frozen=True)
class CalibrationRecord:
    """Which tokens were used; ``hash`` covers every token id and the shape."""

    source: str
    samples: int
    length: int
    seed: int | None
    bos: str
    hash: str


@dataclass(frozen=True)
class Scores:
    """One score per layer; the lowest is removed first. ``windows[n-1][s]`` scores removing layers s … s+n-1 at once."""

    criterion: str
    settings: dict[str, Any]
    scores: list[float]
    model: ModelRecord
    calibration: CalibrationRecord | None
    seconds: float
    peak_memory_bytes: int
    dtype: str
    windows: list[list[float]] | None = None
    provenance: Provenance = field(default_factory=Provenance.now)
    kind: str = "scores"
    schema: int = 1


@dataclass(frozen=True)
class Plan:
    """Which layers go and which stay, in MODEL's own numbering.

    ``order`` is the order of removal, ``budget`` in seconds, ``assumed`` what a target of memory, speed or quality rests on.
    """

    removed: list[int]
    kept: list[int]
    order: list[int]
    params_before: int
    params_after: int
    selection: str
    criterion: str | None
    settings: dict[str, Any]
    keep_first: int
    keep_last: int
    iterative: bool
    model: ModelRecord
    calibration: CalibrationRecord | None
    trace: list[float] = field(default_factory=list)
    scores: list[float] | None = None
    budget: float | None = None
    assumed: str = ""
    seconds: float = 0.0
    provenance: Provenance = field(default_factory=Provenance.now)
    kind: str = "plan"
    schema: int = 1

    @property
    def share(self) -> float:
        """The true share of parameters that goes."""
        return 1 - self.params_after / self.params_before

    def original(self) -> list[int]:
        """The kept layers in the numbering of the first, unpruned ancestor."""
        return [self.model.original[index] for index in self.kept]


@dataclass(frozen=True)
class Pruned:
    """``shallower.json`` in a written model: the plan and what was proven about the files.

    ``healing`` tells, in order, how it was trained since; what was proven is then of the files before that.
    """

    plan: Plan
    verified: dict[str, Any]
    original: list[int]
    fingerprint: str
    config_changes: list[str]
    compensation: dict[str, Any] | None = None
    provenance: Provenance = field(default_factory=Provenance.now)
    healing: list[dict[str, Any]] = field(default_factory=list)
    kind: str = "pruned"
    schema: int = 1


@dataclass(frozen=True)
class Compensation:
    """How a pruned model was repaired without training.

    ``loss`` holds the mean NLL in nats on held-out calibration tokens: ``dense``, ``before`` and ``after`` (of the pruned
    model); ``changed`` names the changed weights, none where nothing helped. ``layers`` holds, per retained layer, the
    shift and the relative error of the stream behind it before and after, on the held-out tokens.
    """

    method: str
    settings: dict[str, Any]
    model: ModelRecord
    removed: list[int]
    calibration: CalibrationRecord
    fitted_tokens: int
    held_out_tokens: int
    loss: dict[str, float]
    changed: list[str]
    layers: list[dict[str, Any]]
    notes: dict[str, Any]
    seconds: float
    peak_memory_bytes: int
    dtype: str
    provenance: Provenance = field(default_factory=Provenance.now)
    kind: str = "compensation"
    schema: int = 1


@dataclass(frozen=True)
class Healing:
    """How a model was trained further; ``model`` is the one given, ``fingerprint`` that of the written one.

    ``rows`` holds step, tokens, loss (mean NLL in nats), lr, grad_norm, tokens_per_second (that bore a loss), seconds and now and
    then ``eval``: per text nll, value (perplexity) and tokens; the first is before training. ``terms`` of a distillation are means
    too; ``control`` holds the rows with ``eval`` of the unpruned model, trained the same. ``reloaded`` says how far the logits of
    the reloaded files are from those of the trained model.
    """

    method: str
    settings: dict[str, Any]
    recipe: dict[str, Any]
    model: ModelRecord
    fingerprint: str
    data: dict[str, Any]
    train_tokens: int
    steps: int
    batch_tokens: int
    micro_batch: int
    processes: int
    trained_parameters: int
    rows: list[dict[str, Any]]
    reloaded: dict[str, Any]
    seconds: float
    peak_memory_bytes: int
    dtype: str
    teacher: str | None = None
    control: list[dict[str, Any]] | None = None
    provenance: Provenance = field(default_factory=Provenance.now)
    kind: str = "healing"
    schema: int = 1


@dataclass(frozen=True)
class Evaluation:
    """Measured quality.

    ``perplexity[name]`` holds value, nll, bits_per_byte (None for given tokens), tokens, length, stride, bos, the hash of the
    tokens, and ``parts``: (sum of the NLL, tokens) per segment, to resample from. ``tasks[name]`` holds value, stderr,
    metric, count, version and ``items``: the metric of every item in the order of the data. ``removed`` are layers that were left
    out virtually.
    """

    model: ModelRecord
    perplexity: dict[str, dict[str, Any]]
    tasks: dict[str, dict[str, Any]] = field(default_factory=dict)
    removed: list[int] = field(default_factory=list)
    protocol: str = ""
    seconds: float = 0.0
    dtype: str = ""
    provenance: Provenance = field(default_factory=Provenance.now)
    kind: str = "evaluation"
    schema: int = 1


@dataclass(frozen=True)
class Speed:
    """Measured speed of MODEL and, interleaved with it, of the model that it is held against.

    ``analytic`` and ``rows`` speak of ``model`` and ``against``. A row holds ``of``, batch, prompt, new, and in seconds
    ``prefill``, ``decode`` (per step) and ``latency`` (of the whole), each as median, p10 and p90; tokens_per_second,
    peak_memory_bytes, runs, and ``bound``: the share of the measured memory bandwidth that decoding reaches. ``analytic``
    holds parameters, weight_bytes, read_bytes_per_token, kv_bytes_per_token and flops_per_token. ``speedups`` holds, per
    setting, the medians of the ratios of neighbouring runs (prefill, decode, latency) and the ``ideal`` ratio of bytes read.
    """

    model: ModelRecord
    against: ModelRecord | None
    protocol: str
    settings: dict[str, Any]
    device: str
    threads: int
    analytic: dict[str, dict[str, float]]
    rows: list[dict[str, Any]]
    speedups: list[dict[str, Any]]
    bandwidth: float | None
    seconds: float
    dtype: str
    provenance: Provenance = field(default_factory=Provenance.now)
    kind: str = "speed"
    schema: int = 1


@dataclass(frozen=True)
class Sweep:
    """Quality against layers removed; the first row is the model as it is, ``order`` that of the largest removal.

    A row holds removed (a number), layers, parameters and perplexity as in an evaluation, without ``parts``.
    """

    model: ModelRecord
    order: list[int]
    selection: str
    criterion: str | None
    settings: dict[str, Any]
    calibration: CalibrationRecord | None
    rows: list[dict[str, Any]]
    seconds: float
    dtype: str
    provenance: Provenance = field(default_factory=Provenance.now)
    kind: str = "sweep"
    schema: int = 1


@dataclass(frozen=True)
class Comparison:
    """Models side by side, the first is the base.

    A row holds name, source, fingerprint, removed (left out virtually), how (it was made), layers, parameters and
    ``figures``: column -> value, low and high (95 % interval), delta to the base with its own delta_low and delta_high where
    items could be resampled in pairs, ``effect`` (whether deltas are a ratio or a difference), ``clear`` (the interval of
    the delta leaves out that there is none), ``better`` (lower or higher) and ``best``. What is not known is None. Columns are
    layers, parameters, "perplexity TEXT", perplexity_ratio (the mean over texts), "bits_per_byte TEXT", "task TASK",
    task_mean, decode_ms, prefill_ms, tokens_per_second, peak_memory_bytes and weight_bytes; figures that may not be held
    against the others are left out, and ``notes`` say so.
    """

    base: str
    columns: list[str]
    rows: list[dict[str, Any]]
    notes: list[str]
    provenance: Provenance = field(default_factory=Provenance.now)
    kind: str = "comparison"
    schema: int = 1


@dataclass(frozen=True)
class Inspection:
    """What a model is: where its stack lies, what each layer holds, and which single layers may go."""

    model: ModelRecord
    architecture: str
    stack: str
    dtype: str
    tied_embeddings: bool
    layer_kinds: list[str]
    removable: list[int]
    refusals: dict[str, str]
    provenance: Provenance = field(default_factory=Provenance.now)
    kind: str = "inspection"
    schema: int = 1


RECORDS = {
    "scores": Scores,
    "plan": Plan,
    "pruned": Pruned,
    "compensation": Compensation,
    "healing": Healing,
    "evaluation": Evaluation,
    "speed": Speed,
    "sweep": Sweep,
    "comparison": Comparison,
    "inspection": Inspection,
}
Record = Scores | Plan | Pruned | Compensation | Healing | Evaluation | Speed | Sweep | Comparison | Inspection


def dumps(record: Record) -> str:
    """JSON text of a record, keys in a fixed order: kind and schema first. Numbers that are not finite are refused."""
    content = dataclasses.asdict(record)
    ordered = {"kind": content.pop("kind"), "schema": content.pop("schema"), **content}
    try:
        return json.dumps(ordered, indent=2, allow_nan=False) + "\n"
    except ValueError as error:
        raise UserError(f"the {record.kind} hold a number that is not finite: does the model yield NaN?") from error


def save(record: Record, path: str | Path) -> Path:
    """Write a record atomically; parent folders are made."""
    return write_atomic(path, dumps(record))


def load(path: str | Path, kind: str) -> Any:
    """Read a record of the wanted kind.

    Raises:
        UserError: not a file, not JSON, another kind, a newer schema, or a field that does not fit.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"no {kind} file at {path}: give the file that the stage before wrote")
    content = parse_json(path.read_bytes(), str(path))
    return read(content, kind, str(path))


def read(content: Any, kind: str, where: str) -> Any:
    """A record of the wanted kind from parsed JSON; errors as in ``load``."""
    given = content.get("kind") if isinstance(content, dict) else None
    if given != kind:
        raise UserError(f"{where} is a {given or 'file without a kind'}; expected a {kind} file")
    if content.get("schema") != 1:
        raise UserError(f"{where} has schema {content.get('schema')}; this version of shallower reads schema 1")
    try:
        record = pydantic.TypeAdapter(RECORDS[kind]).validate_python(content)
    except pydantic.ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"]))
        raise UserError(f"{where} is not a valid {kind} file: {place}: {first['msg'].lower()}") from error
    wrong = _wrong_model(model) if (model := model_of(record)) else None
    if not wrong and isinstance(record, Plan):
        wrong = _wrong_plan(record)
    if not wrong and isinstance(record, Scores):
        wrong = _wrong_scores(record)
    if wrong:
        raise UserError(f"{where} is not a valid {kind} file: {wrong}")
    return record


def model_of(record: Record) -> ModelRecord | None:
    """The model that an artifact speaks of; the unpruned one where it is about a pruning; None for a comparison."""
    if isinstance(record, Pruned):
        return record.plan.model
    return getattr(record, "model", None)


def _wrong_model(model: ModelRecord) -> str | None:
    if not len(model.layer_parameters) == len(model.original) == model.layers > 0:
        return f"the model's lists do not have {model.layers} entries"
    if min(model.layer_parameters) < 0 or not 0 < sum(model.layer_parameters) <= model.parameters:
        return "the model's parameter counts do not add up"
    return None


def _wrong_plan(plan: Plan) -> str | None:
    if sorted(plan.removed + plan.kept) != list(range(plan.model.layers)):
        return f"removed and kept together must name each layer 0 to {plan.model.layers - 1} exactly once"
    if not plan.removed or not plan.kept:
        return "at least one layer must go and one must stay"
    if plan.kept != sorted(plan.kept) or sorted(plan.order) != sorted(plan.removed):
        return "kept must be in order, and order must name the removed layers"
    gone = sum(plan.model.layer_parameters[index] for index in plan.removed)
    if plan.params_before != plan.model.parameters or plan.params_after != plan.params_before - gone:
        return "params_before and params_after do not fit the model and the removed layers"
    return None


def _wrong_scores(scores: Scores) -> str | None:
    layers = scores.model.layers
    if len(scores.scores) != layers or not all(map(math.isfinite, scores.scores)):
        return f"expected {layers} finite scores, found {len(scores.scores)}"
    if scores.windows and [len(row) for row in scores.windows] != list(range(layers, 1, -1)):
        return f"windows must hold {layers - 1} lists, from {layers} entries down to 2"
    return None
