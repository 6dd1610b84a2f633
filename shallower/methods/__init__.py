"""Methods, a file each: criteria, selections, compensations, ways of healing; adding one is dropping a file in."""

import dataclasses
import difflib
import importlib
import math
import pkgutil
import sys
import typing
from pathlib import Path
from types import ModuleType
from typing import Any

from ..errors import UserError

KINDS = {"criteria": "criterion", "selection": "selection", "compensation": "compensation", "healing": "healing"}


def names(kind: str) -> tuple[str, ...]:
    """The methods of a kind (a key of ``KINDS``), sorted: its files that do not start with an underscore."""
    package = sys.modules.get(f"{__package__}.{kind}")  # not imported for its names alone: that would be slow
    folders = list(package.__path__) if package else [str(Path(__file__).parent / kind)]
    return tuple(sorted(item.name for item in pkgutil.iter_modules(folders) if not item.name.startswith("_")))


def check_name(kind: str, name: str) -> None:
    """Raise a UserError if there is no method of that name; says the nearest one and lists all."""
    known = names(kind)
    if name not in known:
        near = difflib.get_close_matches(str(name).replace("-", "_").lower(), known, n=1, cutoff=0.4)
        hint = f"did you mean {near[0]}? " if near else ""
        raise UserError(f"unknown {KINDS[kind]} {name!r}: {hint}known are {', '.join(known)}")


def find(kind: str, name: str) -> ModuleType:
    """The method's module.

    Raises:
        UserError: no method of that name; says the nearest one and lists all.
    """
    check_name(kind, name)
    return importlib.import_module(f"{__package__}.{kind}.{name}")


def configure(method: ModuleType, given: Any):
    """The method's ``Settings`` (a dataclass, or None where it has none) with the given values, or their texts, read
    by field type.

    ``given`` may also be such settings.

    Raises:
        UserError: an unknown key, or a value of the wrong type or outside the allowed ones.
    """
    name = method.__name__.rsplit(".", 1)[-1]
    kind = getattr(method, "Settings", None)
    if kind and isinstance(given, kind):
        return given
    fields = {field.name: field for field in dataclasses.fields(kind)} if kind else {}
    values = {}
    for key, text in given.items():
        if key not in fields:
            known = ", ".join(fields) if fields else "none"
            raise UserError(f"{name} has no setting {key!r}; its settings: {known}")
        values[key] = _read(f"{name}: {key}", text, typing.get_type_hints(kind)[key])
    return kind(**values) if kind else None


def setting_names(method: ModuleType) -> tuple[str, ...]:
    """The keys that ``--set`` accepts for the method."""
    kind = getattr(method, "Settings", None)
    return tuple(field.name for field in dataclasses.fields(kind)) if kind else ()


def _read(where: str, text, kind):
    if typing.get_origin(kind) is typing.Literal:
        allowed = typing.get_args(kind)
        if text not in allowed:
            raise UserError(f"{where}={text}: allowed are {', '.join(map(str, allowed))}")
        return text
    try:
        if kind is bool:
            return {"true": True, "false": False, "1": True, "0": False}[str(text).lower()]
        if isinstance(text, bool) or (kind is int and not float(text).is_integer()):
            raise ValueError("not a number of that kind")
        found = kind(float(text)) if kind is int and not isinstance(text, int) else kind(text)
        if isinstance(found, float) and not math.isfinite(found):
            raise ValueError("not finite")
        return found
    except (ValueError, KeyError, TypeError, OverflowError) as error:
        raise UserError(f"{where}={text}: expected {getattr(kind, '__name__', kind)}") from error


def describe(method: ModuleType) -> str:
    """The method's docstring and its settings with types and defaults, as shown by ``--help NAME``."""
    lines = [(method.__doc__ or "").strip(), ""]
    kind = getattr(method, "Settings", None)
    lines.append("Settings (--set key=value):" if kind else "No settings.")
    for field in dataclasses.fields(kind) if kind else ():
        hint = typing.get_type_hints(kind)[field.name]
        allowed = typing.get_args(hint) if typing.get_origin(hint) is typing.Literal else (hint.__name__,)
        lines.append(f"  {field.name} = {field.default}   ({' | '.join(map(str, allowed))})")
    return "\n".join(lines)
