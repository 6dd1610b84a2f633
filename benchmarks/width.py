"""Depth against width at equal parameters: layers, their parts, Wanda-sp, FLAP, LLM-Pruner, uniform width, and both.

On the CPU. Every way removes 10, 20 and 30 % of the parameters. What is left is evaluated on three texts as it is and
with the repair that goes with the way: FLAP's bias, else ``sequential`` fitted on the shipped prose; at one share it
answers tasks, as repaired and after the same short LoRA on novels. Decoding and prefill of what is written are timed
against the dense model at several batch sizes, with the memory of weights and cache. Each finished piece is on disk
before the next one begins; table and plot are made from the JSON file alone. Repaired models are kept in runs/width. A
second model is measured too where $SHALLOWER_SECOND_MODEL names one.
"""

import json
import tempfile
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from harness.models import Measured, about, sources
from harness.pieces import Jobs, check_data, needed, run
from harness.store import CALIBRATION, FP32, ROOT, TEXTS
from width_tables import CHANCE, picture, table

from shallower import (
    Amount,
    Calibration,
    Grid,
    Refusal,
    RepairOptions,
    SelectionOptions,
    Tasks,
    Training,
    bench,
    heal,
    open_model,
    plan,
    prune,
)
from shallower.anatomy.model import Model
from shallower.artifacts import NOTHING, Plan, Pruned, load
from shallower.artifacts.io import dumps
from shallower.evaluation.perplexity import perplexity
from shallower.evaluation.removals import removals_perplexity
from shallower.evaluation.tasks import zero_shot
from shallower.runtime.memory import Peak


class Way(NamedTuple):
    """How something is removed and repaired."""

    units: str
    criterion: str
    choosing: SelectionOptions
    repair: str = "sequential"


WAYS = {
    "depth": Way("layer", "block_influence", SelectionOptions("window")),
    "depth-taylor": Way("layer", "taylor", SelectionOptions("lowest")),
    "depth-perplexity": Way("layer", "perplexity", SelectionOptions("lowest")),
    "depth-greedy": Way("layer", "perplexity", SelectionOptions("greedy")),
    "sublayers": Way("sublayer", "perplexity", SelectionOptions("greedy")),
    "wanda-sp": Way("width", "wanda", SelectionOptions("uniform")),
    "flap": Way("width", "flap", SelectionOptions("standardised"), "bias"),
    "llm-pruner": Way("width", "taylor", SelectionOptions("uniform", keep_first=4, keep_last=2)),
    "uniform-mlp": Way("width", "activation", SelectionOptions("uniform", {"parts": "mlp"}, multiple_of=16)),
    "uniform-taylor": Way("width", "taylor", SelectionOptions("uniform", multiple_of=16)),
    "depth+width": Way("layer+width", "activation", SelectionOptions("uniform", {"parts": "mlp"}, multiple_of=16)),
}
FULL: dict[str, Any] = {
    **{"shares": [0.1, 0.2, 0.3], "first": 0.2, "scoring": [32, 128], "fitting": [64, 128], "tokens": 2048},
    **{"length": 128, "batches": [1, 8, 32], "prompt": 128, "new": 16, "repeats": 3},
    **{"tasks": dict.fromkeys(CHANCE, 50) | {"lambada_openai": 100}, "train_tokens": 16384},
}
QUICK = FULL | {
    **{"shares": [0.2], "scoring": [4, 32], "fitting": [8, 32], "tokens": 256, "length": 32},
    **{"batches": [1], "prompt": 16, "new": 4, "repeats": 1, "tasks": {"piqa": 2}, "train_tokens": 128},
}
BOOKS = ("great-expectations_1400", "bleak-house_1023")  # what is trained on


def jobs(data: Path, settings: dict, pieces: dict) -> Jobs:
    """The pieces, the share that is looked at first before all others."""
    check_data(data, CALIBRATION, *TEXTS)
    found: dict[str, Callable[[], dict]] = {}
    shares = sorted(settings["shares"], key=lambda share: share != settings["first"])
    for source in sources():
        one, name = Bench(source, data, settings), source.stem
        found[f"dense {name}"] = one.dense
        for share in shares:
            for way in WAYS:
                key = f"{name} {way} {share:g}"
                made = partial(needed, pieces, f"choose {key}")
                found[f"choose {key}"] = partial(one.choose, way, share)
                found[f"repair {key}"] = partial(one.repair, made, key)
        for act in ("tasks", "heal"):
            for way in WAYS:
                key = f"{name} {way} {settings['first']:g}"
                found[f"{act} {key}"] = partial(getattr(one, act), partial(needed, pieces, f"choose {key}"), key)
        found[f"tasks {name} dense"] = one.dense_tasks
        for share in shares:
            for way in WAYS:
                made = partial(needed, pieces, f"choose {name} {way} {share:g}")
                found[f"speed {name} {way} {share:g}"] = partial(one.speed, made)
    return found


