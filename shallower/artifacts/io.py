"""Artifacts as JSON: records written, read and checked by their kind and schema."""

import json
import os
import re
from dataclasses import fields, is_dataclass, replace
from pathlib import Path
from typing import Any

import pydantic

from ..errors import UserError
from ..runtime.provenance import Provenance, safe_command
from ..storage.files import write_atomic
from ..storage.paths import parse_json
from .comparison import Comparison
from .compensation import Compensation
from .evaluation import Evaluation
from .exported import Exported
from .gguf import PrunedGguf
from .healing import Healing
from .inspection import Inspection
from .model import ModelRecord
from .plan import Plan
from .pruned import Pruned
from .quantised import Quantised
from .record import SCHEMA, plain, said
from .scores import Scores
from .speed import Speed
from .sweep import Sweep

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
    "pruned_gguf": PrunedGguf,
    "exported": Exported,
    "quantised": Quantised,
}
MODELS = {"source", "against", "teacher", "target"}  # fields and settings that say where a model or a file lies
OLDER = (1,)  # schemas that are read and written anew as today's
Record = (
    Scores
    | Plan
    | Pruned
    | PrunedGguf
    | Exported
    | Quantised
    | Compensation
    | Healing
    | Evaluation
    | Speed
    | Sweep
    | Comparison
    | Inspection
)


def dumps(record: Record) -> str:
    """JSON text of a record, keys in a fixed order: kind and schema first. Numbers that are not finite are refused."""
    content = plain(record)
    ordered = {"kind": content.pop("kind"), "schema": content.pop("schema"), **content}
    try:
        return short_arrays(json.dumps(ordered, indent=2, allow_nan=False)) + "\n"
    except ValueError as error:
        what = f"the {record.kind} record holds a number that is not finite"
        raise UserError(f"{what}: does the model yield NaN?") from error


PLAIN_ARRAY = re.compile(r"\[\n\s+((?:[\d.eE+-]+|true|false|null)(?:,\n\s+(?:[\d.eE+-]+|true|false|null))*)\n\s*\]")


def short_arrays(text: str) -> str:
    """The same indented JSON with arrays of plain numbers in one line each; a text in it holds no line break."""
    return PLAIN_ARRAY.sub(lambda match: "[" + re.sub(r",\n\s+", ", ", match[1]) + "]", text)


def published(record: Any) -> Any:
    """The same record for a folder that is made to be uploaded: of paths on this machine only the last part is left, in
    whatever it holds.
    """
    if isinstance(record, Provenance):
        return replace(record, command=safe_command(record.command, paths=False))
    if isinstance(record, ModelRecord):
        return replace(record, source=_last(record.source))
    if isinstance(record, dict):
        return {key: _last(value) if key in MODELS else published(value) for key, value in record.items()}
    if isinstance(record, (list, tuple)) and any(map(is_dataclass, record)):
        return type(record)(map(published, record))
    if not is_dataclass(record):
        return record
    values = {field.name: getattr(record, field.name) for field in fields(record)}
    made = {name: _last(value) if name in MODELS else published(value) for name, value in values.items()}
    changes = {name: value for name, value in made.items() if value is not values[name] and value != values[name]}
    return replace(record, **changes) if changes else record


def _last(source: Any) -> Any:
    """A Hub id as it is, of a path the last part; anything but text as ``published`` has it."""
    if not isinstance(source, str):
        return published(source)
    local = isinstance(source, str) and (
        source.startswith(("/", "~", ".")) or source.count("/") > 1 or os.path.exists(source)
    )
    return Path(source).name or source if local else source


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
        raise UserError(
            f"{where} is of {f'the kind {given}' if given else 'no kind'}; a file of the kind {kind} is expected"
        )
    if content.get("schema") not in (*OLDER, SCHEMA):
        known = " and ".join(map(str, (*OLDER, SCHEMA)))
        raise UserError(
            f"{where} has schema {content.get('schema')}; this version of shallower reads schema {known}: "
            "read it with the version that wrote it, or write it again"
        )
    try:
        return pydantic.TypeAdapter(RECORDS[kind]).validate_python(_renewed(content))
    except pydantic.ValidationError as error:
        raise UserError(f"{where} is not a valid {kind} file: {said(error)}") from error


def _renewed(content: dict[str, Any]) -> dict[str, Any]:
    """The same in today's schema: 1 has all keys at the same places, and held its parts to no form."""
    if content["schema"] not in OLDER:
        return content
    plan = content.get("plan")
    inside = {"plan": _renewed(plan)} if isinstance(plan, dict) and "schema" in plan else {}
    return content | inside | {"schema": SCHEMA}


def model_of(record: Record) -> ModelRecord | None:
    """The model that an artifact speaks of; the dense one where it is about a pruning; None for a comparison."""
    if isinstance(record, (Pruned, PrunedGguf)):
        return record.plan.model
    return getattr(record, "model", None)
