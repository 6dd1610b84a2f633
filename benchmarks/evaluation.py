"""What is measured of a pruned model, and how long that takes: SmolLM2-135M-Instruct without layers 12-17, plain and
repaired, fp32, CPU.

The seven zero-shot tasks through lm-eval from local data, and prefill and decode speed of the written model against the
dense one, in turns. Each finished piece is on disk before the next one begins. The table is made from the JSON file
alone.
"""

import tempfile
import time
from collections.abc import Callable
from importlib import metadata
from pathlib import Path

from harness.machine import machine
from harness.pieces import run
from harness.store import CALIBRATION, FP32, machines_text

from shallower import Calibration, Grid, Tasks, bench, drop, evaluate, open_model, prune
from shallower.anatomy.model import Model
from shallower.artifacts import plain
from shallower.cli.demo import demo_model
from shallower.evaluation.tasks import SETS, mean_of
from shallower.runtime.memory import Peak
from shallower.runtime.provenance import versions
from shallower.stages.repair_options import RepairOptions

REMOVED = [*range(12, 18)]
FULL = {"limit": 200, "samples": 256, "speed": {}}
QUICK = {"limit": 5, "samples": 8, "speed": {"batches": (1,), "prompts": (16,), "new": (8,), "repeats": 2}}
MODELS = ("dense", "pruned", "repaired")
GOALS = {"minutes": 20, "decode": 0.9}


class Measuring:
    """The pieces and how each is made; the models are opened, and the pruned one is written, once."""

    def __init__(self, data: Path, settings: dict):
        self.data, self.settings, self._temporary = data, settings, tempfile.TemporaryDirectory()
        self.folder = Path(self._temporary.name)
        self.dense = open_model(demo_model(), FP32)
        self.opened: dict[str, Model] = {}

    def repaired(self) -> Model:
        """The written model, repaired."""
        if "repaired" not in self.opened:
            text = Calibration(
                text=str(self.data / CALIBRATION), samples=self.settings["samples"], seed=4321, at_most=True
            )
            plan = drop(self.dense, REMOVED)
            prune(self.dense, plan, out=self.folder / "model", compensating=RepairOptions("sequential", {}, text))
            self.opened["repaired"] = open_model(self.folder / "model", FP32)
        return self.opened["repaired"]

    def tasks(self, who: str) -> dict:
        model = self.repaired() if who == "repaired" else self.dense
        wanted = Tasks(("commonsense7",), self.data.parent / "tasks", self.settings["limit"])
        started = time.monotonic()
        with Peak(model.device) as peak:
            found = evaluate(model, tasks=wanted, removed=REMOVED if who == "pruned" else ())
        kept = ("value", "stderr", "metric", "count", "version", "metrics", "hash")
        tasks = {name: {key: getattr(item, key) for key in kept} for name, item in found.tasks.items()}
        return {
            "tasks": tasks,
            "mean": mean_of(found.tasks),
            "seconds": time.monotonic() - started,
            "peak_memory_bytes": peak.bytes,
        }

    def speed(self) -> dict:
        found = bench(self.repaired(), against=self.dense, grid=Grid.of(**self.settings["speed"]))
        return {
            name: plain(getattr(found, name))
            for name in ("rows", "speedups", "analytic", "bandwidth", "threads", "settings", "seconds")
        }

    def jobs(self) -> dict[str, Callable[[], dict]]:
        return {f"tasks {who}": lambda who=who: self.tasks(who) for who in MODELS} | {"speed": self.speed}


def table(content: dict) -> str:
    """The results in Markdown, from the JSON alone."""
    pieces, settings = content["pieces"], content["settings"]
    used = ", ".join(f"{name} {content['versions'][name]}" for name in ("torch", "transformers", "lm-eval"))
    parts = [
        f"# Evaluation\n\n{content['model']}, layers 12-17 of 30 removed, fp32; {machines_text(content)}, "
        f"{used}, {content['date']}. Made by `make bench-evaluation`.",
        f"## Zero-shot, the first {settings['limit']} items of each task",
        _tasks(pieces),
    ]
    if speed := pieces.get("speed"):
        parts += ["## Speed of the written model against the dense one", _speed(speed)]
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
        "\n".join(lines) + f"\n\nBatch {first['batch']}: at least {GOALS['decode']} of the ideal: {met}. {note} "
        f"{speed['seconds']:.0f} s."
    )


def about(settings: dict) -> dict:
    """What decides the results."""
    return {
        "model": demo_model().name,
        "settings": {key: value for key, value in settings.items() if key != "speed"},
        "versions": versions() | {"lm-eval": metadata.version("lm-eval")},
        "machine": machine(),
    }


if __name__ == "__main__":
    run(
        __doc__,
        "evaluation",
        beside="tasks/piqa.jsonl",
        settings=(FULL, QUICK),
        about=about,
        jobs=lambda data, settings, _: Measuring(data, settings).jobs(),
        table=table,
    )
