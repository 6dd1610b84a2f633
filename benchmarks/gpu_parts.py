"""The parts of the GPU benchmark: each makes steps, one after the other, that are on disk before the next one begins.

A step that fails is told with its error and the next one goes on; one that would not fit in what is left of the time
is skipped. Each part runs in a process of its own, so that neither its memory nor a broken card reaches the next.
"""

import gc
import itertools
import json
import math
import os
import shutil
import sys
import time
import traceback
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from statistics import median

import gpu_models as made
import numpy as np
import torch
from gpu_models import Asked
from harness import plain
from harness.criteria import OF_LAYERS
from harness.machine import others
from speed import SHAPE

from shallower.anatomy.model import Model, checked_device
from shallower.evaluation.analytic import bandwidth, synchronize
from shallower.runtime.memory import Peak
from shallower.walk.replay import replay_of

CRITERIA = [name for name in OF_LAYERS if name != "random"]
PARTS_OF_LAYERS = (("sublayer", "perplexity"), *(("width", name) for name in ("wanda", "flap", "taylor")))
# forwards of all layers that a criterion amounts to; a backward that gives gradients of weights too counts two
FORWARDS = {"block_influence": 1, "angular": 1, "gate": 3, "gradient": 4, "taylor": 4}
FP32 = {"scores": 1e-3, "losses": 1e-4, "repair": 2e-3, "training": 1e-3}  # relative; losses in nats
# scores in bf16: so many times as far as the CPU's bf16 is from its fp32
BF16 = {"least": 2e-2, "times": 3.0, "training": 2e-2}
PUBLISHED = 3  # candidates of the published procedure that are timed
DATASHEET = 989.4e12  # FLOP/s in bf16 of an H100 or H200 (SXM), dense
BOTH = ["fp32", "bf16"]
SMALL = {
    "layers": 6, "hidden": 128, "vocabulary": 512, "samples": 4, "length": 32, "removed": [2, 4], "repair": [32, 32],
    "heal": {"length": 32, "batch_tokens": 256, "steps": 4}, "kinds": ["llama", "qwen3"],
    "dtypes": {"criteria": BOTH, "prune": BOTH, "layered": BOTH, "repair": BOTH[:1], "greedy": BOTH[:1]},
    "healed": [["fp32", "continued"], ["fp32", "lora"], ["bf16", "continued"], ["bf16", "lora"]], "characters": 60_000,
    "repairs": ["sequential", "linear"],
}  # fmt: skip
BILLION = {"layers": 16, "hidden": 2048, "intermediate": 8192, "heads": 32, "vocabulary": 32000}
FULL = {
    "correctness": SMALL,
    "scoring": {"shape": SHAPE, "few": [10, 128], "more": [32, 512], "many": [128, 512], "repeats": 2},
    "decode": {"shape": SHAPE, "shares": [0.2, 0.5], "batches": [1, 8, 64], "prompt": 128, "new": 24, "compiling": 60},
    "repair": {"shape": SHAPE, "share": 0.2, "tokens": [256, 128]},
    "healing": {
        "shape": BILLION,
        "length": 512,
        "batch_tokens": 16384,
        "steps": 20,
        "skipped": 5,
        "characters": 1500000,
    },
}
LITTLE = {"layers": 4, "hidden": 64, "intermediate": 128, "heads": 4, "vocabulary": 512}
TINY_SMALL = {
    "layers": 3, "hidden": 64, "vocabulary": 512, "samples": 4, "length": 16, "removed": [1], "repair": [16, 16],
    "heal": {"length": 16, "batch_tokens": 64, "steps": 3}, "kinds": ["qwen3"], "characters": 60_000,
    "dtypes": {"criteria": ["bf16"], "prune": ["bf16"], "layered": ["fp32"], "repair": ["fp32"], "greedy": ["fp32"]},
    "healed": [["fp32", "continued"], ["bf16", "lora"]], "repairs": ["sequential"],
}  # fmt: skip
TINY = {
    "correctness": TINY_SMALL,
    "scoring": {"shape": LITTLE, "few": [4, 16], "more": [8, 16], "many": [16, 16], "repeats": 1},
    "decode": {"shape": LITTLE, "shares": [0.5], "batches": [1, 4], "prompt": 8, "new": 4, "compiling": 5},
    "repair": {"shape": LITTLE, "share": 0.25, "tokens": [16, 16]},
    "healing": {"shape": LITTLE, "length": 16, "batch_tokens": 64, "steps": 3, "skipped": 1, "characters": 30000},
}


