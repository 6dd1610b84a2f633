"""How fast shallower is: against plain transformers, its own lower bound, a copy of files and mergekit, on the CPU.

SmolLM2-135M-Instruct for the time of the walks, a model of Llama 2 7B's shape with random weights for what is larger
than memory. Each piece runs in a fresh process of this script; what is compared runs in turn within one, A B A B. A
finished piece is on disk before the next one begins. The table is made from the JSON file alone.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from statistics import median
from typing import NamedTuple

import torch
from harness import big, plain
from harness.criteria import OF_LAYERS
from harness.machine import BUSY, least, machine, others, processor_text
from harness.pieces import check_data, ended, parsed, parser_of
from harness.store import CALIBRATION, begun, save

from shallower import Amount, Calibration, Compute, SelectionOptions, UserError, methods, open_model, plan, score
from shallower.anatomy.kernels import fast_products
from shallower.anatomy.model import Model
from shallower.cli.demo import demo_model
from shallower.data.tokens import calibration_samples
from shallower.planning.amount import protection
from shallower.runtime.memory import Peak, in_use, total_memory
from shallower.runtime.provenance import versions
from shallower.storage.files import write_atomic
from shallower.walk.batching import batches, chunks
from shallower.walk.removals import head_nll
from shallower.walk.replay import replay_of

SMALL = {
    "samples": 10,
    "length": 128,
    "seed": 1234,
    "repeats": 3,
    "candidates": 30,
    "greedy": 6,
    "greedy_candidates": None,
}
SMALL_QUICK = SMALL | {"samples": 2, "length": 64, "repeats": 2, "candidates": 6, "greedy": 2, "greedy_candidates": 3}
SHAPE = {"layers": 32, "hidden": 4096, "intermediate": 11008, "heads": 32, "vocabulary": 32000}
BIG = {
    "shape": SHAPE,
    "samples": 10,
    "length": 128,
    "seed": 0,
    "limit_bytes": 3 << 30,
    "drop": [*range(10, 16)],
    "repeats": 3,
}
SHAPE_QUICK = SHAPE | {"hidden": 1536, "intermediate": 4128, "heads": 16}  # 2 GB, so that the limit makes it layered
BIG_QUICK = BIG | {"shape": SHAPE_QUICK, "samples": 2, "length": 32, "limit_bytes": 2 << 30, "repeats": 1}
LAYERED = ("block_influence", "taylor", "perplexity")
NARROWING = ("wanda", "flap", "taylor")  # criteria of groups that are measured
LIMITED = (
    *LAYERED,
    *(f"{name} of groups" for name in NARROWING),
    "prune",
    big.NARROW,
    big.REPAIR,
    big.LOCAL,
    "plain backward",
)
Arms = dict[str, list[float]]


def in_turn(arms: dict[str, Callable[[], float | None]], repeats: int) -> Arms:
    """Seconds of every arm, A B A B; an arm may return its own."""
    found: Arms = {name: [] for name in arms}
    for _ in range(repeats):
        for name, run in arms.items():
            started = time.perf_counter()
            own = run()
            found[name].append(time.perf_counter() - started if own is None else own)
            print(f"  {name}: {found[name][-1]:.2f} s", file=sys.stderr)
    return found


class Small:
    """The pieces on SmolLM2."""

    def __init__(self, data: Path, settings: dict):
        self.settings, self.repeats = settings, settings["repeats"]
        sizes = {name: settings[name] for name in ("samples", "length", "seed")}
        self.calibration = Calibration(text=str(data / CALIBRATION), **sizes)

    def model(self, dtype: str = "fp32", *, layered: bool = False) -> Model:
        return open_model(demo_model(), Compute(dtype=dtype, device="cpu", layered=layered))

    def tokens(self, model: Model) -> torch.Tensor:
        return calibration_samples(self.calibration, lambda: model.tokenizer, model.vocabulary).tokens

    def plain(self, model: Model) -> torch.nn.Module:
        return plain.loaded(model.checkpoint.folder, torch.float32)

    def score(self, model: Model, criterion: str, values: list | None = None) -> float:
        """Seconds of one scoring of a newly loaded model, loading left out, as the command line does it."""
        model.unload()
        found = score(model, criterion=criterion, calibration=self.calibration)
        if values is not None:
            values[:] = found.scores
        return found.seconds

    def perplexity(self) -> dict:
        """All removals: as published, and ours in fp32 and bf16."""
        models = {kind: self.model(kind) for kind in ("fp32", "bf16")}
        values: dict[str, list] = {kind: [] for kind in models}
        dense, tokens = self.plain(models["fp32"]), self.tokens(models["fp32"])
        layers, count = models["fp32"].record.layers, self.settings["candidates"]
        chosen = [round(place * (layers - 1) / (count - 1)) for place in range(count)]
        published, copying = {}, []

        def publish() -> float:
            started = time.perf_counter()
            found, copied = plain.perplexities(dense, tokens, chosen)
            scale = layers / len(chosen)
            published.update(found)
            copying.append(copied * scale)
            return (time.perf_counter() - started) * scale

        arms = {"published": publish}
        arms |= {
            f"ours {kind}": partial(self.score, model, "perplexity", values[kind]) for kind, model in models.items()
        }
        took = in_turn(arms, self.repeats)
        apart = {
            kind: max(abs(found[n] / value - 1) for n, value in published.items()) for kind, found in values.items()
        }
        return {
            "arms": took,
            "measured": len(chosen),
            "layers": layers,
            "copying_seconds": copying,
            "largest_relative_difference": apart,
        }

    @torch.no_grad()
    def ideal(self, kind: str) -> dict:
        """Ours against the sum of its parts: each layer's forward and the head, measured alone with the
        same kernels.
        """
        model, reference = self.model(kind), self.model(kind)
        tokens, replay = self.tokens(reference), replay_of(reference)
        depth, parts = len(reference.stack), batches(reference, tokens)
        blocks = chunks(reference.vocabulary, tokens, reference.module.dtype.itemsize)
        recordings = [replay.record(part) for part in parts]
        sums, needed = [], []

        def alone() -> float:
            streams, layers = [recording.entering for recording in recordings], []
            with fast_products(reference.module):
                for index in range(depth):
                    run = partial(
                        lambda index, streams: [replay.step(*pair) for pair in walked(index, streams)], index, streams
                    )
                    seconds, streams = least(run)
                    layers.append(seconds)
                last = torch.cat(streams, dim=replay.axes[0])
                head, _ = least(
                    lambda: [float(head_nll(replay, last, tokens, block).double().sum()) for block in blocks]
                )
            sums.append({"layers": layers, "head": head})
            needed.append(sum(seconds * min(k + 1, depth - 1) for k, seconds in enumerate(layers)) + depth * head)
            return sum(seconds * (k + 1) for k, seconds in enumerate(layers)) + (depth + 1) * head

        def walked(index: int, streams: list) -> Iterator[tuple]:
            return ((recording, index, stream) for recording, stream in zip(recordings, streams, strict=True))

        took = in_turn({"ideal": alone, "ours": partial(self.score, model, "perplexity")}, self.repeats)
        forwards = depth * (depth + 1) // 2
        return {
            "arms": took | {"ideal, strictly what is needed": needed},
            "forwards": forwards,
            "heads": depth + 1,
            "parts": sums[-1],
        }

    def greedy(self) -> dict:
        """Greedy, and plans by gradient, against one whole forward per candidate (the plain SLEB procedure)."""
        model, amount, few = self.model(), self.settings["greedy"], self.settings["greedy_candidates"]
        dense, tokens = self.plain(model), self.tokens(model)
        order, found = [], {}

        def ours() -> float:
            model.unload()
            made = plan(model, amount=Amount(amount), choosing=SelectionOptions("greedy"), calibration=self.calibration)
            order[:] = made.order
            return made.seconds

        def again() -> float:
            found.update(plain.greedy(dense, tokens, allowed, order, few))
            return found["seconds"]

        def gradient(iterative: bool) -> float:
            model.unload()
            how = {
                "criterion": "gradient",
                "choosing": SelectionOptions(iterative=iterative),
                "calibration": self.calibration,
            }
            return plan(model, amount=Amount(amount), **how).seconds

        first, last = protection(model.record.layers, methods.find("selection", "greedy"), None, None)
        allowed = list(range(first, model.record.layers - last))
        halves = {
            "ours": ours,
            "gradient one-shot": partial(gradient, False),
            "gradient iterative": partial(gradient, True),
        }
        took = in_turn(halves | {"plain": again}, 1)  # ours before and after the one long run of the other
        took = {name: took[name] + more for name, more in in_turn(halves, 1).items()} | {"plain": took["plain"]}
        chose = None if few else found["order"]
        return {
            "arms": took,
            "removed": order,
            "plain_removed": chose,
            "scaled": few is not None,
            "steps": found["steps"],
        }

    def taylor(self) -> dict:
        """The time of Taylor against a plain forward and backward."""
        model = self.model()
        dense, tokens = self.plain(model), self.tokens(model)

        def back() -> None:
            plain.backward(dense, tokens)

        return {"arms": in_turn({"plain": back, "ours": partial(self.score, model, "taylor")}, self.repeats + 2)}

    def groups(self, criterion: str) -> dict:
        """A criterion of KV groups and neurons against a plain forward, of taylor against forward and backward, and
        what finding the groups takes, once per model.
        """
        model = self.model()
        dense, tokens = self.plain(model), self.tokens(model)
        _ = model.stack
        started = time.perf_counter()
        model.units("width")
        finding = time.perf_counter() - started

        def run() -> None:
            if criterion == "taylor":
                plain.backward(dense, tokens)
            else:
                with torch.no_grad():
                    plain.loss(dense, tokens)

        def ours() -> float:
            return score(model, criterion=criterion, units="width", calibration=self.calibration).seconds

        return {"arms": in_turn({"plain": run, "ours": ours}, self.repeats + 2), "finding_seconds": finding}

    def memory(self, who: str) -> dict:
        """Peak memory of Taylor, or of a plain forward and backward, and what there was before."""
        model = self.model()
        tokens = self.tokens(model)
        if who == "plain":
            module = self.plain(model)
            run = partial(plain.backward, module, tokens)
        else:
            module, _ = model.module, model.stack
            _ = [weight.sum() for weight in module.parameters()]
            run = partial(score, model, criterion="taylor", calibration=self.calibration)
        before = in_use()
        with Peak() as peak:
            run()
        inputs = model.record.layers * tokens.numel() * model.outline.width * 4
        weights = sum(weight.nbytes for weight in module.parameters())
        return {"loaded_bytes": before, "peak_bytes": peak.bytes, "weight_bytes": weights, "layer_input_bytes": inputs}

    def criterion(self, name: str) -> dict:
        """Seconds of one criterion; of some also with one layer in memory."""
        models = {"resident": self.model()} | ({"layered": self.model(layered=True)} if name in LAYERED else {})
        return {
            "arms": in_turn({kind: partial(self.score, model, name) for kind, model in models.items()}, self.repeats)
        }


def jobs(given: argparse.Namespace) -> dict[str, Callable[[], dict]]:
    """All pieces in order."""
    small, large = Small(given.data, SMALL_QUICK if given.quick else SMALL), BIG_QUICK if given.quick else BIG
    found = {"small perplexity": small.perplexity}
    found |= {f"small ideal {kind}": partial(small.ideal, kind) for kind in ("fp32", "bf16")}
    found |= {"small greedy": small.greedy, "small taylor": small.taylor}
    found |= {f"small groups {name}": partial(small.groups, name) for name in NARROWING}
    found |= {f"small taylor memory {who}": partial(small.memory, who) for who in ("ours", "plain")}
    found |= {f"small criterion {name}": partial(small.criterion, name) for name in OF_LAYERS}
    found |= {f"big limited {what}": partial(big.limited, what, given.work, large, given.group) for what in LIMITED}
    return found | {"big writing": partial(big.writing, given.work, large)}


def run(given: argparse.Namespace, out: Path) -> int:
    """Make what is missing, each piece in a fresh process, written at once; the number of pieces that failed."""
    content = begun(out, about(quick=given.quick), restart=given.restart, bound=True)
    pieces, failed = content["pieces"], 0
    for name in [name for name in pieces if given.again and name.startswith(given.again)]:
        del pieces[name]
    begins = given.again or given.only
    missing = [name for name in jobs(given) if name not in pieces and name.startswith(begins)]
    if not missing:
        print("nothing is left to measure; --again NAME measures anew", file=sys.stderr)
    command = [
        sys.executable,
        __file__,
        "--data",
        given.data,
        "--work",
        given.work,
        "--out",
        out,
        *(["--quick"] if given.quick else []),
    ]
    command += ["--group", given.group] if given.group else []
    for number, name in enumerate(missing):
        print(f"{len(missing) - number} left: {name}", file=sys.stderr, flush=True)
        made = subprocess.run(
            [*map(str, command), "--piece", name], stdout=subprocess.PIPE, text=True, env=big.ENVIRONMENT
        )
        if made.returncode:
            failed += 1
            print(f"{name} failed; see above", file=sys.stderr)
            continue
        pieces[name] = json.loads(made.stdout.splitlines()[-1])
        content["pieces"] = pieces = {key: pieces[key] for key in jobs(given) if key in pieces}
        save(out, content)
    return failed


def about(*, quick: bool) -> dict:
    """What all pieces have in common and the results are bound to."""
    record = open_model(demo_model()).record
    return {
        "model": {"source": Path(record.source).name, "fingerprint": record.fingerprint},
        "settings": {"small": SMALL_QUICK if quick else SMALL, "big": BIG_QUICK if quick else BIG, "text": CALIBRATION},
        "versions": versions(),
        "machine": machine() | {"memory_bytes": total_memory()},
    }


class Row(NamedTuple):
    """A line of the table; ``ratio`` is None where nothing is compared, ``met`` where there is no target."""

    what: str
    target: str
    measured: str
    ratio: float | None = None
    met: bool | None = None
    remark: str = ""


def side_by_side(one: list[float], other: list[float]) -> float:
    """Median of the ratios of neighbours; where one was measured more often, each time against the other's median."""
    if len(one) != len(other):
        one, other = ([median(one)], other) if len(one) < len(other) else (one, [median(other)])
        pairs = [(a, b) for a in one for b in other]
    else:
        pairs = list(zip(one, other, strict=True))
    return median(a / b for a, b in pairs)


