"""Small artifacts of every kind, made by hand, of one model and what came from it."""

from dataclasses import replace
from pathlib import Path

from shallower.artifacts import (
    Analytic,
    CalibrationRecord,
    Comparison,
    Compensation,
    Evaluation,
    Inspection,
    ModelRecord,
    Plan,
    Proof,
    Pruned,
    Record,
    RepairReport,
    Scores,
    Speed,
    Sweep,
    SweepRow,
    save,
)
from shallower.runtime.provenance import Provenance

LAYERS, GONE = 8, [3, 5]
KEPT = [index for index in range(LAYERS) if index not in GONE]
MADE = Provenance("shallower demo --out here", "2026-01-02T03:04:05+00:00", {"python": "3.12.1", "torch": "2.13.0"})
TOKENS = CalibrationRecord("prose.txt", 10, 128, 1234, "none", "c0ffee")
DENSE = ModelRecord("org/tiny", "llama", LAYERS, 1000, [100] * LAYERS, "dense0", list(range(LAYERS)))
SMALL = ModelRecord("here/model", "llama", len(KEPT), 800, [100] * len(KEPT), "small0", KEPT)
PROOF = Proof(
    logits="bit for bit",
    logits_difference=0.0,
    cached_difference=1e-6,
    cached_difference_unpruned=1e-6,
    cached_tolerance=1e-3,
    missing_keys=0,
    unexpected_keys=0,
    dtype="float32",
    tokens=(2, 32),
    layered=False,
    changed_weights=1,
)
SCORES = [9.0, 4.0, 0.5, 0.1, 0.4, 0.2, 3.0, 8.0]


def text(value: float, tokens: str = "beef") -> dict:
    """A perplexity as an evaluation holds it."""
    return {"value": value, "nll": 2.0, "tokens": 500, "length": 128, "stride": 128, "bos": "none", "hash": tokens}


def task(value: float) -> dict:
    return {"value": value, "stderr": 0.02, "metric": "acc", "count": 500, "version": 1, "items": []}


def times(value: float) -> dict:
    return {"median": value, "p10": 0.9 * value, "p90": 1.1 * value, "mean": value}


def counted(parameters: int) -> Analytic:
    return Analytic(parameters, 4 * parameters, 4 * parameters, 64, 0, 2 * parameters)


def speed_row(of: str, factor: float) -> dict:
    timed = {key: times(factor * value) for key, value in (("prefill", 0.1), ("decode", 0.02), ("latency", 0.7))}
    sizes = {"tokens_per_second": 45 / factor, "peak_memory_bytes": int(factor * 2**30), "runs": 9, "bound": 0.8}
    return {"of": of, "batch": 1, "prompt": 128, "new": 32, **timed, **sizes}


def plan(model: ModelRecord = DENSE, removed: list[int] | None = None, **changes) -> Plan:
    gone = GONE if removed is None else removed
    kept = [index for index in range(model.layers) if index not in gone]
    after = model.parameters - 100 * len(gone)
    made = Plan(
        gone,
        kept,
        gone[::-1],
        model.parameters,
        after,
        "lowest",
        "taylor",
        {"norm": 1},
        1,
        1,
        False,
        model,
        TOKENS,
        provenance=MADE,
    )
    return replace(made, **changes)


def pruned(made: Plan, fingerprint: str, *, method: str | None = "sequential") -> Pruned:
    loss = {"dense": 2.0, "before": 3.0, "after": 2.25}
    told = RepairReport(method, {}, TOKENS, loss, changed=["a.weight"]) if method else None
    return Pruned(made, PROOF, made.original(), fingerprint, ["num_hidden_layers 8 -> 6"], told, MADE)


def everything() -> dict[str, Record]:
    """File -> record."""
    drifts = [{"layer": index, "before": drift(index), "after": drift(index / 2)} for index in KEPT]
    loss = {"dense": 2.0, "before": 3.0, "after": 2.25}
    rows = [SweepRow(n, [3, 5, 4, 2][:n], 1000 - 100 * n, {"prose": text(10.0 * 1.3**n)}) for n in range(5)]
    scores = {
        "model": DENSE,
        "calibration": TOKENS,
        "seconds": 2.0,
        "peak_memory_bytes": 2**30,
        "dtype": "float32",
        "provenance": MADE,
    }
    analytic = {"model": counted(800), "against": counted(1000)}
    speedup = {"batch": 1, "prompt": 128, "new": 32, "prefill": 1.2, "decode": 1.25, "latency": 1.24, "ideal": 1.3}
    figure = {
        "value": 10.0,
        "low": 9.0,
        "high": 11.0,
        "delta": 1.2,
        "delta_low": 1.1,
        "delta_high": 1.3,
        "clear": True,
        "effect": "ratio",
        "better": "lower",
        "best": True,
    }
    compared = {
        "name": "dense",
        "fingerprint": "dense0",
        "source": "org/tiny",
        "removed": [],
        "layers": 8,
        "parameters": 1000,
        "how": "dense",
        "figures": {"perplexity prose": figure},
    }
    return {
        "inspection.json": Inspection(
            DENSE, "LlamaForCausalLM", "model.layers", "float32", False, ["a"] * LAYERS, [1], {}, MADE
        ),
        "scores.json": Scores("taylor", {"norm": 1}, SCORES, **scores),
        "plan.json": plan(scores=SCORES),
        "model/shallower.json": pruned(plan(scores=SCORES), "small0"),
        "model/compensation.json": Compensation(
            "sequential",
            {},
            DENSE,
            GONE,
            TOKENS,
            900,
            100,
            loss,
            ["a.weight"],
            drifts,
            {},
            3.0,
            2**30,
            "float32",
            provenance=MADE,
        ),
        "quality/dense.json": Evaluation(DENSE, {"prose": text(10.0)}, {"arc_easy": task(0.5)}, provenance=MADE),
        "quality/virtual.json": Evaluation(
            DENSE, {"prose": text(20.0)}, {"arc_easy": task(0.3)}, removed=GONE, provenance=MADE
        ),
        "quality/small.json": Evaluation(SMALL, {"prose": text(12.0)}, {"arc_easy": task(0.4)}, provenance=MADE),
        "speed.json": Speed(
            SMALL,
            DENSE,
            "default",
            {},
            "cpu",
            2,
            analytic,
            [speed_row("model", 0.8), speed_row("against", 1.0)],
            [speedup],
            2e10,
            60.0,
            "float32",
            MADE,
        ),
        "sweep.json": Sweep(DENSE, [3, 5, 4, 2], "lowest", "taylor", {}, TOKENS, rows, 9.0, "float32", MADE),
        "comparison.json": Comparison("dense", ["perplexity prose"], [compared], ["a note"], [], MADE),
    }


def drift(value: float) -> dict:
    return {"layer": 0, "shift": float(value), "relative_shift": 0.1, "error": value / 10}


def write(folder: Path, records: dict[str, Record]) -> Path:
    for name, record in records.items():
        save(record, folder / name)
    return folder
