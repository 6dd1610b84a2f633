"""What is measured of a pruned model, and how long that takes: SmolLM2-135M-Instruct without layers 12-17, plain and repaired, fp32, CPU.

The seven zero-shot tasks through lm-eval from local data, and prefill and decode speed of the written model against the
unpruned one, in turns. Each finished piece is on disk before the next one begins. The table is made from the JSON file alone.
"""

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable
from importlib import metadata
from pathlib import Path

from criteria import CALIBRATION, DATA, FP32, ROOT, begun, machine, save

from shallower import Calibration, Grid, Tasks, UserError, bench, drop, evaluate, open_model, prune
from shallower.anatomy.model import Model
from shallower.demo import demo_model
from shallower.evaluation.tasks import SETS, mean_of
from shallower.files import write_atomic
from shallower.memory import Peak
from shallower.progress import shown
from shallower.provenance import versions
from shallower.repairs import Compensating

REMOVED = [*range(12, 18)]
FULL = {"limit": 200, "samples": 256, "speed": {}}
QUICK = {"limit": 5, "samples": 8, "speed": {"batches": (1,), "prompts": (16,), "new": (8,), "repeats": 2}}
MODELS = ("unpruned", "pruned", "repaired")
GOALS = {"minutes": 20, "decode": 0.9}


class Measuring:
    """The pieces and how each is made; the models are opened, and the pruned one is written, once."""

    def __init__(self, data: Path, settings: dict, folder: Path):
        self.data, self.settings, self.folder = data, settings, folder
        self.dense = open_model(demo_model(), FP32)
        self.opened: dict[str, Model] = {}

    def repaired(self) -> Model:
        """The written model, repaired."""
        if "repaired" not in self.opened:
            text = Calibration(text=str(self.data / CALIBRATION), samples=self.settings["samples"], seed=4321, at_most=True)
            plan = drop(self.dense, REMOVED)
            prune(self.dense, plan, out=self.folder / "model", compensating=Compensating("sequential", {}, text))
            self.opened["repaired"] = open_model(self.folder / "model", FP32)
        return self.opened["repaired"]

    def tasks(self, who: str) -> dict:
        model = self.repaired() if who == "repaired" else self.dense
        wanted = Tasks(("commonsense7",), self.data.parent / "tasks", self.settings["limit"])
        started = time.monotonic()
        with Peak(model.device) as peak:
            found = evaluate(model, tasks=wanted, removed=REMOVED if who == "pruned" else ())
        kept = ("value", "stderr", "metric", "count", "version", "metrics", "hash")
        tasks = {name: {key: item[key] for key in kept} for name, item in found.tasks.items()}
        return {"tasks": tasks, "mean": mean_of(found.tasks), "seconds": time.monotonic() - started, "peak_memory_bytes": peak.bytes}

    def speed(self) -> dict:
        found = bench(self.repaired(), against=self.dense, grid=Grid.of(**self.settings["speed"]))
        return {name: getattr(found, name) for name in ("rows", "speedups", "analytic", "bandwidth", "threads", "settings", "seconds")}

    def jobs(self) -> dict[str, Callable[[], dict]]:
        return {f"tasks {who}": lambda who=who: self.tasks(who) for who in MODELS} | {"speed": self.speed}


def table(content: dict) -> str:
    """The results in Markdown, from the JSON alone."""
    pieces, machine, settings = content["pieces"], content["machine"], content["settings"]
    used = ", ".join(f"{name} {content['versions'][name]}" for name in ("torch", "transformers", "lm-eval"))
    parts = [
        f"# Evaluation\n\n{content['model']}, layers 12-17 of 30 removed, fp32; {machine['cpu']}, {machine['torch_threads']} threads, "
        f"{used}, {content['date']}. Made by `make bench-evaluation`.",
        f"## Zero-shot, the first {settings['limit']} items of each task",
        _tasks(pieces),
    ]
    if speed := pieces.get("speed"):
        parts += ["## Speed of the written model against the unpruned one", _speed(speed)]
    return "\n\n".join(parts) + "\n"