def seconds(took: list[float]) -> str:
    """The best and the median."""
    best, middle = min(took), median(took)
    digits = 2 if best < 10 else 1
    return f"{best:.{digits}f} s" + (f" (median {middle:.{digits}f})" if len(took) > 1 else "")


def against(arms: Arms, slow: str, fast: str) -> tuple[str, float, str]:
    """Measured, ratio and the ratio of the best runs as a remark."""
    other, ours = arms[slow], arms[fast]
    return (
        f"{seconds(ours)}; {slow}: {seconds(other)}",
        side_by_side(other, ours),
        f"best against best {min(other) / min(ours):.2f}",
    )


def small_rows(pieces: dict, *, amx: bool) -> Iterator[Row]:
    """The rows on SmolLM2, on a CPU that has products of bf16 tiles or not."""
    if piece := pieces.get("small perplexity"):
        without = [
            total - copied for total, copied in zip(piece["arms"]["published"], piece["copying_seconds"], strict=True)
        ]
        scaled = (
            ""
            if piece["measured"] == piece["layers"]
            else f"; {piece['measured']} candidates measured, scaled to {piece['layers']}"
        )
        for kind, least_, goal in (("fp32", 2.3, 4), ("bf16", 10 if amx else 6.6, 10)):
            measured, ratio, best = against(piece["arms"], "published", f"ours {kind}")
            bare = side_by_side(without, piece["arms"][f"ours {kind}"])
            apart = piece["largest_relative_difference"][kind]
            remark = (
                f"{best}; {bare:.2f} without the copying of the published one; values differ by {apart:.1e} at "
                f"most{scaled}"
            )
            met = ratio >= least_ and (kind == "bf16" or apart <= 1e-5)
            rule = ", values within 1e-5" if kind == "fp32" else ""
            yield Row(
                f"all removals, {kind}, against published",
                f">= {least_} x (goal {goal}){rule}",
                measured,
                ratio,
                met,
                remark,
            )
    for kind in ("fp32", "bf16"):
        if piece := pieces.get(f"small ideal {kind}"):
            arms = piece["arms"]
            ratio = side_by_side(arms["ours"], arms["ideal"])
            strict = side_by_side(arms["ours"], arms["ideal, strictly what is needed"])
            remark = (
                f"{piece['forwards']} layer forwards and {piece['heads']} heads; against exactly what is needed "
                f"{strict:.2f}"
            )
            remark += f"; best against best {min(arms['ours']) / min(arms['ideal']):.2f}"
            measured = f"{seconds(arms['ours'])}; ideal: {seconds(arms['ideal'])}"
            yield Row(f"all removals, {kind}, against the ideal", "<= 1.15", measured, ratio, ratio <= 1.15, remark)
    if piece := pieces.get("small greedy"):
        measured, ratio, best = against(piece["arms"], "plain", "ours")
        same = piece["plain_removed"] == piece["removed"]
        chosen = (
            "the choice was not compared"
            if piece["plain_removed"] is None
            else f"same layers: {'yes' if same else 'NO'}"
        )
        some = (
            f"{sum(step['measured'] for step in piece['steps'])} of "
            f"{sum(step['candidates'] for step in piece['steps'])}"
        )
        remark = f"{best}; {chosen}; {some} candidates measured{', scaled' if piece['scaled'] else ''}"
        met = ratio >= 1.7 and (same or piece["plain_removed"] is None)
        what = f"greedy, {len(piece['removed'])} removed, against whole forwards"
        yield Row(what, ">= 1.7 x (goal 2.5), same layers", measured, ratio, met, remark)
        for name, least_ in (("gradient one-shot", 15), ("gradient iterative", 4)):
            if name in piece["arms"]:
                measured, ratio, best = against(piece["arms"], "plain", name)
                greedy = side_by_side(piece["arms"]["ours"], piece["arms"][name])
                what = f"{name}, {len(piece['removed'])} removed, against whole forwards"
                yield Row(
                    what, f">= {least_} x", measured, ratio, ratio >= least_, f"{best}; against our greedy {greedy:.2f}"
                )
    if piece := pieces.get("small taylor"):
        measured, _, _ = against(piece["arms"], "plain", "ours")
        ratio = side_by_side(piece["arms"]["ours"], piece["arms"]["plain"])
        best = min(piece["arms"]["ours"]) / min(piece["arms"]["plain"])
        yield Row(
            "Taylor against plain forward and backward",
            "<= 1.15",
            measured,
            ratio,
            ratio <= 1.15,
            f"best against best {best:.2f}",
        )
    for name in NARROWING:
        if piece := pieces.get(f"small groups {name}"):
            measured, _, _ = against(piece["arms"], "plain", "ours")
            ratio = side_by_side(piece["arms"]["ours"], piece["arms"]["plain"])
            other = "forward and backward" if name == "taylor" else "forward"
            remark = f"finding the groups, once per model, {piece['finding_seconds']:.1f} s"
            what = f"{name} of groups against plain {other}"
            yield Row(what, "<= 1.15", measured, ratio, ratio <= 1.15, remark)
    yield from memory_rows(pieces)
    for name, piece in ((name, piece) for name, piece in pieces.items() if name.startswith("small criterion")):
        arms, label = piece["arms"], name.removeprefix("small criterion ")
        yield Row(f"{label}, resident", "", seconds(arms["resident"]))
        if "layered" in arms:
            slower = side_by_side(arms["layered"], arms["resident"])
            yield Row(f"{label}, layered", "", seconds(arms["layered"]), slower, None, "to resident")


