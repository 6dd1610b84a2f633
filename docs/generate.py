"""Make the generated parts of the docs (``make docs``): methods from docstrings and results, files from the records,
model types, quality and other figures from results, README's parts, and the methods' part of the site's nav.
"""

import ast
import importlib
import json
import re
import sys
from pathlib import Path
from types import ModuleType

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "criteria.json"
FAMILIES = ROOT / "benchmarks" / "results" / "families.json"
QUALITY = ROOT / "benchmarks" / "results" / "quality.json"
QUALITY_PAGE, QUALITY_PICTURE = ROOT / "docs" / "quality.md", ROOT / "docs" / "quality.png"
# Lowest first: a folder imports only from those that stand before it (tests/test_house_rules.py).
FOLDERS = ["runtime", "storage", "settings", "artifacts", "anatomy", "data", "planning", "walk", "repair", "evaluation"]
FOLDERS += ["training", "methods", "results", "surgery", "reporting", "stages", "webapp", "cli"]

SHIPPED = {  # folders without code
    "data": ("prose/", "The shipped texts: six kinds to calibrate on, another text to evaluate on"),
    "reporting": ("templates/", "How the report looks: the page, the parts of its sections, its style"),
    "webapp": ("style.css", "How the page looks"),
}


def pages() -> dict[Path, str]:
    """Path -> text of every generated file."""
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    if RESULTS.is_file():
        readme = between(readme, "table", readme_table())
    design = (ROOT / "docs" / "design.md").read_text(encoding="utf-8")
    design = between(design, "tree", "```\n" + tree() + "```\n")
    readme = between(readme, "folders", folders())
    files = (ROOT / "docs" / "files.md").read_text(encoding="utf-8")
    made = {
        ROOT / "docs" / "api.md": local("api_page").api_page(),
        **{ROOT / "docs" / path: text for path, text in local("method_pages").pages().items()},
        ROOT / "README.md": readme,
        ROOT / "docs" / "design.md": design,
        ROOT / "docs" / "files.md": between(files, "records", local("record_pages").record_tables()),
    }
    for page, parts in local("page_figures").blocks().items():
        text = (ROOT / "docs" / page).read_text(encoding="utf-8")
        for name, content in parts.items():
            text = between(text, name, content)
        made[ROOT / "docs" / page] = text
    site = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    made[ROOT / "mkdocs.yml"] = between(site, "methods", local("method_pages").nav(), marks=("  # {}", "  # /{}"))
    if FAMILIES.is_file():
        made[ROOT / "docs" / "families.md"] = family_page(json.loads(FAMILIES.read_text(encoding="utf-8")))
    if QUALITY.is_file():
        made[QUALITY_PAGE] = quality_page(json.loads(QUALITY.read_text(encoding="utf-8")))
    return made


def pictures() -> dict[Path, tuple[str, bytes]]:
    """Path -> what stands in an up-to-date file, and the file, of every generated picture (its other bytes depend on
    fonts).
    """
    if not QUALITY.is_file():
        return {}
    content, tables = json.loads(QUALITY.read_text(encoding="utf-8")), benchmark("quality_tables")
    return {QUALITY_PICTURE: (tables.digest(content), tables.picture(content))}


def benchmark(name: str) -> ModuleType:
    """A file of the benchmarks, which import each other."""
    return local(name, "benchmarks")


def local(name: str, folder: str = "docs") -> ModuleType:
    """A file beside this one, or in another folder outside the package."""
    if str(ROOT / folder) not in sys.path:
        sys.path.append(str(ROOT / folder))
    return importlib.import_module(name)


def quality_page(content: dict) -> str:
    """docs/quality.md from the results of ``make bench-quality``; the reading, which is written by hand, stays."""
    before = QUALITY_PAGE.read_text(encoding="utf-8") if QUALITY_PAGE.is_file() else ""
    reading = re.search(r"<!-- reading -->\n(.*?)<!-- /reading -->", before, re.S)
    return benchmark("quality_tables").page(content, reading[1] if reading else "")


def stale() -> list[Path]:
    """Generated files of what is gone."""
    return local("method_pages").stale()


def between(text: str, name: str, content: str, marks: tuple[str, str] = ("<!-- {} -->", "<!-- /{} -->")) -> str:
    """The text with what stands between ``<!-- name -->`` and ``<!-- /name -->``, or other marks, replaced."""
    begin, end = (re.escape(mark.format(name)) for mark in marks)
    pattern = re.compile(rf"({begin}\n).*?({end})", re.S)
    return pattern.sub(lambda match: match[1] + content + match[2], text)


FAMILY_INTRO = """\
# Model types

Every causal-LM type of transformers {transformers}, tried by `make families` (torch {torch}, Python {python});
this page is made from its results by `make docs`.

| | types |
|---|--:|
{counts}

Each type is built tiny and random from its config (8 layers, hidden size 64; the rules that tell its layers
apart are set awkwardly, without a period where the type allows that) and pruned in three ways, in one of them
layer 0 goes where that is legal.

- **exact**: all three are. Written, reloaded by plain transformers: no missing, unexpected or mismatched
  weights; logits equal those of the dense model with the layers bypassed (within 1e-5 of the largest logit,
  on two inputs; mostly bit for bit); cached generation equals uncached; and the removed layers mattered. The
  dense model passes the same checks.
- **refused**: at least one of the three is not written, for the reason given. A refusal in parentheses is one
  that is wanted: no config of that type describes what would be left.
- **not built**: no tiny model of it is a causal language model by itself.
- **WRONG** or **crash** would be a bug; {bugs}.

The layers are also scored by `magnitude`, `block_influence`, `taylor` and `perplexity`, with one layer in
memory and with all: the scores have to be equal bit for bit. {layered}.

**Parts**: the first attention and the MLP of a later layer go alone, are written as custom code and pass the same
checks, loaded by transformers with that code. {parts}.

| type | status | removed | config fields changed | parts | remarks |
|---|---|---|---|---|---|
"""
STATUSES = ("exact", "refused", "not built", "crash", "WRONG")


