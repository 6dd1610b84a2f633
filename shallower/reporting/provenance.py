"""Provenance section of the report: where everything comes from, and how to repeat it."""

from ..artifacts import model_of
from ..results.collection import CollectedArtifact
from ..results.summary import seconds, tokens_used
from ..runtime.provenance import safe_command
from .markup import Markup, section, table, tag
from .sections import Page


def provenance_section(page: Page) -> Markup:
    """Where everything comes from: commands, models, tokens, versions, files."""
    found = page.dossier.found
    commands = dict.fromkeys(
        item.record.provenance.command for item in sorted(found, key=lambda item: item.record.provenance.created)
    )
    lines = "\n".join(safe_command(line) for line in commands if line.startswith("shallower "))
    parts = [tag("h3", "Commands"), tag("pre", lines)] if lines else []
    if len(commands) > bool(lines) * len(lines.splitlines()):
        parts.append(tag("p", "Some artifacts were made by the Python API.", class_="note"))
    parts += [
        tag("h3", "Models"),
        _models(found),
        *_tokens(found),
        tag("h3", "Files"),
        _files(found),
        tag("h3", "Versions"),
        _versions(found),
    ]
    return section("Provenance", *parts, class_="origins")


def _models(found: list[CollectedArtifact]) -> Markup:
    models = {}
    for item in found:
        if model := model_of(item.record):
            models.setdefault(
                (model.fingerprint, model.source),
                (model.source, model.family, model.layers, f"{model.parameters:,}", model.fingerprint),
            )
        if item.record.kind == "pruned":
            plan = item.record.plan
            written = (
                item.folder or "this folder",
                plan.model.family,
                len(plan.kept),
                f"{plan.params_after:,}",
                item.record.fingerprint,
            )
            models.setdefault((item.record.fingerprint, item.path), written)
    return table(("model", "family", "layers", "parameters", "fingerprint"), models.values(), numbers=(2, 3))


def _tokens(found: list[CollectedArtifact]) -> list[Markup]:
    rows = {}
    for item in found:
        if used := getattr(item.record, "calibration", None):
            rows.setdefault(used.hash, (tokens_used(used), f"{item.record.kind}: {item.path}", used.hash))
        for name, text in getattr(item.record, "perplexity", {}).items():
            cut = f"length {text.length}, stride {text.stride}"
            what = f"{name}: {text.tokens} predicted tokens, {cut}, BOS {text.bos}"
            rows.setdefault(text.hash, (what, f"evaluation: {item.path}", text.hash))
    return [tag("h3", "Tokens"), table(("tokens", "first used by", "hash"), rows.values())] if rows else []


def _files(found: list[CollectedArtifact]) -> Markup:
    rows = []
    for item in found:
        cost = getattr(item.record, "seconds", None)
        dtype = getattr(item.record, "dtype", "") or "—"
        rows.append(
            (
                item.path,
                item.record.kind,
                item.record.provenance.created,
                dtype,
                seconds(cost) if cost else "—",
                item.digest[:16],
            )
        )
    return table(("file", "kind", "made", "dtype", "time", "SHA-256, first 16"), rows, numbers=(4,))


def _versions(found: list[CollectedArtifact]) -> Markup:
    groups: dict[str, list[str]] = {}
    for item in found:
        groups.setdefault(
            ", ".join(f"{name} {version}" for name, version in item.record.provenance.versions.items()), []
        ).append(item.path)
    if len(groups) == 1:
        return tag("p", *groups)
    return table(("versions", "files"), ((versions, ", ".join(paths)) for versions, paths in groups.items()))
