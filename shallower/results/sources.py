"""Comparison sources, the arguments of ``compare``: artifacts found by their kind, merged into one entry per model."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from ..artifacts import (
    NOTHING,
    Evaluation,
    ModelRecord,
    Perplexity,
    Pruned,
    Removal,
    Speed,
    SpeedRow,
    TaskResult,
    load,
)
from ..artifacts.speed import Side, Typical
from ..errors import UserError
from ..storage.paths import kind_of
from ..storage.paths import place as expanded

COMPARED_KINDS = ("evaluation", "speed", "pruned")
MODEL_FILES = (".gguf",)
TIMING_OPTIONS = ("cache", "compiled", "repeated", "typical")  # settings of a Speed that make its figures others
SAME = 1e-6  # relative difference of one figure measured twice


@dataclass(frozen=True)
class Timing:
    """A row of a Speed, with where and how it was measured."""

    row: SpeedRow
    conditions: tuple[str, ...]
    weight_bytes: float | None
    typical: Typical
    created: str

    def milliseconds(self, part: str) -> float:
        """``prefill`` or ``decode``, the mean or the median as the protocol says."""
        return 1000 * getattr(self.row, part).of(self.typical)

    @property
    def setting(self) -> tuple[int, int, int]:
        return self.row.batch, self.row.prompt, self.row.new


@dataclass(frozen=True)
class CompareArgument:
    """One argument and what was found there, in which files; without an evaluation its model is ``missing`` one."""

    path: str
    name: str | None = None
    evaluations: list[Evaluation] = field(default_factory=list)
    speeds: list[Speed] = field(default_factory=list)
    pruned: list[Pruned] = field(default_factory=list)
    missing: bool = False
    files: tuple[Path, ...] = ()


@dataclass
class ComparisonEntry:
    """One model with everything that is known of it."""

    name: str
    model: ModelRecord
    removal: Removal = NOTHING
    parameters_gone: int = 0
    how: str = ""
    dtypes: set[str] = field(default_factory=set)
    texts: dict[str, Perplexity] = field(default_factory=dict)
    tasks: dict[str, TaskResult] = field(default_factory=dict)
    agreement: dict[str, TaskResult] = field(default_factory=dict)
    timings: list[Timing] = field(default_factory=list)

    @property
    def key(self) -> tuple[str, Removal]:
        return self.model.fingerprint, self.removal

    @property
    def layers(self) -> int:
        return self.model.layers - len(self.removal.layers)

    @property
    def parameters(self) -> int:
        return self.model.parameters - self.parameters_gone


def read_argument(text: str | Path) -> CompareArgument:
    """One argument: ``NAME=PATH`` or ``PATH``, a folder with artifacts, an evaluation or speed .json, or a model.

    Raises:
        UserError: nothing of use there, or a broken artifact.
    """
    name, path = _split_name(str(text))
    place = expanded(path)
    if place.is_dir():
        artifacts = [(file, kind) for file, kind in artifacts_below(place) if kind in COMPARED_KINDS]
        model = (place / "config.json").is_file()
        files = (*(file for file, _ in artifacts), *((place,) if model else ()))
        argument = _with_artifacts(
            CompareArgument(path, name, files=files), [load(file, kind) for file, kind in artifacts]
        )
        if not model and not argument.evaluations and not argument.speeds:
            raise UserError(
                f"{path} holds no evaluation and no model: give a folder that evaluate wrote to, an evaluation "
                "file or a model"
            )
        return replace(argument, missing=model and not argument.evaluations)
    if path.endswith(".json"):
        kind = "speed" if place.is_file() and kind_of(place) == "speed" else "evaluation"
        return _with_artifacts(CompareArgument(path, name, files=(place,)), [load(place, kind)])
    if place.is_file() and not path.endswith(MODEL_FILES):
        raise UserError(
            f"{path} is neither a folder nor a .json or .gguf file: give a run, an evaluation file or a model"
        )
    return CompareArgument(path, name, missing=True, files=(place,))


def artifacts_below(folder: Path) -> list[tuple[Path, str]]:
    """The artifacts in a folder and below, with their kinds, in a fixed order; what is hidden does not count."""
    files = sorted(path for path in folder.rglob("*.json") if path.is_file())
    visible = [path for path in files if not any(part.startswith(".") for part in path.relative_to(folder).parts)]
    return [(path, kind) for path in visible if (kind := kind_of(path))]


def _split_name(text: str) -> tuple[str | None, str]:
    name, equals, path = text.partition("=")
    if not equals or expanded(text).exists():
        return None, text
    if not name.strip() or not path:
        raise UserError(f"{text!r}: write NAME=PATH")
    return name.strip(), path


def _with_artifacts(argument: CompareArgument, records: list) -> CompareArgument:
    parts = {kind: [record for record in records if record.kind == kind] for kind in COMPARED_KINDS}
    return replace(argument, evaluations=parts["evaluation"], speeds=parts["speed"], pruned=parts["pruned"])


def check_several(arguments: Sequence[CompareArgument]) -> None:
    """Raise a UserError for two arguments of the same name, or a single model."""
    names = [argument.name for argument in arguments if argument.name]
    if twice := [name for name in names if names.count(name) > 1]:
        raise UserError(f"two models are named {twice[0]}; give each a name of its own")
    if sum(max(1, len(argument.evaluations), 2 * len(argument.speeds)) for argument in arguments) < 2:
        raise UserError("nothing to compare: give at least two models, runs or evaluation files; the first is the base")


def evaluate_missing(
    arguments: Sequence[CompareArgument], evaluate: Callable[[str], Evaluation]
) -> list[CompareArgument]:
    """The same with every model evaluated that has no evaluation."""
    return [
        replace(argument, evaluations=[evaluate(argument.path)]) if argument.missing else argument
        for argument in arguments
    ]


def timings_of(speed: Speed, side: Side) -> list[Timing]:
    """The rows of one side; settings that ran out of memory have none."""
    options = {key: value for key in TIMING_OPTIONS if (value := getattr(speed.settings, key))}
    labels = [key if value is True else f"{key} {value}" for key, value in options.items()]
    conditions = (speed.device, f"{speed.threads} threads", f"protocol {speed.protocol}", *labels)
    weights = speed.analytic[side].weight_bytes if side in speed.analytic else None
    where = (conditions, weights, speed.settings.typical, speed.provenance.created)
    return [Timing(row, *where) for row in speed.measured if row.of == side]