class BrokenCardError(Exception):
    """The card answers no more; no further step of this process can work."""


@dataclass
class Sheet:
    """What a part has found so far; the file is written after every step.

    Attributes:
        until: when the part has to end, on the monotonic clock.
        steps: name -> status (ok, failed, skipped), seconds and what was found.
        known: steps of an earlier run that are not made again.
    """

    file: Path
    until: float
    steps: dict[str, dict] = field(default_factory=dict)
    known: dict[str, dict] = field(default_factory=dict)

    def left(self) -> float:
        return self.until - time.monotonic()

    def step(self, name: str, make: made.Make, needs: float = 0.0, *, always: bool = False) -> dict:
        """Make a step if ``needs`` seconds are left for it; what it found, or an empty dictionary.

        Args:
            always: make it although it is known: others need what it leaves behind.
        """
        if name in self.known and not always:
            self.put(name, self.known[name])
            return self.known[name]
        if self.left() < needs:
            self.put(
                name,
                {"status": "skipped", "why": f"needs about {needs:.0f} s, {max(0.0, self.left()):.0f} s were left"},
            )
            return {}
        started, found = time.monotonic(), {}
        try:
            found = make() | reserved()
            status = {"status": "ok"}
            if wrong := [key for key, check in found.get("checks", {}).items() if not check["ok"]]:
                status = {"status": "failed", "error": f"beyond the tolerance: {', '.join(wrong)}"}
        except Exception as error:  # a step may fail in any way; the others are worth having all the same
            status = {"status": "failed", "error": told(error), "where": traced(error)}
        self.put(name, status | {"seconds": time.monotonic() - started} | found)
        if status["status"] == "failed":
            tidy()
        return found

    def put(self, name: str, found: dict) -> None:
        self.steps[name] = found
        beside = self.file.with_suffix(".part")
        beside.write_text(json.dumps(self.steps))
        os.replace(beside, self.file)
        print(
            f"  {name}: {found['status']}, {found.get('seconds', 0):.1f} s {found.get('error', '')}",
            file=sys.stderr,
            flush=True,
        )


def reserved() -> dict:
    """What the allocator held at most since the last measurement began, with what it keeps for later use."""
    return {"reserved_bytes": torch.cuda.max_memory_reserved()} if torch.cuda.is_available() else {}


def told(error: BaseException, limit: int = 600) -> str:
    """An exception in one line."""
    return f"{type(error).__name__}: {' '.join(str(error).split())}"[:limit]


def traced(error: BaseException, last: int = 6) -> list[str]:
    """The last places in the code that it came through."""
    frames = traceback.extract_tb(error.__traceback__)[-last:]
    return [f"{'/'.join(Path(frame.filename).parts[-3:])}:{frame.lineno} {frame.name}" for frame in frames]


def tidy() -> None:
    """Free what is no longer used.

    Raises:
        BrokenCardError: the card does not answer.
    """
    gc.collect()
    if torch.cuda.is_available():
        try:
            torch.cuda.synchronize()
            torch.cuda.empty_cache()
        except Exception as error:
            raise BrokenCardError(told(error)) from error


@dataclass(frozen=True)
class Work:
    """Where a part works: its scratch folder, the device, and its settings."""

    folder: Path
    device: str
    settings: dict

    def tokens(self, size: list[int]) -> Path:
        return made.tokens(self.folder, *size, self.settings.get("shape", self.settings)["vocabulary"])

    @cached_property
    def rate(self) -> float:
        return matrix_rate(self.device)

    @cached_property
    def removed(self) -> list[int]:
        return middle(self.settings["shape"]["layers"], self.settings["share"])


def middle(layers: int, share: float) -> list[int]:
    """A run of layers about the middle."""
    count = max(1, round(layers * share))
    first = (layers - count) // 2
    return list(range(first, first + count))


def matrix_rate(device: str) -> float:
    """FLOP/s of a large bf16 product of random matrices, the median of some."""
    size, turns = (8192, 5) if device.startswith("cuda") else (256, 1)
    one, other = (torch.randn(size, size, dtype=torch.bfloat16, device=device) for _ in range(2))
    took = []
    for _ in range(6):
        synchronize(device)
        started = time.perf_counter()
        for _ in range(turns):
            one @ other
        synchronize(device)
        took.append((time.perf_counter() - started) / turns)
    return 2 * size**3 / median(took[1:])


