"""Make the generated parts of the docs: docs/methods.md from docstrings, the README's tree and table (``make docs``)."""

import ast
import importlib.util
import json
import re
from pathlib import Path

from shallower import methods

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "criteria.json"
METHOD_FOLDERS = ("criteria", "selection")


def pages() -> dict[Path, str]:
    """Path -> text of every generated file."""
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    readme = between(readme, "tree", "```\n" + tree() + "```\n")
    if RESULTS.is_file():
        readme = between(readme, "table", readme_table())
    return {ROOT / "docs" / "methods.md": method_page(), ROOT / "README.md": readme}


def between(text: str, name: str, content: str) -> str:
    """The text with what stands between ``<!-- name -->`` and ``<!-- /name -->`` replaced."""
    pattern = re.compile(rf"(<!-- {name} -->\n).*?(<!-- /{name} -->)", re.S)
    return pattern.sub(lambda match: match[1] + content + match[2], text)


def method_page() -> str:
    """Every method with its docstring and settings."""
    lines = ["# Methods", "", "Made by `make docs` from the docstrings; `shallower VERB --help NAME` prints the same.", ""]
    for kind in METHOD_FOLDERS:
        lines += [f"## {kind.capitalize()}", ""]
        for name in methods.names(kind):
            lines += [f"### {name}", "", "```text", methods.describe(methods.find(kind, name)), "```", ""]
    return "\n".join(lines)


def tree() -> str:
    """The package's files with the first sentence of their docstrings; method folders stand for their files."""
    lines = ["shallower/"]
    package = ROOT / "shallower"
    for path in sorted(package.iterdir(), key=lambda item: (item.is_file(), item.name)):
        if path.is_dir() and (path / "__init__.py").is_file():
            lines.append(entry(1, path.name + "/", path / "__init__.py"))
            if path.name not in METHOD_FOLDERS:
                lines += [entry(2, item.name, item) for item in sorted(path.glob("*.py")) if item.name != "__init__.py"]
        elif path.is_dir() and path.name == "texts":
            lines.append("  " + "texts/".ljust(24) + "the shipped prose: a calibration and an evaluation part")
        elif path.suffix == ".py":
            lines.append(entry(1, path.name, path))
    return "\n".join(lines) + "\n"


def entry(depth: int, name: str, path: Path) -> str:
    """One line of the tree."""
    docstring = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
    first = re.split(r"[.;:](?:\s|$)", docstring.replace("``", "").replace("\n", " "))[0]
    return ("  " * depth + name.ljust(26 - 2 * depth) + first).rstrip()


def readme_table() -> str:
    """The benchmark's own short table, from the committed result file."""
    spec = importlib.util.spec_from_file_location("criteria_bench", ROOT / "benchmarks" / "criteria.py")
    bench = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(bench)
    return bench.short_table(json.loads(RESULTS.read_text(encoding="utf-8")))


if __name__ == "__main__":
    for target, text in pages().items():
        target.write_text(text, encoding="utf-8")
        print("wrote", target.relative_to(ROOT))
