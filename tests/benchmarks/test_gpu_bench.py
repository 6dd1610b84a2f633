"""The GPU benchmark on tiny models, on the CPU, so that it is known to work on the day there is a GPU."""

import json
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "benchmarks/gpu.py"
PARTS = ["correctness", "scoring", "decode", "repair", "healing"]
BROKEN = """
import os, sys, time
sys.path.insert(0, sys.argv.pop(1))
import gpu, gpu_parts

def fails(work, sheet):
    sheet.step("good", lambda: {"figure": 1.0})
    sheet.step("bad", lambda: 1 / 0)
    sheet.step("too long", dict, 1e6)

gpu.PARTS["decode"] = gpu.Part(0.01, 0)
gpu_parts.PARTS |= {
    "correctness": fails,
    "scoring": lambda work, sheet: os.kill(os.getpid(), 9),
    "decode": lambda work, sheet: (sheet.step("begun", dict), time.sleep(60)),
    "repair": lambda work, sheet: sheet.step("good", dict),
}
gpu.PARTS["healing"] = gpu.Part(0.25, 1e6)
sys.exit(gpu.main(sys.argv[1:]))
"""


def run(*command, **environment) -> subprocess.CompletedProcess:
    own = {
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": str(ROOT),
        "CUDA_VISIBLE_DEVICES": "",
        "SHALLOWER_DATA": "",
        **environment,
    }
    return subprocess.run([sys.executable, *map(str, command)], capture_output=True, text=True, env=os.environ | own)


def test_every_part_works_on_tiny_models(tmp_path) -> None:
    done = run(SCRIPT, "--tiny", "--seconds", "120", "--out", tmp_path, "--work", tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads((tmp_path / "gpu.json").read_text())
    assert list(found["parts"]) == PARTS and found["tiny"] and found["card"] is None and found["versions"]["torch"]
    for name, part in found["parts"].items():
        assert part["status"] == "ok", (name, part)
        assert not [key for key, step in part["steps"].items() if step["status"] != "ok"], name
        assert f"{name}: ok" in done.stdout and f"## {name}" in (tmp_path / "gpu.md").read_text()
    walk, published = (
        found["parts"]["scoring"]["steps"][name] for name in ("perplexity 4 x 16", "published procedure")
    )
    assert len(walk["scores"]) == 4 and walk["flops"] > 0 and published["nats_apart"] < 0.01
    assert sorted(path.name for path in tmp_path.iterdir()) == ["gpu.json", "gpu.md"], (
        "what was made to work on is gone"
    )
    steps = found["parts"]["decode"]["steps"]
    steps["dynamic cache"], steps["batch 1, static cache"]["mark"] = {"status": "skipped", "why": "too late"}, 1
    (tmp_path / "earlier.json").write_text(json.dumps(found))
    options = ("--parts", "decode", "--earlier", tmp_path / "earlier.json", "--go-on")
    done = run(SCRIPT, "--tiny", "--seconds", "120", "--out", tmp_path, "--work", tmp_path, *options)
    assert done.returncode == 0, done.stderr[-3000:]
    again = json.loads((tmp_path / "gpu.json").read_text())["parts"]
    assert [*again] == PARTS and again["decode"]["steps"].keys() == steps.keys()
    assert again["decode"]["steps"]["batch 1, static cache"]["mark"] == 1, "what was ok is kept"
    assert again["decode"]["steps"]["dynamic cache"]["status"] == "ok"


def test_what_fails_hangs_or_does_not_fit_leaves_the_rest_alone(tmp_path) -> None:
    done = run("-c", BROKEN, SCRIPT.parent, "--tiny", "--out", tmp_path, "--work", tmp_path)
    assert done.returncode == 1, done.stderr[-3000:]
    parts = json.loads((tmp_path / "gpu.json").read_text())["parts"]
    assert [part["status"] for part in parts.values()] == ["failed", "failed", "failed", "ok", "skipped"]
    steps = parts["correctness"]["steps"]
    assert steps["good"]["figure"] == 1.0 and steps["bad"]["error"].startswith("ZeroDivisionError")
    assert steps["bad"]["where"][-1].endswith("<lambda>") and steps["too long"]["status"] == "skipped"
    assert "killed by signal 9" in parts["scoring"]["error"] and "s were left" in parts["healing"]["why"]
    assert "stopped after" in parts["decode"]["error"] and parts["decode"]["steps"]["begun"]["status"] == "ok"


def test_mistakes_are_told_in_one_line(tmp_path) -> None:
    asked = [
        run(SCRIPT, "--tiny", "--out", tmp_path, "--parts", "repair,speling"),
        run(SCRIPT, "--out", tmp_path, PARTS="speling"),
    ]
    for done in asked:
        assert done.returncode == 1 and done.stderr.startswith("error: no part speling; there are correctness")
        assert len(done.stderr.splitlines()) == 1
    done = run(SCRIPT, "--tiny", "--out", tmp_path, "--earlier", tmp_path / "none.json")
    assert done.returncode == 2 and "none.json is no result of this benchmark" in done.stderr
    assert not list(tmp_path.iterdir())
