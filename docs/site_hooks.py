"""Hooks of the site (mkdocs.yml): pages from outside docs/ join it, and links to them are bent to where they stand."""

import posixpath
import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[1]
PROJECT = ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")
LINK = re.compile(r"(\]\()([^)\s]+)(\))")
ITEM = re.compile(r"(?:[-*+]|\d+\.) ")


def joined() -> dict[str, str]:
    """Path in the repository -> path on the site, of everything that is not in docs/."""
    folder = ROOT / "benchmarks" / "results"
    results = [*sorted(folder.glob("*.md")), *sorted(folder.glob("*.png"))]
    found = {path.relative_to(ROOT).as_posix(): f"results/{path.name}" for path in results}
    found |= {name: f"project/{name}" for name in PROJECT}
    return found | {"recipes": "project/recipes.md"}


def recipes() -> str:
    """A page of all recipes."""
    lines = [
        "# Recipes",
        "",
        "Chains of commands, a file each in `recipes/`; what they are for is on [Healing](docs/healing.md).",
        "",
    ]
    for path in sorted((ROOT / "recipes").glob("*.sh")):
        lines += [f"## {path.name}", "", "```bash", path.read_text(encoding="utf-8").rstrip(), "```", ""]
    return "\n".join(lines)


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages and pictures from outside."""
    for source, target in joined().items():
        if source == "recipes":
            files.append(File.generated(config, target, content=recipes()))
        else:
            files.append(File.generated(config, target, abs_src_path=str(ROOT / source)))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Links as they lead in the checkout become links of the site; lists begin where GitHub sees one."""
    own = page.file.src_uri
    outside = {target: source for source, target in joined().items()}
    source = outside.get(own, f"docs/{own}")
    text, fenced = [], False
    for line in markdown.split("\n"):
        fenced ^= line.lstrip().startswith("```")
        before = text[-1] if text else ""
        if not fenced and ITEM.match(line) and before.strip() and not re.match(r"\s|[-*+>|#] |\d+\. ", before):
            text.append("")
        text.append(line if fenced else LINK.sub(lambda match: match[1] + bent(match[2], source, own) + match[3], line))
    return "\n".join(text)


def bent(link: str, source: str, own: str) -> str:
    """A link from a file of the repository as one from its page; a target that is not on the site fails the build."""
    if re.match(r"[a-z]+:|#", link):
        return link
    target, mark, place = link.partition("#")
    aim = posixpath.normpath(posixpath.join(posixpath.dirname(source), target))
    there = joined().get(aim) or (aim.removeprefix("docs/") if aim.startswith("docs/") else None)
    if there is None:
        return f"NOT-ON-THE-SITE/{aim}"
    return posixpath.relpath(there, posixpath.dirname(own) or ".") + mark + place
