"""The rules of the house, kept by tests: imports point one way, files stay small, docs equal the disk."""

import ast
import importlib.util
import re
import statistics
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "shallower"
OPTIONAL = {"bitsandbytes", "datasets", "lm_eval", "peft", "pyarrow"}  # extras: imported where they are needed

# Lowest first: a module may import only what stands above it here. A folder's entry stands for all files in it.
ORDER = [
    "errors stopping quantities format methods memory progress files provenance tensors gguf_file hashes shards side_files ranks journal",
    "artifacts.model artifacts.calibration artifacts.scores artifacts.plan artifacts.pruned artifacts.compensation artifacts.healing",
    "artifacts.evaluation artifacts.speed artifacts.sweep artifacts.comparison artifacts.inspection artifacts.io artifacts.__init__",
    "settings.__init__ settings.fields settings.compute settings.calibration settings",
    "anatomy.__init__ anatomy.stack anatomy.bypass anatomy.decoding anatomy.names anatomy.edits anatomy.kernels anatomy.quantised",
    "anatomy.agreement anatomy.loading anatomy.hub anatomy.gguf anatomy.sources anatomy.config_file anatomy.disk",
    "anatomy.patch anatomy.writers anatomy.fingerprint anatomy.layer_tables anatomy.lean anatomy.offload anatomy.config anatomy.model",
    "data.__init__ data.readers data.tokens data.packing data.streams",
    "walk.__init__ walk.evidence walk.sums walk.batching walk.replay walk.heads walk.losses",
    "walk.forward walk.backward walk.gather walk.findings walk.paired walk.tail",
    "criteria evaluation.__init__ evaluation.health evaluation.items evaluation.perplexity evaluation.tasks",
    "evaluation.analytic evaluation.speed",
    "selection compensation._ridge compensation",
    "training.__init__ training.schedule training.objective training.distillation training.sharding training.checkpoints",
    "training.lion training.loop",
    "healing._adapters healing._pretraining healing",
    "comparison.__init__ comparison.bootstrap comparison.healing comparison.runfolders comparison.merging comparison.comparing",
    "comparison.pareto comparison.page",
    "reporting.__init__ reporting.drawing reporting.figures reporting.markup reporting.dossier reporting.findings",
    "reporting.sections reporting.measurements reporting.origins reporting.pages reporting.card",
    "runs repairs proof surgery planning stages.__init__ stages.common stages.removals stages.trained",
    "stages.inspect stages.score stages.plan stages.lineage stages.prune stages.heal stages.evaluate stages.sweep stages.bench",
    "stages.compare stages.report __init__",
    "cli.grid cli.tables cli.demo cli.method_settings cli.options cli.commands cli.app cli.__init__ __main__",
]
RANK = {name: rank for rank, name in enumerate(" ".join(ORDER).split())}
FILES = sorted(PACKAGE.rglob("*.py"))


def module_name(path: Path) -> str:
    return ".".join(path.relative_to(PACKAGE).with_suffix("").parts)


def rank(name: str) -> int:
    """The place of a module, or of its folder."""
    for candidate in (name, f"{name}.__init__", name.partition(".")[0]):
        if candidate in RANK:
            return RANK[candidate]
    raise AssertionError(f"shallower/{name.replace('.', '/')}.py has no place in ORDER of tests/test_house_rules.py")


def imported(path: Path) -> list[tuple[str, ast.stmt]]:
    """Modules of the package that a file imports, with the statement."""
    package = list(path.relative_to(PACKAGE).parts[:-1])
    found = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.level:
            base = package[: len(package) + 1 - node.level] + (node.module.split(".") if node.module else [])
            modules = [".".join(base)] if node.module else [".".join([*base, alias.name]) for alias in node.names]
            for module in modules:
                known = (PACKAGE / module.replace(".", "/")).with_suffix(".py").is_file() or not module
                found.append((module if known or (PACKAGE / module.replace(".", "/")).is_dir() else ".".join(base) or "__init__", node))
    return found


@pytest.mark.parametrize("path", FILES, ids=module_name)
def test_imports_point_one_way(path: Path) -> None:
    name = module_name(path)
    for module, node in imported(path):
        if name.partition(".")[0] in ("criteria", "selection", "compensation", "healing") and module == name.partition(".")[0]:
            continue  # a method imports its folder's own types
        assert rank(module) < rank(name), f"line {node.lineno}: {name} imports {module}, which does not stand above it"


@pytest.mark.parametrize("path", FILES, ids=module_name)
def test_no_import_is_hidden_in_a_function(path: Path) -> None:
    for function in ast.walk(ast.parse(path.read_text())):
        if isinstance(function, (ast.FunctionDef, ast.AsyncFunctionDef)):
            for node in ast.walk(function):
                if isinstance(node, (ast.Import, ast.ImportFrom)):
                    name = node.module if isinstance(node, ast.ImportFrom) else node.names[0].name
                    assert (name or "").partition(".")[0] in OPTIONAL, f"{path.name}:{node.lineno} hides the import of {name}"


def test_only_anatomy_and_the_proof_know_hugging_face() -> None:
    """And the proof only to generate; nobody else imports transformers. surgery names the config's type."""
    users = {module_name(path) for path in FILES if re.search(r"^(from|import) transformers", path.read_text(), re.M)}
    assert {name for name in users if not name.startswith("anatomy.")} <= {"proof", "surgery"}


def test_no_family_is_named() -> None:
    """No table of families, no matching on model names (docstrings may give examples)."""
    families = re.compile(r"\b(llama|qwen|gemma|mistral|mixtral|deepseek|falcon|bloom|gpt2|opt|phi3?|smollm3?)\b", re.I)
    for path in sorted((PACKAGE / "anatomy").glob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Constant) and isinstance(node.value, str) and len(node.value) < 60:
                assert not families.search(node.value), f"{path.name}:{node.lineno}: {node.value!r}"


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


def test_the_readme_tree_equals_the_disk_and_docs_are_made() -> None:
    """``make docs`` writes the method list, the README's tree and its table; this says when it has to be run."""
    spec = importlib.util.spec_from_file_location("generate", ROOT / "docs" / "generate.py")
    generate = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(generate)
    for path, text in generate.pages().items():
        assert path.read_text(encoding="utf-8") == text, f"{path.relative_to(ROOT)} is out of date: run make docs"
    for path, (digest, _) in generate.pictures().items():
        assert digest.encode() in path.read_bytes(), f"{path.relative_to(ROOT)} is out of date: run make docs"


def test_no_path_of_this_machine_is_committed() -> None:
    text = "\n".join(
        path.read_text(errors="ignore")
        for path in ROOT.rglob("*")
        if path.suffix in (".py", ".md", ".toml", ".json") and ".venv" not in path.parts
    )
    assert "/wor" + "k/" not in text
