"""Commands that stand on the pages of the docs, and their reading by the real command line."""

import re
import shlex
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import typer

from shallower import methods
from shallower.cli.app import app

ROOT = Path(__file__).parents[2]
PAGES = sorted(path.relative_to(ROOT).as_posix() for path in [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")])
BLOCK = re.compile(r"(?:<!-- not run: (?P<why>[^\n]+) -->\n)?^```(?P<kind>\w*)\n(?P<text>.*?)^```$", re.S | re.M)
INLINE = re.compile(r"`+([^`]+)`+")
NAMED = {
    "--criterion": "criteria",
    "--selection": "selection",
    "--compensate": "compensation",
    "--refit": "compensation",
}
PROGRAM = typer.main.get_command(app)


class Command(NamedTuple):
    """One of ours on a page: its words, and why it is not run, if so."""

    words: tuple[str, ...]
    why: str = ""


def text_of(page: str) -> str:
    return (ROOT / page).read_text(encoding="utf-8")


def commands(page: str) -> list[Command]:
    """Of all ``sh`` blocks of a page, in order."""
    found = []
    for block in BLOCK.finditer(text_of(page)):
        if block["kind"] == "sh":
            found += [Command(words, block["why"] or "") for words in shell(block["text"])]
    return found


def mentioned(page: str) -> list[tuple[str, ...]]:
    """In prose, in tables, and in blocks that are no ``sh``."""
    text, found = text_of(page), []
    for block in BLOCK.finditer(text):
        if block["kind"] == "":
            found += shell(block["text"])
    for code in INLINE.findall(BLOCK.sub("", text)):
        found += shell(code) if re.match(r"(shallower|torchrun|accelerate|deepspeed) ", " ".join(code.split())) else []
    return found


def shell(text: str) -> list[tuple[str, ...]]:
    """Our commands in lines of a shell: behind ``shallower``, or ``-m shallower`` of a launcher."""
    joined = " ".join(text.split()) if "\n" in text and "shallower" not in text.partition("\n")[2] else text
    found = []
    for line in joined.replace("\\\n", " ").splitlines():
        if "shallower " in line:
            for words in split(line):
                if "shallower" in words[:1] or {"-m", "--module"} & {*words}:
                    found.append(tuple(words[words.index("shallower") + 1 :]))
    return [words for words in found if words]


def split(line: str) -> Iterator[list[str]]:
    """The words of each command in a line."""
    words: list[str] = []
    for word in shlex.split(line, comments=True):
        if word in ("&&", "||", "|", ";"):
            yield words
            words = []
        else:
            words.append(word)
    yield words


def check(words: tuple[str, ...]) -> None:
    """Assert that a command, its options and the methods that it names are there."""
    verb, *rest = words
    if verb in PROGRAM.commands:
        command = PROGRAM.commands[verb]
        known = {option for one in command.params for option in (*one.opts, *one.secondary_opts)} | {"--help", "-h"}
        given = [word for word in rest if re.match(r"--?[a-z]", word)]
        assert {word.partition("=")[0] for word in given} <= known, (words, {*given} - known)
        for option, value in pairwise(rest):
            kind = "healing" if (verb, option) == ("heal", "--method") else NAMED.get(option)
            for name in re.split(r"[,|]", value) if kind and re.fullmatch(r"[a-z_,|]+", value) else ():
                methods.check_name(kind, name)
    else:
        assert verb.startswith("--") or not verb.islower(), f"no such verb: {words}"


def files(page: str) -> list[tuple[str, str, str]]:
    """(kind, name, text) of the method files that a page writes out."""
    found = re.findall(r"<!-- file: (\w+)/(\w+)\.py -->\n```python\n(.*?)^```$", text_of(page), re.S | re.M)
    return [(kind, name, text) for kind, name, text in found]