def memory_rows(pieces: dict) -> Iterator[Row]:
    ours, other = (pieces.get(f"small taylor memory {who}") for who in ("ours", "plain"))
    if ours and other:
        mine = ours["peak_bytes"] - ours["loaded_bytes"] - ours["layer_input_bytes"]
        theirs = other["peak_bytes"] - other["loaded_bytes"]
        measured = (
            f"{mine / 2**20:.0f} MiB beyond weights and layer inputs; plain: {theirs / 2**20:.0f} MiB beyond weights"
        )
        remark = (
            f"layer inputs {ours['layer_input_bytes'] / 2**20:.0f} MiB; with them "
            f"{(mine + ours['layer_input_bytes']) / theirs:.2f}"
        )
        yield Row("Taylor, memory, against plain", "<= 0.2", measured, mine / theirs, mine / theirs <= 0.2, remark)


def big_rows(pieces: dict) -> Iterator[Row]:
    """The rows on the 7B-shaped model."""
    targets = {"block_influence": 6, "taylor": 15, "perplexity": 30, big.LOCAL: 30}
    for what in LIMITED:
        piece = pieces.get(f"big limited {what}")
        if piece is None:
            continue
        target = f"<= {targets[what]} min" if what in targets else "proven" if what in big.WRITERS else ""
        if "skipped" in piece:
            yield Row(f"{what}, limited memory", target, "skipped", remark=piece["skipped"])
            continue
        ended, minutes = piece["ended"], piece["wall_seconds"] / 60
        took = f"{minutes:.1f} min" + ("" if ended == "finished" else f", {ended}")
        peak = f"{piece['group_peak_bytes'] / 2**30:.2f}" if piece["group_peak_bytes"] else "?"
        remark = f"limit {piece['limit_bytes'] / 2**30:.1f} GiB, group's peak {peak} with file cache, "
        remark += (
            f"largest process {piece['largest_resident_bytes'] / 2**30:.2f}; killed for memory: "
            f"{piece['kills_for_memory']}"
        )
        remark += f"; without starting {piece['seconds']:.0f} s" if "seconds" in piece else ""
        remark += f"; logits equal {piece['verified'].get('logits')}" if "verified" in piece else ""
        remark += (
            f"; the repair {piece['repair_seconds']:.0f} s, {piece['changed']} weights changed"
            if "repair_seconds" in piece
            else ""
        )
        met = None if not target else ended == "finished" and minutes <= targets.get(what, minutes)
        yield Row(f"{what}, limited memory", target, took, None, met, remark)
    if piece := pieces.get("big writing"):
        arms, rate = piece["arms"], piece["bytes"] / 1e9
        pace = side_by_side(arms["cp"], arms["ours"])
        remark = (
            f"{rate:.1f} GB, synced; our seconds begin after the imports, cp's are scaled to these bytes; "
            f"{piece['file_system']}; "
        )
        remark += f"file cache {piece['cache']}"
        yield Row("writing against cp", ">= 0.8 x", against(arms, "cp", "ours")[0], pace, pace >= 0.8, remark)
        if "mergekit" in arms:
            measured, ratio, best = against(arms, "mergekit", "ours, whole command")
            same = all(piece["equal_to_mergekit"].values())
            remark = (
                f"whole commands; {best}; tensors compared are {'equal' if same else 'NOT equal'}; {piece['mergekit']}"
            )
            yield Row("writing against mergekit", ">= 3 x", measured, ratio, ratio >= 3 and same, remark)
        else:
            yield Row("writing against mergekit", ">= 3 x", "skipped", remark=piece["mergekit"])


