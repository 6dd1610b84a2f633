"""Tables of the artifacts' keys for docs/files.md, made from the records: types in words, descriptions from the
docstrings behind the fields.
"""

import ast
import dataclasses
import inspect
import re
import sys
import textwrap
import types
import typing
from collections.abc import Iterator
from functools import cache
from itertools import pairwise
from typing import Any

from annotated_types import Ge, Gt
from pydantic import JsonValue

from shallower.artifacts import RECORDS
from shallower.artifacts.record import Scalar

FILES = {"pruned": "`shallower.json`, in a written model", "healing": "`healing.json`, in a healed model"}
FILES |= {"compensation": "`compensation.json`, in a repaired model"}
COMMON = ("kind", "schema")  # of every file, said once
PLAIN = {int: "whole number", float: "number", str: "text", bool: "true or false", type(None): "null", Any: "anything"}
PLAIN |= {JsonValue: "any JSON"}


def record_tables() -> str:
    """All kinds of files, each with its keys, the parts that it brings in right behind it."""
    seen: set[type] = set()
    lines: list[str] = []
    for kind, record in RECORDS.items():
        lines += table(record, f"### {record.__name__}", FILES.get(kind, f"`{kind}.json`") + ". ")
        for part in parts_of(record):
            if part not in seen:
                seen.add(part)
                lines += table(part, f"#### {part.__name__}", "")
    return "\n".join(lines) + "\n"


def table(record: type, heading: str, file: str) -> list[str]:
    """A record's docstring, behind the file that it is in, and its keys."""
    hints, said = typing.get_type_hints(record, include_extras=True), field_docs(record)
    lines = [heading, "", file + one_line(inspect.getdoc(record) or ""), ""]
    lines += ["| key | type | what it is |", "|---|---|---|"]
    for field in dataclasses.fields(record):
        if field.name not in COMMON:
            absent = " or absent" if field.name in getattr(record, "LEFT_OUT", ()) else ""
            kind = words(hints[field.name]).removesuffix(" or null") if absent else words(hints[field.name])
            lines.append(f"| `{field.name}` | {kind}{absent} | {said[field.name]} |")
    return [*lines, ""]


def words(hint: Any, limits: str = "", *, many: bool = False) -> str:
    """A type for people; ``many`` of them in a list or by name."""
    origin, inside = typing.get_origin(hint), typing.get_args(hint)
    if hint == Scalar:
        return "texts, numbers, true, false or null"
    if origin is typing.Annotated:
        signs = [f" ≥ {one.ge}" for one in limits_of(inside[1:], Ge)]
        signs += [f" > {one.gt}" for one in limits_of(inside[1:], Gt)]
        return words(inside[0], "".join(signs), many=many)
    if hint in PLAIN:
        return PLAIN[hint] + "s" * (many and PLAIN[hint] in ("text", "number", "whole number")) + limits
    if origin is list:
        return f"{'lists' if many else 'list'} of {words(inside[0], many=True)}"
    if origin is tuple:
        return f"{'lists' if many else 'list'} of {' and '.join(map(words, inside))}"
    if origin is dict:
        return f"{words(inside[1], many=True)}, by {'name' if inside[0] is str else words(inside[0])}"
    if origin is typing.Literal:
        return " or ".join(f"`{one}`" for one in inside)
    if origin in (typing.Union, types.UnionType):
        return " or ".join(map(words, inside))
    return f"[{hint.__name__}](#{hint.__name__.lower()})"


def limits_of(extras: tuple[Any, ...], kind: type) -> list[Any]:
    """Limits of a kind within what an annotation says beside the type."""
    known = [one for extra in extras for one in (extra, *getattr(extra, "metadata", ()))]
    return [one for one in known if isinstance(one, kind)]


def parts_of(record: type) -> Iterator[type]:
    """The records that a record is made of, in order, each followed by its own."""
    for hint in typing.get_type_hints(record, include_extras=True).values():
        for one in leaves(hint):
            if dataclasses.is_dataclass(one) and one not in RECORDS.values():
                yield one
                yield from parts_of(one)


def leaves(hint: Any) -> Iterator[Any]:
    """The types inside a type."""
    inside = typing.get_args(hint)
    if not inside:
        yield hint
    for one in inside if typing.get_origin(hint) is not typing.Annotated else inside[:1]:
        yield from leaves(one)


def field_docs(record: type) -> dict[str, str]:
    """Field -> the docstring behind it."""
    body = class_body(record.__module__, record.__name__)
    found = {}
    for field, text in pairwise(body):
        if isinstance(field, ast.AnnAssign) and isinstance(text, ast.Expr) and isinstance(text.value, ast.Constant):
            found[field.target.id] = one_line(inspect.cleandoc(text.value.value))
    return found


@cache
def class_body(module: str, name: str) -> list[ast.stmt]:
    source = ast.parse(textwrap.dedent(inspect.getsource(sys.modules[module])))
    return next(node.body for node in source.body if isinstance(node, ast.ClassDef) and node.name == name)


def one_line(text: str) -> str:
    """Text of a docstring as a paragraph of Markdown."""
    return re.sub(r"\s+", " ", text.replace("``", "`")).replace("|", "\\|").strip()
