"""The page of the public API (docs/api.md): names, signatures and first sentences, from the package itself."""

import dataclasses
import inspect
from typing import Any

import shallower

HEAD = """# Public API

Made by `make docs` from the package; a test holds it, so that no name comes, goes or takes other arguments unseen.

**What is promised.** The names below, their arguments and the fields of what they return stay through all versions
0.2.x, but for mistakes; new arguments have defaults, records gain fields only. What a later 0.x takes away is named
for a version before, with a warning and in the [changelog](../CHANGELOG.md). Files keep being read: a record says its
`schema`. Everything else, such as `shallower.anatomy` or `shallower.walk`, is the workshop and may change with every
version. Methods are added as files ([how](../CONTRIBUTING.md)), and their forms count as public too.
"""


def api_page() -> str:
    """The whole page."""
    functions, classes = [], []
    for name in shallower.__all__:
        found = getattr(shallower, name)
        (classes if inspect.isclass(found) else functions).append((name, found))
    lines = [HEAD, "## Verbs", ""]
    lines += ["Settings can be given as objects or as plain keywords (`score(model, samples=20)`).", ""]
    for name, found in functions:
        lines += [f"### {name}", "", f"`{name}({arguments(found)})`", "", first_sentence(found), ""]
    lines += ["## Settings, records and errors", "", "| name | what it is | fields |", "|---|---|---|"]
    for name, found in classes:
        fields = [f"`{one.name}`" for one in dataclasses.fields(found)] if dataclasses.is_dataclass(found) else []
        lines.append(f"| `{name}` | {first_sentence(found)} | {', '.join(fields)} |")
    return "\n".join(lines) + "\n"


def arguments(function: Any) -> str:
    """Names of the arguments with their defaults, without types."""
    parts = []
    for one in inspect.signature(function).parameters.values():
        if one.kind is one.KEYWORD_ONLY and "*" not in parts and not any(part.startswith("*") for part in parts):
            parts.append("*")
        mark = {one.VAR_KEYWORD: "**", one.VAR_POSITIONAL: "*"}.get(one.kind, "")
        default = "" if one.default is one.empty else f"={one.default!r}"
        parts.append(f"{mark}{one.name}{default}")
    return ", ".join(parts)


def first_sentence(found: Any) -> str:
    """The first paragraph of the docstring in one line."""
    text = inspect.getdoc(found) or ""
    return " ".join(text.partition("\n\n")[0].split()).replace("|", "\\|")