def table(content: dict) -> str:
    """The results in Markdown, from the JSON alone."""
    machine, small, large = content["machine"], content["settings"]["small"], content["settings"]["big"]
    shape = ", ".join(f"{name} {value}" for name, value in large["shape"].items())
    used = ", ".join(f"{name} {content['versions'][name]}" for name in ("torch", "transformers"))
    parts = [
        f"# Speed\n\n{processor_text(machine)}, {machine['torch_threads']} threads, "
        f"{machine['memory_bytes'] / 2**30:.0f} GiB, {used}, {content['date']}. Made by `make bench-speed`.",
        "The best of the repeats and the median; what is compared ran in turn in one process, and the ratio is "
        "the median of the "
        "ratios of neighbouring runs.",
        f"## {content['model']['source']}\n\n{small['samples']} x {small['length']} tokens of "
        f"{content['settings']['text']}, "
        "fp32 unless said otherwise, loading left out.",
        _markdown(small_rows(content["pieces"], amx=any("amx" in one for one in machine.get("instruction_sets", ())))),
        f"## 7B-shaped\n\nLlama, random bf16 weights: {shape}; {large['samples']} x {large['length']} random tokens.",
        _markdown(big_rows(content["pieces"])),
    ]
    shared = {name: piece.get("cores_used_by_others", 0) for name, piece in content["pieces"].items()}
    if busy := [f"{name} {cores:.1f}" for name, cores in shared.items() if cores >= BUSY]:
        parts.append(
            f"**To be measured again:** other work on the machine took part of the cores during: {', '.join(busy)}."
        )
    return "\n\n".join(parts) + "\n"


