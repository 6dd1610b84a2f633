"""Artifact collection of a folder and below: one model, and what came from it."""

import hashlib
import os
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path, PurePosixPath

from ..artifacts import (
    RECORDS,
    Comparison,
    Healing,
    ModelRecord,
    Plan,
    Pruned,
    Quantised,
    Record,
    Removal,
    Speed,
    model_of,
    published,
    read,
)
from ..errors import UserError, argument
from ..runtime.progress import say
from ..storage.paths import parse_json

LARGEST_ARTIFACT = 200_000_000  # bytes of a file that is looked into


@dataclass(frozen=True)
class CollectedArtifact:
    """An artifact: where it lies below the folder, what it says, and the hash of the file."""

    path: str
    record: Record
    digest: str

    @property
    def folder(self) -> str:
        """The name of the folder that it lies in; empty at the top."""
        return PurePosixPath(self.path).parent.name


@dataclass(frozen=True)
class Pruning:
    """Pruning of the root or of what came from it: the plan, and what the root lost by it.

    Attributes:
        removal: what went, in the numbering of the root.
        order: the layers in the order of removal, numbered alike.
        pruned: None where nothing was written.
    """

    name: str
    plan: Plan
    removal: Removal
    order: list[int]
    pruned: Pruned | None = None

    @property
    def repair(self) -> str | None:
        """The methods that changed weights afterwards."""
        report = self.pruned.compensation if self.pruned else None
        names = [report.method] if report and report.changed else []
        names += [item.method for item in (self.pruned.healing if self.pruned else ())]
        names += [self.pruned.quantised.method] if self.pruned and self.pruned.quantised else []
        return ", ".join(names) or None


@dataclass(frozen=True)
class Collection:
    """Artifacts that belong together."""

    name: str
    artifacts: list[CollectedArtifact]

    def of(self, kind: str) -> list[CollectedArtifact]:
        """The artifacts of a kind, in the order of their paths."""
        return [item for item in self.artifacts if item.record.kind == kind]

    def distinct(self, kind: str) -> dict[str, CollectedArtifact]:
        """The artifacts of a kind, copies of one that later models have taken along told once: paths -> artifact."""
        paths: dict[str, list[str]] = {}
        for item in self.of(kind):
            paths.setdefault(item.digest, []).append(item.path)
        first = {item.digest: item for item in reversed(self.of(kind))}
        return {", ".join(several): first[digest] for digest, several in paths.items()}

    @cached_property
    def root(self) -> ModelRecord | None:
        """The dense model: of those that were pruned, else of all, the one with most layers."""
        plans = [model_of(item.record) for kind in ("plan", "pruned") for item in self.of(kind)]
        models = plans or [model for item in self.artifacts for model in _models(item.record)]
        return max(models, key=lambda model: model.layers, default=None)

    @cached_property
    def prunings(self) -> list[Pruning]:
        """Every written model, then every plan that none of them followed."""
        written = [self._pruning(item.folder or self.name, item.record.plan, item.record) for item in self.of("pruned")]
        followed_plans = {(pruning.plan.model.fingerprint, pruning.plan.removal) for pruning in written}
        open_plans = [
            item
            for item in self.of("plan")
            if (item.record.model.fingerprint, item.record.removal) not in followed_plans
        ]
        return written + [self._pruning(item.path, item.record) for item in open_plans]

    def pruning_of(self, model: ModelRecord) -> Pruning | None:
        """The pruning that a model came from.

        By its fingerprint, else (it was trained further) by the folder and its layers.
        """
        written = [pruning for pruning in self.prunings if pruning.pruned]
        exact = (pruning for pruning in written if pruning.pruned.fingerprint == model.fingerprint)
        return next(exact, None) or next(
            (pruning for pruning in written if _continues(model, pruning.name, pruning.pruned)), None
        )

    def _pruning(self, name: str, plan: Plan, pruned: Pruned | None = None) -> Pruning:
        places = {original: index for index, original in enumerate(self.root.original)}
        numbering = plan.model.original
        kept = {places.get(numbering[index]) for index in plan.kept}
        removal = Removal.of_layers(index for index in range(self.root.layers) if index not in kept).plus(
            *(
                unit._replace(layer=places[numbering[unit.layer]])
                for unit in plan.removal.units
                if unit.part and numbering[unit.layer] in places
            )
        )
        order = [places[numbering[index]] for index in plan.order if numbering[index] in places]
        return Pruning(name, plan, removal, order, pruned)


