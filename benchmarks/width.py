"""Depth against width at equal parameters: layers, Wanda-sp, FLAP, LLM-Pruner, uniform width, and both, on the CPU.

Every way removes 10, 20 and 30 % of the parameters. What is left is evaluated on three texts as it is and with the
repair that goes with the way: FLAP's bias, else ``sequential`` fitted on the shipped prose. Then it is written, and
decoding and prefill are timed against the dense model at several batch sizes, with the memory of weights and cache.
Each finished piece is on disk before the next one begins; table and plot are made from the JSON file alone. A second
model is measured too where $SHALLOWER_SECOND_MODEL names one.
"""

import tempfile
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from harness.models import Measured, about, sources
from harness.pieces import Jobs, check_data, run
from harness.store import CALIBRATION, FP32, TEXTS
from width_tables import picture, table

from shallower import (
    Amount,
    Calibration,
    Grid,
    Refusal,
    RepairOptions,
    SelectionOptions,
    bench,
    plan,
    prune,
)
from shallower.artifacts import NOTHING, Plan, load
from shallower.artifacts.io import dumps
from shallower.evaluation.perplexity import perplexity
from shallower.evaluation.removals import removals_perplexity
from shallower.runtime.memory import Peak
from shallower.stages.repair import fit_repair


class Way(NamedTuple):
    """How something is removed and repaired."""

    units: str
    criterion: str
    choosing: SelectionOptions
    repair: str = "sequential"


WAYS = {
    "depth": Way("layer", "block_influence", SelectionOptions("window")),
    "depth-taylor": Way("layer", "taylor", SelectionOptions("lowest")),
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
}
QUICK = FULL | {
    **{"shares": [0.2], "scoring": [4, 32], "fitting": [8, 32], "tokens": 256, "length": 32},
    **{"batches": [1], "prompt": 16, "new": 4, "repeats": 1},
}


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
                made = partial(pieces.get, f"choose {key}")
                found[f"choose {key}"] = partial(one.choose, way, share)
                found[f"repair {key}"] = partial(one.repair, made, way)
        for share in shares:
            for way in WAYS:
                made = partial(pieces.get, f"choose {name} {way} {share:g}")
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
            )
        found = removals_perplexity(self.model, self.texts, [chosen.removal], way)[0]
        return {
            "plan": dumps(replace(chosen, model=replace(chosen.model, source=self.source.stem))),  # no path of here
            "what": str(chosen.removal),
            "share": chosen.share,
            "seconds": peak.seconds,
            "perplexity": {name: one.value for name, one in found.items()},
        }

    def repair(self, made: Callable[[], dict], way: str) -> dict:
        """The same repaired, by what goes with the way."""
        chosen = _plan(made())
        samples, length = self.settings["fitting"]
        how = RepairOptions(WAYS[way].repair, {}, Calibration(samples=samples, length=length))
        patch, report = fit_repair(self.model, chosen.removal, how)
        with self.model.patched(patch):
            found = {
                name: perplexity(self.model, one, removal=chosen.removal).value for name, one in self.texts.items()
            }
        return {"perplexity": found, "taken": bool(patch), "seconds": report.seconds}

    def speed(self, made: Callable[[], dict]) -> dict:
        """Decoding and prefill against the dense model, and memory, of what is written."""
        chosen, own = _plan(made()), self.settings
        with tempfile.TemporaryDirectory() as place:
            out = Path(place) / "out"
            try:
                written = prune(self.model, chosen, out=out, verify=False)
            except Refusal:  # no plain class holds it
                written = prune(self.model, chosen, out=out, verify=False, format="custom")
            grid = Grid(tuple(own["batches"]), (own["prompt"],), (own["new"],), repeats=own["repeats"])
            found = bench(out, against=self.model, grid=grid, compute=FP32)
        rows = [{"batch": row.batch, "decode": row.decode, "prefill": row.prefill} for row in found.speedups]
        analytic = found.analytic["model"]
        return {
            "rows": rows,
            "format": written.format,
            "bytes": written.weight_bytes,
            "cache": int(analytic.kv_bytes_per_token),
        }


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