def family_page(content: dict) -> str:
    """docs/families.md from the results of ``make families``."""
    types = content["types"]
    counts = {status: sum(result["status"] == status for result in types.values()) for status in STATUSES}
    rows = "\n".join(f"| {status} | {count} |" for status, count in counts.items() if count or status in STATUSES[:3])
    bugs = "there is none" if not counts["crash"] + counts["WRONG"] else "see below"
    scored = [result["layered"].values() for result in types.values() if result.get("layered")]
    alike = sum(set(found) == {"equal"} for found in scored)
    differ = sum("DIFFERS" in found for found in scored)
    layered = (
        f"{alike} of {len(scored)} that open score so by all four, {differ} differ, the others refuse one of them "
        "and say why"
    )
    tried = [result["parts"]["outcome"] for result in types.values() if result.get("parts")]
    parts = f"{tried.count('exact')} of {len(tried)} are exact, the others are refused and the remarks say why"
    if len({*tried} - {"exact", "refused"}):
        parts += "; some are WRONG or crashed"
    intro = FAMILY_INTRO.format(**content["versions"], counts=rows, bugs=bugs, layered=layered, parts=parts)
    return intro + "".join(family_row(name, types[name]) for name in sorted(types))


def family_row(name: str, result: dict) -> str:
    """One line of the table."""
    sets, illegal = result.get("sets", []), result.get("illegal", [])
    removed = [", ".join(map(str, item["removed"])) for item in sets if item["outcome"] == "exact"]
    removed += [f"({', '.join(map(str, item['removed']))} refused)" for item in illegal if item["outcome"] == "refused"]
    changes = dict.fromkeys(re.split(r" ", change)[0] for item in sets for change in item.get("changes", []))
    reasons = dict.fromkeys(
        re.sub(r"^cannot remove layers? [\d, ]+: ", "", item["reason"]) for item in sets if item.get("reason")
    )
    parts = result.get("parts", {})
    whole = result.get("layered", {})
    without = f"parts: {parts['reason']}" if parts.get("reason") else ""
    remarks = [result.get("reason", ""), result.get("note", ""), *reasons, layered_remark(whole), without]
    cells = [
        name,
        result["status"],
        "; ".join(removed),
        ", ".join(f"`{change}`" for change in changes),
        ", ".join(parts.get("removed", ())) if parts.get("outcome") == "exact" else parts.get("outcome", ""),
        "; ".join(filter(None, remarks)),
    ]
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |\n"


def layered_remark(layered: dict[str, str]) -> str:
    """What does not score with one layer in memory as with all; criteria with one reason share it."""
    reasons: dict[str, list[str]] = {}
    for criterion, said in layered.items():
        if said != "equal":
            reasons.setdefault(said, []).append(f"`{criterion}`")
    return "; ".join(f"{', '.join(criteria)} {said}" for said, criteria in reasons.items())


def folders() -> str:
    """A table of the package's folders, lowest first, with what each holds."""
    rows = [f"| `{name}/` | {first_paragraph(ROOT / 'shallower' / name / '__init__.py')} |" for name in FOLDERS]
    return "\n".join(["| folder | what it holds |", "|---|---|", *rows]) + "\n"


def tree() -> str:
    """The package's files with the first sentence of their docstrings, folders lowest first."""
    package = ROOT / "shallower"
    lines = ["shallower/", entry(1, "errors.py", package / "errors.py")]
    for name in FOLDERS:
        lines.append(entry(1, name + "/", package / name / "__init__.py"))
        files = sorted(item for item in (package / name).glob("*.py") if item.name != "__init__.py")
        lines += [entry(2, item.name, item) for item in files]
        inside = sorted(item.parent for item in (package / name).glob("*/__init__.py"))
        for folder in inside:
            named = ", ".join(item.stem for item in sorted(folder.glob("[a-z]*.py")))
            lines.append("    " + (folder.name + "/").ljust(22) + named)
        if name in SHIPPED:
            folder, said = SHIPPED[name]
            lines.append("    " + folder.ljust(22) + said)
    return "\n".join(lines) + "\n"


def first_paragraph(path: Path) -> str:
    """The first paragraph of a file's docstring in one line, with backticks as Markdown has them."""
    docstring = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
    return " ".join(docstring.partition("\n\n")[0].replace("``", "`").split())


def headline(path: Path) -> str:
    """The first sentence of a file's docstring."""
    docstring = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
    return re.split(r"[.;:](?:\s|$)", docstring.replace("``", "").replace("\n", " "))[0]


def entry(depth: int, name: str, path: Path) -> str:
    """One line of the tree."""
    return ("  " * depth + name.ljust(26 - 2 * depth) + headline(path)).rstrip()


def readme_table() -> str:
    """The benchmark's own short table, from the committed result file."""
    return benchmark("criteria").short_table(json.loads(RESULTS.read_text(encoding="utf-8")))


if __name__ == "__main__":
    for old in stale():
        old.unlink()
        print("removed", old.relative_to(ROOT))
    for target, text in pages().items():
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(text, encoding="utf-8")
        print("wrote", target.relative_to(ROOT))
    for target, (_, drawn) in pictures().items():
        target.write_bytes(drawn)
        print("wrote", target.relative_to(ROOT))
