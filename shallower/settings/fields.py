"""Settings fields.

A dataclass field with the help that the command line shows, and plain keywords made into settings.
"""

import dataclasses
import difflib
from typing import Any, TypeVar

from ..errors import UserError

S = TypeVar("S")


def option(
    help: str,
    default: Any = dataclasses.MISSING,
    *,
    flag: str = "",
    metavar: str = "",
    kind: type | None = None,
    **more: Any,
) -> Any:
    """A field that is an option of the command line.

    Args:
        flag: its name there; by default that of the field. ``--yes/--no`` makes a pair.
        metavar: what stands for its value in the help.
        kind: what the command line reads it as, where the annotation does not tell: str, int, float, bool or list.
    """
    about = {"help": help, "flag": flag, "metavar": metavar, "kind": kind}
    return dataclasses.field(default=default, metadata=about, **more)


def options_of(settings: type) -> dict[str, dataclasses.Field]:
    """Field name -> field, of those that are options."""
    return {field.name: field for field in dataclasses.fields(settings) if "help" in field.metadata}


def flag_of(field: dataclasses.Field) -> str:
    """The option's name on the command line, such as ``--keep-first``."""
    return field.metadata.get("flag") or f"--{field.name.replace('_', '-')}"


def settings_from(kind: type[S], value: Any, plain: dict[str, Any], name: str) -> S:
    """Settings of a kind from what a Python caller gave: such settings, nothing, a mapping, and single fields as
    keywords.

    Fields that are taken from ``plain`` are removed there.

    Raises:
        UserError: something else, or a field given twice.
    """
    known = {field.name for field in dataclasses.fields(kind) if field.init}
    own = {key: plain.pop(key) for key in [*plain] if key in known}
    if isinstance(value, dict):
        unknown = sorted(set(value) - known)
        if unknown:
            raise UserError(f"{name} has no {unknown[0]!r}; it has {', '.join(sorted(known))}")
        value = kind(**value)
    if value is None:
        return kind(**own)
    if not isinstance(value, kind):
        raise UserError(
            f"{name}={value!r}: give {kind.__name__}(...), or its fields as keywords: {', '.join(sorted(known))}"
        )
    return dataclasses.replace(value, **own) if own else value


def check_spent(plain: dict[str, Any], kinds: tuple[type, ...], verb: str) -> None:
    """Raise a UserError for keywords that no settings of the verb have; names the nearest."""
    for key in plain:
        names = sorted({field.name for kind in kinds for field in dataclasses.fields(kind) if field.init})
        near = difflib.get_close_matches(key, names, 1, 0.5)
        hint = f"did you mean {near[0]}=?" if near else f"it takes {', '.join(names)}"
        raise UserError(f"{verb} takes no {key}=; {hint}")


def set_field(settings: Any, name: str, value: Any) -> None:
    """Put an understood value into frozen settings while they are made."""
    object.__setattr__(settings, name, value)