def _name() -> dict:
    return {"device": torch.cuda.get_device_name()} if torch.cuda.is_available() else {}


def precision() -> str:
    """How the card computes products of float32: exactly, unless something outside of the package says otherwise."""
    return f"{torch.get_float32_matmul_precision()}, tf32 {torch.backends.cuda.matmul.allow_tf32}"


def rates(work: Work) -> dict:
    """What the card reaches: FLOP/s of bf16 products, bytes read per second."""
    return {"matrix_flops": work.rate, "datasheet_flops": DATASHEET, "bandwidth": bandwidth(work.device)}


# ---------------------------------------------------------------- correctness


def check(difference: float, tolerance: float) -> dict:
    """Whether a difference is within its tolerance; NaN never is."""
    return {"difference": difference, "tolerance": tolerance, "ok": bool(difference <= tolerance)}


def apart(one: Iterable[float], other: Iterable[float]) -> float:
    """The largest difference, as a share of the largest value of the second."""
    one, other = np.array(list(one)), np.array(list(other))
    return float(np.abs(one - other).max() / np.abs(other).max())


def correctness(work: Work, sheet: Sheet) -> None:
    """The card against the CPU, and one layer in memory against all, on small models."""
    torch.set_num_threads(min(4, torch.get_num_threads()))  # more would wait for each other
    own = work.settings
    jobs = {"criteria": _criteria, "prune": _prune, "layered": _layered, "repair": _repair, "greedy": _greedy}
    for name, make in jobs.items():
        for kind, dtype in itertools.product(own["kinds"], own["dtypes"][name]):
            sheet.step(f"{name} {kind} {dtype}", partial(make, work, kind, dtype))
    for (dtype, method), kind in itertools.product(own["healed"], own["kinds"]):
        sheet.step(f"heal {method} {kind} {dtype}", partial(_heal, work, kind, dtype, method))


def _asked(work: Work, kind: str, dtype: str, device: str | None = None, **how) -> Asked:
    return Asked(made.small(work.folder, kind, work.settings), device or work.device, dtype, **how)


def _scores(work: Work, model: Model) -> dict[str, list[float]]:
    """Scores by criterion; perplexities as nats."""
    tokens = work.tokens([work.settings["samples"], work.settings["length"]])
    found = {name: made.scored(model, name, tokens)["scores"] for name in CRITERIA}
    return found | {"perplexity": [math.log(one) for one in found["perplexity"]]}


def _criteria(work: Work, kind: str, dtype: str) -> dict:
    models = [_asked(work, kind, dtype, device).opened() for device in (work.device, "cpu")]
    ours, other = (_scores(work, model) for model in models)
    if dtype == "bf16":
        exact = _scores(work, _asked(work, kind, "fp32", "cpu").opened())
        allowed = {name: max(BF16["least"], BF16["times"] * apart(other[name], exact[name])) for name in CRITERIA}
    else:
        allowed = {name: FP32["losses" if name == "perplexity" else "scores"] for name in CRITERIA}
    checks = {name: check(apart(ours[name], other[name]), allowed[name]) for name in CRITERIA}
    return {"checks": checks | walked(models[0])}


def walked(model: Model) -> dict[str, dict]:
    """A check that the model is walked layer by layer; where it is not, everything is slower, and nothing says so."""
    return {"walked layer by layer": check(float(replay_of(model) is None), 0.0)}


def _layered(work: Work, kind: str, dtype: str) -> dict:
    ways = (_asked(work, kind, dtype, layered=layered) for layered in (True, False))
    layered, resident = (_scores(work, asked.opened()) for asked in ways)
    return {"checks": {name: check(apart(layered[name], resident[name]), 0.0) for name in CRITERIA}}


def _prune(work: Work, kind: str, dtype: str) -> dict:
    """The proof raises where it fails, for the dense model or for the pruned one."""
    out = work.folder / "out-pruned"
    found = made.pruned(_asked(work, kind, dtype).opened(loaded=False), work.settings["removed"], out)
    shutil.rmtree(out)
    kept = ("logits", "logits_difference", "cached_difference", "cached_difference_unpruned", "dtype")
    return {"verified": {name: found["verified"][name] for name in kept}}


