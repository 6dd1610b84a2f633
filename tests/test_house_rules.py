"""The rules of the house, kept by tests: imports point one way, files stay small, docs equal the disk."""

import ast
import importlib.util
import re
import statistics
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "shallower"
OPTIONAL = {"bitsandbytes", "datasets", "lm_eval", "peft", "pyarrow", "xllamacpp"}  # extras: imported where needed
OPTIONAL |= {"compressed_tensors", "llmcompressor"}  # the same, in another environment

# Lowest first: a folder imports only from folders that stand before it; inside a folder there is no circle.
ORDER = [
    "errors",
    "runtime",
    "storage",
    "settings",
    "artifacts",
    "anatomy",
    "data",
    "planning",
    "walk",
    "repair",
    "evaluation",
]
ORDER += ["training", "methods", "results", "surgery", "reporting", "stages", "__init__", "cli", "__main__"]


def generator() -> ModuleType:
    """docs/generate.py, which knows the folders in order."""
    spec = importlib.util.spec_from_file_location("generate", ROOT / "docs" / "generate.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


# Lowest first: a folder imports only from folders that stand before it; inside a folder there is no circle.
ORDER = ["errors", *generator().FOLDERS[:-1], "__init__", "cli", "__main__"]
DRAWING = {"reporting"}
FILES = sorted(PACKAGE.rglob("*.py"))
MODULES = {".".join(path.relative_to(PACKAGE).with_suffix("").parts) for path in FILES}


def module_name(path: Path) -> str:
    return ".".join(path.relative_to(PACKAGE).with_suffix("").parts)


def folder(module: str) -> str:
    """The top folder, or the flat file, that a module is in."""
    return module.partition(".")[0]


def imported(path: Path) -> list[tuple[str, ast.stmt]]:
    """Modules of the package that a file imports, with the statement."""
    package = list(path.relative_to(PACKAGE).parts[:-1])
    found = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.level:
            base = ".".join(package[: len(package) + 1 - node.level] + (node.module.split(".") if node.module else []))
            for alias in node.names:
                inside = f"{base}.{alias.name}".lstrip(".")
                known = next(
                    (name for name in (inside, f"{inside}.__init__", base, f"{base}.__init__") if name in MODULES),
                    "__init__",
                )
                found.append((known, node))
    return found


@pytest.mark.parametrize("path", FILES, ids=module_name)
def test_folders_import_only_upward_in_the_list(path: Path) -> None:
    own = folder(module_name(path))
    for module, node in imported(path):
        there = folder(module)
        if there != own:
            assert ORDER.index(there) < ORDER.index(own), (
                f"line {node.lineno}: {own} imports {module}, which does not stand before it"
            )


def test_nobody_but_stages_and_cli_imports_methods() -> None:
    users = {folder(module_name(path)) for path in FILES for module, _ in imported(path) if folder(module) == "methods"}
    assert users <= {"methods", "stages", "cli"}


def test_surgery_imports_nothing_that_draws() -> None:
    """Nor does what it imports, however far away."""
    graph = {module_name(path): {module for module, _ in imported(path)} for path in FILES}
    seen, new = set(), {name for name in graph if folder(name) == "surgery"}
    while new:
        seen |= new
        new = {other for name in new for other in graph[name]} - seen
    assert not {folder(name) for name in seen} & DRAWING


def test_no_import_circle() -> None:
    graph = {module_name(path): {module for module, _ in imported(path)} for path in FILES}
    done: set[str] = set()

    def visit(name: str, above: tuple[str, ...]) -> None:
        assert name not in above, f"a circle: {' -> '.join((*above[above.index(name) :], name))}"
        for other in graph[name] if name not in done else ():
            visit(other, (*above, name))
        done.add(name)

    for name in graph:
        visit(name, ())


def test_no_class_has_the_name_of_another() -> None:
    """A name leads to one thing; the settings of methods are called alike by contract."""
    names: dict[str, list[Path]] = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_") and node.name != "Settings":
                names.setdefault(node.name, []).append(path)
    assert {name: paths for name, paths in names.items() if len(paths) > 1} == {}


def test_titles_of_option_groups_are_words() -> None:
    titles = re.findall(r'^GROUP = "(.*)"$', "\n".join(path.read_text(encoding="utf-8") for path in FILES), re.M)
    assert titles and not [title for title in titles if re.search(r"[a-z][A-Z]", title)]


def test_no_file_stands_flat_beside_the_folders() -> None:
    assert {path.stem for path in PACKAGE.glob("*.py")} == {"__init__", "__main__", "errors"}


@pytest.mark.parametrize("path", FILES, ids=module_name)
def test_no_import_is_hidden_in_a_function(path: Path) -> None:
    for function in ast.walk(ast.parse(path.read_text())):
        if isinstance(function, (ast.FunctionDef, ast.AsyncFunctionDef)):
            for node in ast.walk(function):
                if isinstance(node, (ast.Import, ast.ImportFrom)):
                    name = node.module if isinstance(node, ast.ImportFrom) else node.names[0].name
                    assert (name or "").partition(".")[0] in OPTIONAL, (
                        f"{path.name}:{node.lineno} hides the import of {name}"
                    )


def test_only_anatomy_and_the_proof_know_hugging_face() -> None:
    """And the proof only to generate; nobody else imports transformers. surgery names the config's type, and brings
    the script of another environment.
    """
    users = {module_name(path) for path in FILES if re.search(r"^(from|import) transformers", path.read_text(), re.M)}
    assert {name for name in users if not name.startswith("anatomy.")} <= {
        "surgery.proof",
        "surgery.rewrite",
        "surgery.quantise_worker",
    }


def test_no_family_is_named() -> None:
    """No table of families, no matching on model names (docstrings may give examples); but DeciLM is a Llama."""
    families = re.compile(r"\b(llama|qwen|gemma|mistral|mixtral|deepseek|falcon|bloom|gpt2|opt|phi3?|smollm3?)\b", re.I)
    for path in sorted((PACKAGE / "anatomy").glob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Constant) and isinstance(node.value, str) and len(node.value) < 60:
                if (path.name, node.value) == ("modeling_shallower.py", "llama"):
                    continue
                assert not families.search(node.value), f"{path.name}:{node.lineno}: {node.value!r}"


def test_only_the_command_line_writes_options() -> None:
    """Elsewhere messages name arguments (``errors.argument``); docstrings and help may speak of them."""
    own = {
        "errors",
        "methods.__init__",
        "surgery.convert",
    }  # makes their names, describes itself, calls another program
    for path in FILES:
        if folder(module_name(path)) != "cli" and module_name(path) not in own:
            tree = ast.parse(path.read_text())
            calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call)]
            exempt = [node for node in calls if getattr(node.func, "id", "") == "option"]
            exempt += [node for node in ast.walk(tree) if isinstance(node, ast.Expr) and is_text(node.value)]
            allowed = {id(inner) for node in exempt for inner in ast.walk(node)}
            for node in ast.walk(tree):
                if is_text(node) and id(node) not in allowed:
                    assert not re.search(r"--[a-z]", node.value), f"{path.name}:{node.lineno}: {node.value!r}"


