"""Quantised checkpoints as input of every command: it does its work, or refuses in one line before any, and leaves
nothing behind.
"""

import contextlib
import importlib.util
import io
import re
import shutil
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pytest
import zoo
from commands import status
from packed import FORMATS, save_packed

PROGRESS = re.compile(r"loading .*|kept in .*|[\w ,:-]+: \d+%, .*|.* weights are unpacked .*")
TOKENS = ("--tokens", "ids.npy")
QUICK = ("--keep-first", "0", "--keep-last", "0")
COMMANDS = {
    "inspect": ("inspect", "MODEL", "--out", "out.json"),
    "score": ("score", "MODEL", *TOKENS, "--out", "out.json"),
    "score the weights": ("score", "MODEL", "--criterion", "magnitude", "--out", "out.json"),
    "score by gradients": ("score", "MODEL", "--criterion", "taylor", *TOKENS, "--out", "out.json"),
    "score parts": ("score", "MODEL", "--units", "mlp", "--criterion", "perplexity", *TOKENS, "--out", "out.json"),
    "score widths": ("score", "MODEL", "--units", "width", *TOKENS, "--out", "out.json"),
    "plan": ("plan", "MODEL", "--remove", "1", "--selection", "greedy", *QUICK, *TOKENS, "--out", "out.json"),
    "plan repaired": (
        *("plan", "MODEL", "--remove", "1", "--selection", "greedy", "--objective", "repaired"),
        *(*QUICK, *TOKENS, "--out", "out.json"),
    ),
    "prune": ("prune", "MODEL", "--drop", "1", "--out", "out"),
    "prune unproven": ("prune", "MODEL", "--drop", "1", "--no-verify", "--out", "out"),
    "prune by scores": ("prune", "MODEL", "--remove", "1", *QUICK, *TOKENS, "--out", "out"),
    "prune a part": ("prune", "MODEL", "--drop", "1.mlp", "--out", "out"),
    "prune, custom": ("prune", "MODEL", "--drop", "1.mlp", "--format", "custom", "--out", "out"),
    "prune, deci": ("prune", "MODEL", "--drop", "1.mlp", "--format", "deci", "--out", "out"),
    "prune widths": ("prune", "MODEL", "--ratio", "10%", "--units", "width", *TOKENS, "--out", "out"),
    "prune, stored anew": ("prune", "MODEL", "--drop", "1", "--save-dtype", "fp16", "--out", "out"),
    "prune, repaired": ("prune", "MODEL", "--drop", "1", "--compensate", "linear", *TOKENS, "--out", "out"),
    "prune, layered": ("prune", "MODEL", "--drop", "1", "--layered", "--out", "out"),
    "sweep": ("sweep", "MODEL", "--remove", "1", *QUICK, *TOKENS, "--eval-text", "text.txt", "--out", "out.json"),
    "evaluate": ("evaluate", "MODEL", *TOKENS, "--out", "out.json"),
    "evaluate, layered": ("evaluate", "MODEL", *TOKENS, "--layered", "--out", "out.json"),
    "evaluate without": ("evaluate", "MODEL", *TOKENS, "--without", "1,2.mlp", "--out", "out.json"),
    "evaluate against": (
        *("evaluate", "MODEL", "--against", "PLAIN", "--max-prompts", "1", "--answer-tokens", "4", "--out", "out.json"),
    ),
    "bench": (
        *(
            "bench",
            "MODEL",
            "--batch",
            "1",
            "--prompt",
            "8",
            "--new",
            "4",
            "--repeats",
            "1",
            "--warmup",
            "0",
            "--out",
            "out.json",
        ),
    ),
    "heal": ("heal", "MODEL", "--data", "text.txt", "--train-tokens", "256", "--length", "32", "--out", "out"),
    "export": ("export", "MODEL", "--out", "out.gguf"),
    "shrink": (
        "shrink",
        "MODEL",
        "--remove",
        "1",
        "--budget",
        "1s",
        "--samples",
        "2",
        "--length",
        "16",
        "--out",
        "out",
    ),
}


