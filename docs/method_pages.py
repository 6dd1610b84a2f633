"""Pages of the methods (docs/methods/KIND/NAME.md) and their index, from docstrings, notes and result files."""

import dataclasses
import re
import tomllib
import typing
from functools import cache
from pathlib import Path
from types import ModuleType

from method_figures import measured

from shallower import methods

DOCS = Path(__file__).parent
KINDS = {  # kind -> title of its part, and the verb whose --help explains it
    "criteria": ("Criteria", "score"),
    "selection": ("Selections", "plan"),
    "compensation": ("Repairs without training", "compensate"),
    "healing": ("Healing by training", "heal"),
}
SAID = {
    "criteria": "A criterion scores what could go; the lowest goes first.",
    "selection": "A selection decides what goes, by scores, by losses, or by place alone.",
    "compensation": "A repair changes weights of what is left, without a backward through the model (`--compensate`).",
    "healing": "Healing trains what is left (`shallower heal`).",
}
INDEX = """\
# Methods

Every method is one file of the package and one page here: what it claims, its formula, its source, when to use it, how,
and what was measured. The pages are made by `make docs` from the docstrings, the notes in `docs/notes` and the result
files; `shallower VERB --help NAME` prints the docstrings. Which *kind* of removal to take is on
[Choosing](choosing.md), how to add a method on [Adding a method](adding.md).

**From** says whose it is. *As published*: the formula of the paper or of its authors' code. *In part our
reconstruction*: the same, with details that the source leaves open; the page names them. *Our reconstruction of an
idea*: only the idea is public. *Ours*: not published elsewhere.
"""


def pages() -> dict[str, str]:
    """Path below docs/ -> text, of the index and of every method."""
    made = {"methods.md": index()}
    for kind, name in every():
        made[place(kind, name)] = page(kind, name)
    return made


def stale() -> list[Path]:
    """Pages of methods that are gone."""
    known = {DOCS / place(kind, name) for kind, name in every()}
    return sorted(path for path in (DOCS / "methods").rglob("*.md") if path not in known)


def every() -> list[tuple[str, str]]:
    """(kind, name) of all methods, in the order of the site."""
    return [(kind, name) for kind in KINDS for name in methods.names(kind)]


def place(kind: str, name: str) -> str:
    """The page's path below docs/."""
    return f"methods/{kind}/{name}.md"


@cache
def notes(kind: str) -> dict[str, dict[str, str]]:
    """Method -> what is written by hand about it."""
    return tomllib.loads((DOCS / "notes" / f"{kind}.toml").read_text(encoding="utf-8"))


def index() -> str:
    """The table of all methods."""
    lines = [INDEX]
    for kind, (title, _) in KINDS.items():
        lines += [f"## {title}", "", SAID[kind], "", "| name | in one line | from |", "|---|---|---|"]
        for name in methods.names(kind):
            origin = notes(kind).get(name, {}).get("origin", "")
            claim, _, _ = docstring(methods.find(kind, name))
            lines.append(f"| [{name}]({place(kind, name)}) | {escaped(claim).replace('|', chr(92) + '|')} | {origin} |")
        lines.append("")
    return "\n".join(lines)


def page(kind: str, name: str) -> str:
    """One method."""
    method, note = methods.find(kind, name), notes(kind).get(name, {})
    claim, middle, source = docstring(method)
    title, verb = KINDS[kind]
    lines = [f"# {name}", "", f"*{methods.KINDS[kind].capitalize()}.* {escaped(claim)}", ""]
    if middle:
        formula = any(part.startswith("    ") for part in middle)
        lines += ["## Formula" if formula else "## Rule", "", *rendered(middle)]
    origin = note.get("origin", "not said").capitalize()
    lines += ["## Source", "", f"**{origin}.** {linked(escaped(source))}".strip(), ""]
    if note:
        lines += ["## When to use it", "", note["when"].strip(), "", "## How", "", "```sh", note["how"].strip(), "```"]
        lines += ["", f"`shallower {verb} --help {name}` prints formula and settings.", ""]
    lines += ["## Measured here", "", *measured(kind, name), ""]
    lines += ["## Settings", "", *settings(method), ""]
    lines += [f"Other [{title[0].lower()}{title[1:]}](../../methods.md#{title.lower().replace(' ', '-')})."]
    return "\n".join(lines) + "\n"


def docstring(method: ModuleType) -> tuple[str, list[str], str]:
    """Claim without the name, paragraphs between, and source without the word; single line breaks become spaces."""
    first, *middle, last = re.split(r"\n\s*\n", (method.__doc__ or "").strip("\n"))
    claim = " ".join(first.partition(": ")[2].split())
    source = re.sub(r"^ours[.;,]\s*", "", " ".join(last.removeprefix("Source: ").split()))  # the label says it
    return claim[0].upper() + claim[1:], middle, source[:1].upper() + source[1:]


def rendered(paragraphs: list[str]) -> list[str]:
    """Paragraphs of a docstring as Markdown: what is indented stands as it is."""
    lines: list[str] = []
    for part in paragraphs:
        if part.startswith("    "):
            lines += ["```text", *(line.removeprefix("    ") for line in part.splitlines()), "```", ""]
        else:
            lines += [escaped(part), ""]
    return lines


def escaped(text: str) -> str:
    """Text of a docstring as Markdown: its double backticks are code, its stars and brackets are themselves."""
    parts = text.split("``")
    for number in range(0, len(parts), 2):
        parts[number] = re.sub(r"([*<>\[\]])", r"\\\1", parts[number])
    return "`".join(parts)


def linked(text: str) -> str:
    """Papers as links."""
    return re.sub(r"(?:arXiv )?\b(\d{4}\.\d{5})\b", r"[arXiv \1](https://arxiv.org/abs/\1)", text)


def settings(method: ModuleType) -> list[str]:
    """A table of the method's own settings."""
    kind = getattr(method, "Settings", None)
    if kind is None:
        return ["It has no settings of its own."]
    lines = ["Given by `--set KEY=VALUE`.", "", "| key | default | allowed |", "|---|---|---|"]
    for field in dataclasses.fields(kind):
        hint = typing.get_type_hints(kind)[field.name]
        choice = typing.get_origin(hint) is typing.Literal
        allowed = ", ".join(f"`{one}`" for one in typing.get_args(hint)) if choice else WORDS[hint]
        default = str(field.default).lower() if hint is bool else field.default
        lines.append(f"| `{field.name}` | {f'`{default}`' if default != '' else 'none'} | {allowed} |")
    return lines


WORDS = {int: "a whole number", float: "a number", bool: "`true` or `false`", str: "text"}


def nav() -> str:
    """The methods' part of mkdocs.yml."""
    lines = ["  - Methods:", "      - All methods: methods.md"]
    for kind, (title, _) in KINDS.items():
        lines.append(f"      - {title}:")
        lines += [f"          - {name}: {place(kind, name)}" for name in methods.names(kind)]
    return "\n".join(lines) + "\n"