def _tasks(pieces: dict) -> str:
    made = [who for who in MODELS if f"tasks {who}" in pieces]
    lines = ["| task | metric | " + " | ".join(made) + " |", "|---|---|" + "--:|" * len(made)]
    for name in SETS["commonsense7"]:
        items = [pieces[f"tasks {who}"]["tasks"][name] for who in made]
        cells = (f"{item['value']:.3f} ± {item['stderr']:.3f}" for item in items)
        lines.append(f"| {name} | {items[0]['metric']} | " + " | ".join(cells) + " |")
    lines.append("| mean | | " + " | ".join(f"{pieces[f'tasks {who}']['mean']:.3f}" for who in made) + " |")
    minutes = [pieces[f"tasks {who}"]["seconds"] / 60 for who in made]
    met = "met" if max(minutes) <= GOALS["minutes"] else "**missed**"
    lines.append("| minutes | | " + " | ".join(f"{value:.1f}" for value in minutes) + " |")
    return "\n".join(lines) + f"\n\nEach within {GOALS['minutes']} minutes: {met}."


def _speed(speed: dict) -> str:
    lines = ["| batch | tokens | prefill | decode | decode by bytes read | share of it |", "|--:|---|--:|--:|--:|--:|"]
    for row in speed["speedups"]:
        shares = f"{row['decode']:.3f} x | {row['ideal']:.3f} x | {row['decode'] / row['ideal']:.2f}"
        lines.append(f"| {row['batch']} | {row['prompt']} + {row['new']} | {row['prefill']:.3f} x | {shares} |")
    first = speed["speedups"][0]
    met = "met" if first["decode"] >= GOALS["decode"] * first["ideal"] else "**missed**"
    bounds = [row["bound"] for row in speed["rows"] if row["batch"] == 1]
    reached = f"{min(bounds):.0%} to {max(bounds):.0%} of the measured bandwidth of {speed['bandwidth'] / 1e9:.1f} GB/s"
    note = f"Decoding reaches {reached}."
    return (
        "\n".join(lines) + f"\n\nBatch {first['batch']}: at least {GOALS['decode']} of the ideal: {met}. {note} {speed['seconds']:.0f} s."
    )


def about(settings: dict) -> dict:
    """What decides the results."""
    return {
        "model": demo_model().name,
        "settings": {key: value for key, value in settings.items() if key != "speed"},
        "versions": versions() | {"lm-eval": metadata.version("lm-eval")},
        "machine": {name: value for name, value in machine().items() if name != "cores"},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=DATA, help="folder of the texts, tasks beside it (%(default)s)")
    parser.add_argument("--out", type=Path, help="the results; the table goes beside it (benchmarks/results/evaluation.json)")
    parser.add_argument("--quick", action="store_true", help="a trial with few items; needs --out")
    parser.add_argument("--again", metavar="NAME", help="measure the pieces anew whose name begins so, such as 'tasks pruned'")
    parser.add_argument("--restart", action="store_true", help="begin anew")
    parser.add_argument("--table", action="store_true", help="only remake the table from the results")
    given = parser.parse_args()
    if given.quick and not given.out:
        parser.error("--quick needs --out FILE, so that the real results stay as they are")
    out, settings = given.out or ROOT / "benchmarks/results/evaluation.json", QUICK if given.quick else FULL
    if given.table:
        print(write_atomic(out.with_suffix(".md"), table(json.loads(out.read_text()))))
        return
    if not (given.data.parent / "tasks/piqa.jsonl").is_file():
        raise UserError(f"no tasks/piqa.jsonl beside {given.data}: say with --data or $SHALLOWER_DATA where the texts are")
    content = begun(out, about(settings), restart=given.restart)
    with tempfile.TemporaryDirectory() as folder, shown():
        for name, make in Measuring(given.data, settings, Path(folder)).jobs().items():
            if name not in content["pieces"] or (given.again and name.startswith(given.again)):
                print(name, file=sys.stderr)
                content["pieces"][name] = make()
                save(out, content)
                print(write_atomic(out.with_suffix(".md"), table(content)))


if __name__ == "__main__":
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    try:
        main()
    except (UserError, OSError) as error:
        sys.exit(f"error: {error}")