def _markdown(rows: Iterator[Row]) -> str:
    lines = ["| what | target | measured | ratio | remark |", "|---|---|---|--:|---|"]
    for row in rows:
        ratio = "" if row.ratio is None else f"{row.ratio:.2f}"
        target = row.target + {None: "", True: ": met", False: ": **missed**"}[row.met]
        lines.append(f"| {row.what} | {target} | {row.measured} | {ratio} | {row.remark} |")
    return "\n".join(lines)


def main() -> None:
    """Read the arguments; ``--piece`` is how the script starts itself for one piece, whose result is one
    line of JSON.
    """
    parser = parser_of(__doc__, "speed")
    place = Path(tempfile.gettempdir()) / "shallower-speed"
    parser.add_argument(
        "--work", type=Path, default=place, help="folder for the large model, about 40 GB (%(default)s)"
    )
    parser.add_argument("--group", type=Path, help="control group in which the limited one is made (the process's own)")
    parser.add_argument("--piece", help=argparse.SUPPRESS)
    given = parsed(parser, "speed")
    given.work = given.work.resolve()
    if given.piece:
        with others() as shared:
            found = jobs(given)[given.piece]()
        print(json.dumps(found | shared))
        return
    out, failed = given.out, 0
    if not given.table:
        check_data(given.data, CALIBRATION)
        failed = run(given, out)
    if out.is_file():
        print(write_atomic(out.with_suffix(".md"), table(json.loads(out.read_text()))))
    if any(given.work.glob("model-*")):
        print(
            f"the large model is kept in {given.work}; remove that folder when it is no longer needed", file=sys.stderr
        )
    if failed:
        raise UserError(f"{failed} pieces failed; a second start tries them again")


if __name__ == "__main__":
    ended(main)
