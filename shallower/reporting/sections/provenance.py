"""Section on provenance: where everything comes from, and how to repeat it."""

from collections.abc import Iterator

from ...artifacts import model_of
from ...results.collection import CollectedArtifact
from ...results.summary import Summary, seconds, tokens_used
from ...runtime.provenance import safe_command
from ..page import Section, Table, Text


def section(summary: Summary) -> Section:
    """Commands, models, tokens, files and versions."""
    artifacts = summary.collection.artifacts
    contents = {
        "Models": _models(artifacts),
        "Tokens": _tokens(artifacts),
        "Files": _files(artifacts),
        "Versions": _versions(artifacts),
    }
    parts = [part for name, content in contents.items() if content for part in (Text(name, "heading"), content)]
    return Section("Provenance", [*_commands(artifacts), *parts], "origins")


def _commands(artifacts: list[CollectedArtifact]) -> Iterator[Text]:
    """The commands by age, without what is secret."""
    origins = sorted((item.record.provenance for item in artifacts), key=lambda provenance: provenance.created)
    commands = dict.fromkeys(provenance.command for provenance in origins)
    own = [safe_command(command) for command in commands if command.startswith("shallower ")]
    if own:
        yield from (Text("Commands", "heading"), Text("\n".join(own), "commands"))
    if len(commands) > len(own):
        yield Text("Some artifacts were made by the Python API.", "note")


def _models(artifacts: list[CollectedArtifact]) -> Table:
    models = {}
    for item in artifacts:
        if model := model_of(item.record):
            row = (model.source, model.family, model.layers, f"{model.parameters:,}", model.fingerprint)
            models.setdefault((model.fingerprint, model.source), row)
        if item.record.kind == "pruned":
            plan = item.record.plan
            fingerprint = item.record.fingerprint
            name = item.folder or "this folder"
            row = (name, plan.model.family, len(plan.kept), f"{plan.params_after:,}", fingerprint)
            models.setdefault((fingerprint, item.path), row)
    return Table(("model", "family", "layers", "parameters", "fingerprint"), models.values(), numbers=(2, 3))


def _tokens(artifacts: list[CollectedArtifact]) -> Table | None:
    rows = {}
    for item in artifacts:
        if calibration := getattr(item.record, "calibration", None):
            row = (tokens_used(calibration), f"{item.record.kind}: {item.path}", calibration.hash)
            rows.setdefault(calibration.hash, row)
        for name, text in getattr(item.record, "perplexity", {}).items():
            protocol = f"length {text.length}, stride {text.stride}"
            what = f"{name}: {text.tokens} predicted tokens, {protocol}, BOS {text.bos}"
            rows.setdefault(text.hash, (what, f"evaluation: {item.path}", text.hash))
    return Table(("tokens", "first used by", "hash"), rows.values()) if rows else None


def _files(artifacts: list[CollectedArtifact]) -> Table:
    rows = []
    for item in artifacts:
        record = item.record
        cost = getattr(record, "seconds", None)
        dtype = getattr(record, "dtype", "") or "—"
        time = seconds(cost) if cost else "—"
        rows.append((item.path, record.kind, record.provenance.created, dtype, time, item.digest[:16]))
    return Table(("file", "kind", "made", "dtype", "time", "SHA-256, first 16"), rows, numbers=(4,))


def _versions(artifacts: list[CollectedArtifact]) -> Table | Text:
    groups: dict[str, list[str]] = {}
    for item in artifacts:
        versions = ", ".join(f"{name} {version}" for name, version in item.record.provenance.versions.items())
        groups.setdefault(versions, []).append(item.path)
    if len(groups) == 1:
        return Text(*groups)
    return Table(("versions", "files"), ((versions, ", ".join(paths)) for versions, paths in groups.items()))
