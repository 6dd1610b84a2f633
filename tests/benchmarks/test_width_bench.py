"""Every kind of piece of the benchmarks of widths, units and repaired models, in a quick trial on the demo's model."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from shallower.cli.demo import demo_model

ROOT = Path(__file__).parents[2]
PIECES = {
    "width": (
        "dense",
        "choose X flap 0.2",
        "repair X flap 0.2",
        "tasks X flap 0.2",
        "heal X flap 0.2",
        "speed X flap 0.2",
    ),
    "units": ("dense", "choose X mlp taylor", "repair X mlp taylor 0.1", "speed X mlp"),
    "repaired": (
        "dense",
        "choose X 2 repaired",
        "repair X 2 repaired none",
        "repair X 2 repaired linear",
        "answers X 2 repaired linear",
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", PIECES)
def test_every_kind_of_piece_is_made(name, shared, tmp_path) -> None:
    model = demo_model().stem
    own = {"OMP_NUM_THREADS": "2", "PYTHONPATH": str(ROOT), "SHALLOWER_DATA": str(shared / "text")}
    for piece in (one.replace("X", model) for one in PIECES[name]):
        command = [sys.executable, f"benchmarks/{name}.py", "--quick", "--out", f"{tmp_path}/{name}.json"]
        done = subprocess.run(
            [*command, "--only", piece], capture_output=True, text=True, cwd=ROOT, env=os.environ | own
        )
        assert done.returncode == 0, done.stderr[-2000:]
        assert any(key.startswith(piece) for key in json.loads((tmp_path / f"{name}.json").read_text())["pieces"])
    assert (tmp_path / f"{name}.md").is_file() and (name == "repaired" or (tmp_path / f"{name}.png").is_file())