@pytest.fixture
def home(tmp_path) -> Path:
    folder = tmp_path
    np.save(folder / "ids.npy", zoo.tokens(2, 16).numpy())
    (folder / "text.txt").write_text(zoo._SENTENCES)
    zoo.save("llama", folder / "PLAIN")
    return folder


def said_by(*arguments: str) -> tuple[int, list[str]]:
    """(status, lines on stderr without progress)."""
    told = io.StringIO()
    with contextlib.redirect_stderr(told), contextlib.redirect_stdout(io.StringIO()):
        code = status(*arguments)
    return code, [line for line in told.getvalue().splitlines() if not PROGRESS.fullmatch(line)]


SLOW = {"score parts", "prune by scores", "prune, custom", "prune, deci", "sweep", "evaluate against", "shrink"}
FAST = ("fp8", "bitsandbytes-4", "gptq", "compressed-w4a16", "mlx")
RUNS = ("score", "plan", "prune", "prune by scores", "sweep", "evaluate", "evaluate against", "shrink")
GROUPS = {  # columns of the table in the docs
    "inspect, prune unproven": ("inspect", "prune unproven"),
    "streams and losses, prune": RUNS,
    "weights and gradients": ("score the weights", "score by gradients"),
    "parts of layers": ("score parts", "prune, custom", "evaluate without"),
}
PAGE = Path(__file__).parents[2] / "docs" / "quantised.md"


def table() -> dict[str, dict[str, str]]:
    """Method -> column -> what the docs say."""
    lines = [line for line in PAGE.read_text(encoding="utf-8").splitlines() if line.startswith("|")]
    head, _, *rest = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    return {row[0]: dict(zip(head[1:], row[1:], strict=True)) for row in rest}


def outcomes(method: str, names: Iterable[str], where: Path) -> dict[str, str]:
    """Command -> an empty text where it has worked, else the line in which it was refused; what is wrong fails."""
    found = {}
    for name in names:
        before = {path.name for path in where.iterdir()}
        code, lines = said_by(*COMMANDS[name])
        left = sorted({path.name for path in where.iterdir()} - before)
        assert code in (0, 2), (method, name, code, lines)
        found[name] = lines[-1] if code else ""
        if code:
            assert len(lines) == 1 and lines[0].startswith("error: ") and not left, (method, name, lines, left)
        for one in left:
            shutil.rmtree(where / one) if (where / one).is_dir() else (where / one).unlink()
    return found


def check(method: str, names: Iterable[str], where: Path) -> None:
    """Every command works or refuses, as the docs say; where a package is missing that is said of it."""
    save_packed(method, where / "MODEL")
    found, row = outcomes(method, names, where), table()[method]
    absent = [name for name in row["needs"].split(", ") if name != "nothing" and not importlib.util.find_spec(name)]
    for column, commands in GROUPS.items():
        for name in found.keys() & {*commands}:
            works = row[column] == "yes" and (not absent or column.startswith("inspect"))
            assert (not found[name]) == works, (method, name, found[name])
            if absent and not works:
                assert any(one.replace("_", "-") in found[name] for one in absent), (method, name, found[name])
    others = found.keys() - {name for commands in GROUPS.values() for name in commands}
    assert all(found[name] for name in others), (method, found)


@pytest.mark.parametrize("method", FAST)
def test_a_command_works_or_refuses_in_one_line(method: str, home, monkeypatch) -> None:
    monkeypatch.chdir(home)
    check(method, [name for name in COMMANDS if name not in SLOW], home)


@pytest.mark.slow  # all of them
@pytest.mark.parametrize("method", FORMATS)
def test_every_command_works_or_refuses_in_one_line(method: str, home, monkeypatch) -> None:
    monkeypatch.chdir(home)
    check(method, COMMANDS, home)


def test_the_table_is_of_all_methods() -> None:
    assert table().keys() == FORMATS.keys()