def test_commands_have_at_most_twelve_parameters() -> None:
    """What belongs together is one dataclass of options (``cli.options.command``)."""
    nodes = [node for path in sorted((PACKAGE / "cli").glob("*.py")) for node in ast.parse(path.read_text()).body]
    commands = [node for node in nodes if isinstance(node, ast.FunctionDef)]
    commands = [node for node in commands if any(getattr(one, "id", "") == "command" for one in node.decorator_list)]
    counts = {node.name: len(node.args.args) + len(node.args.kwonlyargs) for node in commands}
    assert len(counts) == 18 and max(counts.values()) <= 12, counts


def is_text(node: ast.AST) -> bool:
    return isinstance(node, ast.Constant) and isinstance(node.value, str)


def test_sizes_are_a_guide(capsys) -> None:
    """Prints what is larger than the guide; fails only where it is far beyond."""
    functions = []
    for path in FILES:
        lines = len(path.read_text().splitlines())
        if lines > 300:
            print(f"{module_name(path)}: {lines} lines")
        assert lines <= 400, f"{path}: {lines} lines: it has two jobs"
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef):
                functions.append((node.end_lineno - node.lineno + 1, f"{module_name(path)}.{node.name}"))
    long = [item for item in functions if item[0] > 50]
    print("functions over 50 lines:", long, "median:", statistics.median(size for size, _ in functions))
    assert statistics.median(size for size, _ in functions) <= 12


def test_the_tree_equals_the_disk_and_docs_are_made() -> None:
    """``make docs`` writes the pages of methods, the tree and the tables; this says when it has to be run."""
    generate = generator()
    for path, text in generate.pages().items():
        there = path.read_text(encoding="utf-8") if path.is_file() else ""
        assert there == text, f"{path.relative_to(ROOT)} is out of date: run make docs"
    assert not generate.stale(), "pages of what is gone: run make docs"
    for path, (digest, _) in generate.pictures().items():
        assert digest.encode() in path.read_bytes(), f"{path.relative_to(ROOT)} is out of date: run make docs"


def test_no_path_of_this_machine_is_committed() -> None:
    text = "\n".join(
        path.read_text(errors="ignore")
        for path in ROOT.rglob("*")
        if path.suffix in (".py", ".md", ".toml", ".json") and ".venv" not in path.parts
    )
    assert "/wor" + "k/" not in text