class Bench(Measured):
    """One model: what goes by every way, and what that costs."""

    def dense(self) -> dict:
        """Perplexity of the model as it is."""
        found = removals_perplexity(self.model, self.texts, [NOTHING], "dense")[0]
        return {"perplexity": {name: one.value for name, one in found.items()}}

    def choose(self, way: str, share: float) -> dict:
        """What goes, and the perplexity without it."""
        how = WAYS[way]
        with Peak("cpu") as peak:
            chosen = plan(
                self.model,
                amount=Amount(ratio=share),
                choosing=how.choosing,
                criterion=how.criterion,
                units=how.units,
                calibration=self.calibration,
                out=ROOT / f"runs/width/{self.source.stem}-{way}-{share:g}.json",  # a search goes on there
            )
        found = removals_perplexity(self.model, self.texts, [chosen.removal], way)[0]
        return {
            "plan": dumps(replace(chosen, model=replace(chosen.model, source=self.source.stem))),  # no path of here
            "what": str(chosen.removal),
            "share": chosen.share,
            "seconds": peak.seconds,
            "perplexity": {name: one.value for name, one in found.items()},
        }

    def repaired(self, made: Callable[[], dict], key: str) -> Path:
        """The folder of the same repaired by what goes with the way, in float32; made once."""
        out = ROOT / "runs/width" / f"{self.settings['fitting'][0]} {key}".replace(" ", "-")
        if not out.is_dir():
            samples, length = self.settings["fitting"]
            how = RepairOptions(WAYS[key.split(" ")[1]].repair, {}, Calibration(samples=samples, length=length))
            _written(self.model, _plan(made()), out, compensating=how)
        return out

    def repair(self, made: Callable[[], dict], key: str) -> dict:
        """Perplexity of what is repaired."""
        folder = self.repaired(made, key)
        record = json.loads((folder / "shallower.json").read_text())
        return self.perplexities(folder) | {
            "taken": bool(record["compensation"]["changed"]),
            "format": record["format"],
        }

    def perplexities(self, folder: Path) -> dict:
        """Perplexity by text of a folder."""
        model = open_model(folder, FP32)
        return {"perplexity": {name: perplexity(model, one).value for name, one in self.texts.items()}}

    def tasks(self, made: Callable[[], dict], key: str) -> dict:
        """Tasks of what is repaired."""
        return {"tasks": self.answers(open_model(self.repaired(made, key), FP32))}

    def dense_tasks(self) -> dict:
        """Tasks of the model as it is."""
        return {"tasks": self.answers(self.model)}

    def answers(self, model: Model) -> dict:
        """Task -> value and count, the first items of each."""
        found = {}
        for name, limit in self.settings["tasks"].items():
            told = zero_shot(model, Tasks((name,), self.data.parent / "tasks", limit))[name]
            found[name] = {"value": told.metrics["acc"], "count": told.count}
        return found

    def heal(self, made: Callable[[], dict], key: str) -> dict:
        """Perplexity and tasks of what is repaired and then trained, adapters merged."""
        with tempfile.TemporaryDirectory() as place:
            books = [self.data / f"books/{name}.txt" for name in BOOKS]
            how = {"train_tokens": self.settings["train_tokens"], "method": "lora", "compute": FP32}
            training = Training(length=self.settings["length"], batch_tokens=8 * self.settings["length"])
            heal(self.repaired(made, key), data=books, out=Path(place) / "out", training=training, **how)
            folder = Path(place) / "out"
            return self.perplexities(folder) | {"tasks": self.answers(open_model(folder, FP32))}

    def speed(self, made: Callable[[], dict]) -> dict:
        """Decoding and prefill against the dense model, and memory, of what is written."""
        chosen, own = _plan(made()), self.settings
        with tempfile.TemporaryDirectory() as place:
            out = Path(place) / "out"
            written = _written(self.model, chosen, out)
            sizes = {"batches": own["batches"], "prompts": [own["prompt"]], "new": [own["new"]]}
            grid = Grid.of(**{name: tuple(each) for name, each in sizes.items()}, repeats=own["repeats"])
            found = bench(out, against=self.model, grid=grid, compute=FP32)
        rows = [{"batch": row.batch, "decode": row.decode, "prefill": row.prefill} for row in found.speedups]
        analytic = found.analytic["model"]
        return {
            "rows": rows,
            "format": written.format,
            "bytes": written.weight_bytes,
            "cache": int(analytic.kv_bytes_per_token),
        }


def _written(model: Model, chosen: Plan, out: Path, **how: Any) -> Pruned:
    """Write what is left, plain where a class holds it."""
    try:
        return prune(model, chosen, out=out, verify=False, save_dtype="fp32", **how)
    except Refusal:  # no plain class holds it
        return prune(model, chosen, out=out, verify=False, save_dtype="fp32", format="custom", **how)


def _plan(made: dict) -> Plan:
    """The plan that a piece holds."""
    with tempfile.TemporaryDirectory() as place:
        path = Path(place) / "plan.json"
        path.write_text(made["plan"], encoding="utf-8")
        return load(path, "plan")


if __name__ == "__main__":
    run(
        __doc__,
        "width",
        beside=f"text/{CALIBRATION}",
        settings=(FULL, QUICK),
        about=about,
        jobs=jobs,
        table=table,
        picture=picture,
    )