def _repair(work: Work, kind: str, dtype: str) -> dict:
    tokens, checks, losses = work.tokens(work.settings["repair"]), {}, {}
    for method in work.settings["repairs"]:
        ours, other = (
            made.repaired(_asked(work, kind, dtype, device).opened(), work.settings["removed"], method, tokens)["loss"]
            for device in (work.device, "cpu")
        )
        losses[method] = ours
        checks[method] = check(max(abs(ours[name] / other[name] - 1) for name in ("before", "after")), FP32["repair"])
    return {"checks": checks, "losses": losses}


def _greedy(work: Work, kind: str, dtype: str) -> dict:
    tokens = work.tokens([work.settings["samples"], work.settings["length"]])
    models = (_asked(work, kind, dtype, device).opened() for device in (work.device, "cpu"))
    ours, other = (made.greedy(model, 2, tokens) for model in models)
    return {"order": ours, "checks": {"the same layers": check(float(ours != other), 0.0)}}


def _heal(work: Work, kind: str, dtype: str, method: str) -> dict:
    own, out, checks = work.settings, work.folder / "out-healed", {}
    texts = [made.excerpt(work.folder, own["characters"])]
    sides = (_asked(work, kind, dtype, device) for device in (work.device, "cpu"))
    ours, other = (made.healed(asked, texts, out, own["heal"], method=method) for asked in sides)
    for name in ("losses", "norms"):
        first, last = apart(ours[name][:1], other[name][:1]), apart(ours[name], other[name])
        allowed = FP32["training"] if dtype == "fp32" else BF16["training"]
        allowed *= 1 if name == "losses" else 5  # a norm feels rounding more than a loss
        checks |= {f"{name}, first step": check(first, allowed), f"{name}, all steps": check(last, 5 * allowed)}
    return {"checks": checks, "losses": ours["losses"]}


# ---------------------------------------------------------------- scoring


def scoring(work: Work, sheet: Sheet) -> None:
    """Seconds and memory of all criteria on a 7B-shaped model; all removal losses against the published procedure."""
    own = work.settings
    folder, took = made.large(work.folder, own["shape"], work.device)
    sheet.step("writing the model", lambda: took)
    sheet.step("the card", partial(rates, work))
    model = Asked(folder, work.device).opened(loaded=False)
    sheet.step("opening the model", partial(_opening, model))
    sheet.step("warming up", partial(_scored, work, model, "block_influence", own["few"], 1))

    def timed(name: str, size: list[int], repeats: int = 1, needs: float = 0.0, label: str = "") -> dict:
        label = f"{name} {size[0]} x {size[1]}{label}"
        return sheet.step(label, partial(_scored, work, model, name, size, repeats), needs)

    first = timed("perplexity", own["few"], own["repeats"])
    sheet.step("published procedure", partial(_published, work, model, first), 5)
    for name in [name for name in CRITERIA if name != "perplexity"]:
        timed(name, own["few"], own["repeats"])
    for units, name in PARTS_OF_LAYERS:
        label = f"{units}: {name} {own['few'][0]} x {own['few'][1]}"
        sheet.step(label, partial(_scored, work, model, name, own["few"], 1, units), 5)
    cheap = [(name, own["many"]) for name in ("block_influence", "angular", "taylor", "gate")]
    for name, size in [("perplexity", own["more"]), *cheap]:
        timed(name, size, needs=1.5 + 4 * _flops(work, name, size) / work.rate)
    model.unload()
    tidy()
    reading = took["bytes"] / 1.5e9  # seconds at that many bytes per second, for all that has to be read
    model = Asked(folder, work.device, layered=True).opened(loaded=False)
    sheet.step("opening the model layered", partial(_opening, model), reading / 4)
    for name, readings in (("block_influence", 1), ("perplexity", 1), ("taylor", 2)):
        timed(name, own["few"], needs=reading * readings, label=" layered")


def _opening(model: Model) -> dict:
    with Peak(model.device) as peak:
        _ = model.stack
    return {"peak_bytes": peak.bytes, "checks": walked(model)}


