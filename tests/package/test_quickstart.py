"""The quickstart's commands, run as they stand on a tiny model; and the links of all pages."""

import re
import shlex
from pathlib import Path

import pytest
from commands import status

ROOT = Path(__file__).parents[2]
BLOCK = re.compile(r"```sh\n(.*?)```", re.S)
LINK = re.compile(r"\]\(([^)\s]+)\)")


def commands() -> list[list[str]]:
    """Arguments of every command of ours on the page."""
    page = (ROOT / "docs/quickstart.md").read_text(encoding="utf-8")
    lines = [line for block in BLOCK.findall(page) for line in block.splitlines() if line.startswith("shallower ")]
    return [shlex.split(line, comments=True)[1:] for line in lines]


def test_every_command_of_the_quickstart_runs(saved, text, tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("shallower.stages.shrink.TRAINED", 8)  # samples
    given = {"MODEL": str(saved("llama")), "TEXT": str(text), "1m": "6s"}
    small = {  # the same, sooner
        "bench": ["--prompt", "8", "--new", "4", "--repeats", "1"],
        "shrink": ["--samples", "4", "--length", "24"],
    }
    assert len(commands()) >= 12
    for command in commands():
        arguments = [given.get(one, one) for one in command] + small.get(command[0], [])
        assert status(*arguments) == 0, (command, capsys.readouterr().err)
    assert (tmp_path / "report.html").is_file() and (tmp_path / "small/report.html").is_file()
    assert (tmp_path / "healed/model.safetensors").is_file() and (tmp_path / "comparison/comparison.md").is_file()


PAGES = sorted(path.relative_to(ROOT).as_posix() for path in [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")])


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page) -> None:
    path = ROOT / page
    for link in LINK.findall(path.read_text(encoding="utf-8")):
        if not re.match(r"[a-z]+:", link):
            target, _, place = link.partition("#")
            aim = (path.parent / target) if target else path
            assert aim.exists(), f"{page}: {link}"
            if place and aim.suffix == ".md":
                heads = re.findall(r"^#+ (.+)$", aim.read_text(encoding="utf-8"), re.M)
                slugs = {re.sub(r"[^\w\- ]", "", head.lower()).replace(" ", "-") for head in heads}
                assert place in slugs, f"{page}: {link} is none of {sorted(slugs)}"