def collect(folder: str | Path, *, public: bool = False) -> Collection:
    """All artifacts in a folder and below, by their kind.

    Hidden folders, links, files without a kind and files above LARGEST are left aside.

    Args:
        public: of paths on this machine only the last part is left.
    Raises:
        UserError: no folder, no artifact in it, an artifact that is not valid, or artifacts of different models.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise UserError(
            f"no folder {folder}: give the folder in which artifacts such as scores.json or a pruned model lie"
        )
    artifacts = [item for path in _files(folder) if (item := _artifact(path, path.relative_to(folder).as_posix()))]
    if not artifacts:
        kinds = ", ".join(RECORDS)
        raise UserError(
            f"{folder} holds no artifacts of shallower, looked for JSON files of the kinds {kinds}: give "
            f"{argument('out')} to a stage first"
        )
    _check_one_model(artifacts)
    if public:
        artifacts = [replace(item, record=published(item.record)) for item in artifacts]
    return Collection(folder.resolve().name, artifacts)


def _files(folder: Path) -> Iterator[Path]:
    for place, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(names):
            path = Path(place, name)
            if name.endswith(".json") and not name.startswith(".") and not path.is_symlink() and path.is_file():
                yield path


def _artifact(path: Path, name: str) -> CollectedArtifact | None:
    try:
        if path.stat().st_size > LARGEST_ARTIFACT:
            say(f"{name} is larger than {LARGEST_ARTIFACT // 10**6} MB: left aside")
            return None
        raw = path.read_bytes()
    except OSError as error:
        raise UserError(f"cannot read {path}: {(error.strerror or 'failed').lower()}; mend or remove it") from error
    if b'"kind"' not in raw or b'"schema"' not in raw:
        return None
    try:
        content = parse_json(raw, name)
    except UserError as error:
        say(f"{error}; left aside")
        return None
    kind = content.get("kind") if isinstance(content, dict) else None
    if not isinstance(kind, str) or kind not in RECORDS or "schema" not in content:
        return None
    record = read(content, kind, str(path))
    return CollectedArtifact(name, record, hashlib.sha256(raw).hexdigest())


def _models(record: Record) -> list[ModelRecord]:
    """The models that an artifact has records of."""
    models = [model_of(record), record.against if isinstance(record, Speed) else None]
    return [model for model in models if model is not None]


def _fingerprints(record: Record) -> list[str]:
    if isinstance(record, Comparison):
        return [row.fingerprint for row in record.rows]
    own = [record.fingerprint] if isinstance(record, Pruned | Healing | Quantised) else []
    return [model.fingerprint for model in _models(record)] + own


def _continues(model: ModelRecord, folder: str, pruned: Pruned) -> bool:
    """Whether a model was trained further in this folder, to which its ``shallower.json`` was carried on."""
    same = (model.family, model.original) == (pruned.plan.model.family, pruned.original)
    return same and PurePosixPath(model.source).name == folder


def _check_one_model(artifacts: list[CollectedArtifact]) -> None:
    """Raise a UserError unless all fingerprints hang together by prunings, further training and comparisons."""
    groups = [(set(_fingerprints(item.record)), item) for item in artifacts]
    for item in artifacts:
        if isinstance(item.record, Pruned):
            fingerprints = {
                m.fingerprint
                for other in artifacts
                for m in _models(other.record)
                if _continues(m, item.folder, item.record)
            }
            groups.append(({item.record.fingerprint, *fingerprints}, item))
    connected = set(groups[0][0])
    rest = groups[1:]
    while neighbours := [group for group in rest if group[0] & connected]:
        connected |= set().union(*(fingerprints for fingerprints, _ in neighbours))
        rest = [group for group in rest if group not in neighbours]
    if rest:
        one, other = groups[0][1], rest[0][1]
        raise UserError(
            f"{one.path} and {other.path} are of different models ({_label(one.record)}; {_label(other.record)}): "
            "make a report per model, each from its own folder"
        )


def _label(record: Record) -> str:
    model = model_of(record)
    return f"{model.source}, fingerprint {model.fingerprint}" if model else f"{record.base} and others"