def _flops(work: Work, name: str, size: list[int]) -> float:
    """2 per parameter and token of the products that a criterion has to make; attention between tokens is left out."""
    shape, (samples, length) = work.settings["shape"], size
    layer, head = made.products(shape)
    layers = shape["layers"]
    if name == "perplexity":
        forwards = layers * (layers + 1) // 2 - 1  # removals share what is equal; nobody needs the whole model's end
        return 2.0 * samples * (layer * forwards * length + head * layers * (length - 1))
    ends = 2 * head if name in ("gate", "gradient", "taylor") else 0  # the logits, and the gradient of the last stream
    return 2.0 * samples * length * (layer * layers * FORWARDS.get(name, 0) + ends)


def _scored(work: Work, model: Model, name: str, size: list[int], repeats: int, units: str = "layer") -> dict:
    """Seconds of every repeat, the largest peak, and of layers the share of the card's rate."""
    runs = [made.scored(model, name, work.tokens(size), units) for _ in range(repeats)]
    took, flops = [run["seconds"] for run in runs], _flops(work, name, size) if units == "layer" else 0.0
    found = {"took": took, "best_seconds": min(took), "peak_bytes": max(run["peak_bytes"] for run in runs)}
    found |= {"flops": flops, "share_of_rate": flops / min(took) / work.rate} if flops else {}
    return found | ({"scores": runs[-1]["scores"]} if name == "perplexity" and units == "layer" else {})


def _published(work: Work, model: Model, ours: dict) -> dict:
    """For each candidate a copy without the layer, one sample at a time; and whole forwards with it bypassed."""
    layers = work.settings["shape"]["layers"]
    chosen = sorted({round(place * (layers - 1) / (PUBLISHED - 1)) for place in range(PUBLISHED)})
    tokens = torch.from_numpy(np.load(work.tokens(work.settings["few"]))).to(work.device)
    with torch.no_grad():
        plain.loss(model.module, tokens)  # warms up: shapes that no walk has had

    def copies() -> dict[int, float]:
        return plain.perplexities(model.module, tokens, chosen)[0]

    def bypassing() -> dict[int, float]:
        found = {}
        for index in chosen:
            with torch.no_grad(), plain.bypassed(model.module, [index]):
                found[index] = math.exp(float(plain.loss(model.module, tokens)))
        return found

    found, values = {"measured": len(chosen), "layers": layers}, {}
    for name, run in (("copies", copies), ("bypassing", bypassing)):
        with Peak(work.device) as peak:
            values = run()
        found |= {f"{name}_seconds": peak.seconds / len(chosen) * layers, f"{name}_peak_bytes": peak.bytes}
    if ours:
        for name in ("copies", "bypassing"):
            found[f"{name}_times_ours"] = found[f"{name}_seconds"] / ours["best_seconds"]
        found["nats_apart"] = max(abs(math.log(ours["scores"][index] / value)) for index, value in values.items())
    return found


# ---------------------------------------------------------------- decode


def decode(work: Work, sheet: Sheet) -> None:
    """How much faster a 7B-shaped model decodes with fewer layers, against the ideal by bytes read."""
    own = work.settings
    folder, _ = made.large(work.folder, own["shape"], work.device)
    dense, fewer = Asked(folder, work.device).opened(loaded=False), {}
    for share in reversed(own["shares"]):
        out, gone = work.folder / f"without-{share}", middle(own["shape"]["layers"], share)
        sheet.step(f"writing without {share:.0%}", partial(made.pruned, dense, gone, out, verify=False), always=True)
        if (out / "config.json").is_file():
            fewer[f"without {share:.0%}"] = Asked(out, work.device).opened(loaded=False)
    card, batches = work.device.startswith("cuda"), own["batches"]
    models = fewer | {"all layers": dense}
    grid = {"prompts": (own["prompt"],), "new": (own["new"],), "repeats": 3}
    growing = grid | {"warmup": 1, "batches": tuple(batches)}
    static = grid | {"warmup": 2, "cache": "static", "compiled": card}
    needs = own["compiling"]
    for batch in (batches[0], None, *reversed(batches[1:])):  # None: all of them with a growing cache
        if batch is None:
            sheet.step("dynamic cache", partial(made.decoded, models, growing), 10)
            continue
        label = f"batch {batch}, static cache{', CUDA graphs' * card}"
        sheet.step(label, partial(made.decoded, models, static | {"batches": (batch,)}), needs)
        needs = 0.95 * sheet.steps[label].get("seconds", needs)  # most of it is compiling


