"""User errors: arguments are named as Python has them, and as options while a command line runs."""

from pathlib import Path

import pytest

import shallower
from shallower.cli import main
from shallower.cli.app import VERBS
from shallower.errors import DiskError, UserError, argument, arguments_as_options

OPTIONS = {"verify": "--verify/--no-verify", "layered": "--layered/--resident", "texts": "--text", "settings": "--set"}
CASES = [  # name, value, in Python, on the command line
    ("keep_first", None, "keep_first", "--keep-first"),
    ("samples", 0, "samples=0", "--samples 0"),
    ("out", Path("a/b"), "out=a/b", "--out a/b"),
    ("texts", "a.txt", "texts=a.txt", "--text a.txt"),
    ("layered", True, "layered=True", "--layered"),
    ("layered", False, "layered=False", "--resident"),
    ("verify", None, "verify", "--verify"),
    ("verify", False, "verify=False", "--no-verify"),
    ("shard", False, "shard=False", "--no-shard"),
    ("settings", {"a": 1, "b": 2}, "settings={'a': 1, 'b': 2}", "--set a=1 --set b=2"),
]


@pytest.mark.parametrize(("name", "value", "python", "option"), CASES)
def test_an_argument_is_named_as_the_caller_writes_it(name, value, python, option) -> None:
    assert argument(name, value) == python
    with arguments_as_options(OPTIONS):
        assert argument(name, value) == option
    assert argument(name, value) == python


@pytest.mark.parametrize("kind", [UserError, DiskError])
def test_an_error_says_what_it_is_about(kind) -> None:
    error = kind("at least 1 run is kept", repeats=0, warmup=-1)
    assert str(error) == "repeats=0, warmup=-1: at least 1 run is kept" and error.arguments["repeats"] == 0
    with arguments_as_options(OPTIONS):
        assert str(error) == "--repeats 0 --warmup -1: at least 1 run is kept"
    assert str(kind("the disk is full")) == "the disk is full"


def said(capsys, *arguments: str) -> str:
    with pytest.raises(SystemExit):
        main(list(arguments))
    return capsys.readouterr().err.splitlines()[-1]


def test_python_and_the_command_line_each_read_their_own_words(capsys, tmp_path) -> None:
    with pytest.raises(UserError, match=r"^samples=0: at least 1 is needed$"):
        shallower.score("nowhere", samples=0)
    assert said(capsys, "score", "nowhere", "--samples", "0") == "error: --samples 0: at least 1 is needed"
    missing, needed = str(tmp_path / "no.txt"), "no such file; give a .txt, .jsonl or .parquet file"
    with pytest.raises(UserError, match=f"^texts={missing}: {needed}$"):
        shallower.evaluate("nowhere", texts=missing)
    assert said(capsys, "evaluate", "nowhere", "--text", missing) == f"error: --text {missing}: {needed}"
    assert (
        said(capsys, "sweep", "nowhere", "--remove", "1", "--eval-text", missing)
        == f"error: --eval-text {missing}: {needed}"
    )
    assert said(capsys, "bench", "nowhere", "--batch", "0").startswith("error: --batch 0: numbers of 1 or more")
    with pytest.raises(UserError, match=r"^batches=0: numbers of 1 or more"):
        shallower.bench("nowhere", batches="0")


def test_a_command_knows_its_options_by_the_arguments_of_the_library() -> None:
    by_name = {verb.__name__: verb.options for verb in VERBS}
    assert by_name["heal"]["eval_tokens"] == "--max-tokens" and by_name["heal"]["data"] == "--data"
    assert by_name["evaluate"]["data"] == "--task-data" and by_name["evaluate"]["removed"] == "--without"
    assert by_name["sweep"]["sizes"] == "--remove" and by_name["plan"]["texts"] == "--eval-text"
    assert by_name["prune"]["layers"] == "--drop" and by_name["prune"]["method"] == "--compensate"
    assert by_name["inspect"]["model"] == "MODEL"
