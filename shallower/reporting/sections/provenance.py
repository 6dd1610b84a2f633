"""Section on provenance: where everything comes from, and how to repeat it."""

from collections.abc import Iterator

from ...artifacts import model_of
from ...results.collection import CollectedArtifact
from ...results.summary import Summary, seconds, tokens_used
from ...runtime.provenance import safe_command
from ..page import Section, Table, Text


def section(summary: Summary) -> Section:
    """Commands, models, tokens, files and versions."""
    found = summary.collection.artifacts
    titled = {"Models": _models(found), "Tokens": _tokens(found), "Files": _files(found), "Versions": _versions(found)}
    shown = [part for name, content in titled.items() if content for part in (Text(name, "heading"), content)]
    return Section("Provenance", [*_commands(found), *shown], "origins")


def _commands(found: list[CollectedArtifact]) -> Iterator[Text]:
    """The commands by age, without what is secret."""
    made = sorted((item.record.provenance for item in found), key=lambda provenance: provenance.created)
    commands = dict.fromkeys(provenance.command for provenance in made)
    own = [safe_command(command) for command in commands if command.startswith("shallower ")]
    if own:
        yield from (Text("Commands", "heading"), Text("\n".join(own), "commands"))
    if len(commands) > len(own):
        yield Text("Some artifacts were made by the Python API.", "note")


def _models(found: list[CollectedArtifact]) -> Table:
    models = {}
    for item in found:
        if model := model_of(item.record):
            about = (model.source, model.family, model.layers, f"{model.parameters:,}", model.fingerprint)
            models.setdefault((model.fingerprint, model.source), about)
        if item.record.kind == "pruned":
            plan, own = item.record.plan, item.record.fingerprint
            name = item.folder or "this folder"
            written = (name, plan.model.family, len(plan.kept), f"{plan.params_after:,}", own)
            models.setdefault((own, item.path), written)
    return Table(("model", "family", "layers", "parameters", "fingerprint"), models.values(), numbers=(2, 3))


def _tokens(found: list[CollectedArtifact]) -> Table | None:
    rows = {}
    for item in found:
        if used := getattr(item.record, "calibration", None):
            rows.setdefault(used.hash, (tokens_used(used), f"{item.record.kind}: {item.path}", used.hash))
        for name, text in getattr(item.record, "perplexity", {}).items():
            cut = f"length {text.length}, stride {text.stride}"
            what = f"{name}: {text.tokens} predicted tokens, {cut}, BOS {text.bos}"
            rows.setdefault(text.hash, (what, f"evaluation: {item.path}", text.hash))
    return Table(("tokens", "first used by", "hash"), rows.values()) if rows else None


def _files(found: list[CollectedArtifact]) -> Table:
    rows = []
    for item in found:
        record, cost = item.record, getattr(item.record, "seconds", None)
        dtype, time = getattr(record, "dtype", "") or "—", seconds(cost) if cost else "—"
        rows.append((item.path, record.kind, record.provenance.created, dtype, time, item.digest[:16]))
    return Table(("file", "kind", "made", "dtype", "time", "SHA-256, first 16"), rows, numbers=(4,))


def _versions(found: list[CollectedArtifact]) -> Table | Text:
    groups: dict[str, list[str]] = {}
    for item in found:
        versions = ", ".join(f"{name} {version}" for name, version in item.record.provenance.versions.items())
        groups.setdefault(versions, []).append(item.path)
    if len(groups) == 1:
        return Text(*groups)
    return Table(("versions", "files"), ((versions, ", ".join(paths)) for versions, paths in groups.items()))