# ---------------------------------------------------------------- repair


def repair(work: Work, sheet: Sheet) -> None:
    """Seconds and memory of repairs of a 7B-shaped model; of random weights, so whether they help says nothing."""
    folder, _ = made.large(work.folder, work.settings["shape"], work.device)
    model = Asked(folder, work.device).opened(loaded=False)
    sheet.step("opening the model", partial(_opening, model))
    sheet.step("sequential, as prune does it", partial(_repaired, work, model, "sequential", work.folder / "out"), 5)
    needs = 0.8 * sheet.steps["sequential, as prune does it"].get("seconds", 0)
    sheet.step("sequential, without a journal", partial(_repaired, work, model, "sequential", None), needs)
    sheet.step("linear, as prune does it", partial(_repaired, work, model, "linear", work.folder / "out"), needs / 3)


def _repaired(work: Work, model: Model, name: str, beside: Path | None) -> dict:
    found = made.repaired(model, work.removed, name, work.tokens(work.settings["tokens"]), beside)
    return found | {"removed": work.removed, "best_seconds": found.pop("seconds")}


# ---------------------------------------------------------------- healing


def healing(work: Work, sheet: Sheet) -> None:
    """Tokens per second and memory of healing a 1B-shaped model, and of the transformers Trainer on the same rows."""
    folder, took = made.large(work.folder, work.settings["shape"], work.device, talks=True)
    sheet.step("writing the model", lambda: took)
    needs = {"heal": 5.0, "Trainer": 5.0}
    for method in ("continued", "lora"):
        for name, make in (("heal", _trained), ("Trainer", _trainer)):
            label = f"{name} {method}"
            sheet.step(label, partial(make, work, folder, method), needs[name])
            needs[name] = 0.9 * sheet.steps[label].get("seconds", needs[name])  # adapters take about as long as weights
            tidy()  # what a training leaves behind in circles


def _used(work: Work, method: str, per_second: float) -> dict:
    """The model's FLOPs per second: 6 per parameter and token, 4 where the weights themselves get no gradients."""
    each = 4 if method == "lora" else 6
    flops = each * made.parameters(work.settings["shape"]) * per_second
    return {"flops_per_parameter": each, "mfu": flops / DATASHEET, "share_of_rate": flops / work.rate}


def _trained(work: Work, folder: Path, method: str) -> dict:
    own = work.settings
    texts, out = [made.excerpt(work.folder, own["characters"])], work.folder / "out-healed"
    found = made.healed(Asked(folder, work.device), texts, out, own, method=method, skipped=own["skipped"])
    return found | _used(work, method, found["tokens_per_second"])


def _trainer(work: Work, folder: Path, method: str) -> dict:
    """Plain transformers in bf16 with fp32 weights, the whole batch at once."""
    import gpu_trainer  # only here: it takes seconds

    own = work.settings
    text = made.excerpt(work.folder, own["characters"])
    with Peak(work.device) as peak:
        losses, took = gpu_trainer.trained(
            folder, text, work.folder / "trainer", own, work.device, lora=method == "lora"
        )
    per_second = own["batch_tokens"] / median(took[max(0, own["skipped"] - 1) :])
    found = {"tokens_per_second": per_second, "losses": losses, "peak_bytes": peak.bytes}
    return found | _used(work, method, per_second)


# ---------------------------------------------------------------- one part


def run(name: str, folder: Path, until: float, *, tiny: bool) -> None:
    """Make one part in this process; what it finds is in a file of its name in the folder."""
    torch.manual_seed(0)
    known = folder / f"{name}.known.json"
    sheet = Sheet(folder / f"{name}.json", until, known=json.loads(known.read_text()) if known.is_file() else {})
    work = Work(folder, checked_device(None), (TINY if tiny else FULL)[name])
    try:
        with others() as shared:
            PARTS[name](work, sheet)
        (folder / f"{name}.ended").write_text(json.dumps(shared | {"float32_products": precision()} | _name()))
    except Exception as error:
        sheet.put(name, {"status": "failed", "error": told(error), "where": traced(error)})


PARTS: dict[str, Callable[[Work, Sheet], None]] = {
    one.__name__: one for one in (correctness, scoring, decode, repair, healing)
}
