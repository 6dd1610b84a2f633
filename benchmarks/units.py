"""Whole layers against attention only, MLP only and both mixed, at equal parameters, in fp32 on the CPU.

Every kind of unit is removed by Taylor+, by its removal losses (one-shot) and by greedy, until as many parameters are
gone as whole layers have that come nearest to 10, 20 and 30 % of the model. What goes is evaluated on three texts as it
is and repaired by ``sequential``; the sets of greedy at 20 %, repaired, answer tasks too. A kind of which that much
cannot go, or not within 1 % of the parameters, has no figure there. Beside it: the losses of all leave-one-outs
against the half-layer forwards that they need, and speed and cache without layers, attentions and MLPs that lie evenly.
Each finished piece is on disk before the next one begins; table and plot are made from the JSON file alone. A second
model is measured too where $SHALLOWER_SECOND_MODEL names one.
"""

import itertools
import tempfile
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path

import torch
from harness.machine import least
from harness.models import Measured, about, sources
from harness.pieces import Jobs, check_data, needed, run
from harness.store import CALIBRATION, FP32, ROOT, TEXTS
from units_tables import picture, table

from shallower import (
    Amount,
    Calibration,
    Grid,
    RepairOptions,
    SelectionOptions,
    Tasks,
    UserError,
    bench,
    drop,
    open_model,
    plan,
    prune,
    score,
)
from shallower.anatomy.kernels import fast_products
from shallower.anatomy.model import Model
from shallower.artifacts import NOTHING, Removal, Units
from shallower.artifacts.removal import ATTENTION, MLP
from shallower.artifacts.units import LAYER, SUBLAYER
from shallower.data.tokens import calibration_samples
from shallower.evaluation.perplexity import perplexity
from shallower.evaluation.removals import removals_perplexity
from shallower.evaluation.tasks import zero_shot
from shallower.runtime.memory import Peak
from shallower.stages.repair import fit_repair
from shallower.walk.batching import batches, chunks
from shallower.walk.logits import head_nll
from shallower.walk.replay import replay_of

KINDS = (LAYER, ATTENTION, MLP, SUBLAYER)
WAYS = {"taylor": ("taylor", "lowest"), "perplexity": ("perplexity", "lowest"), "greedy": ("perplexity", "greedy")}
NEAR = 0.01  # of all parameters: how far from a share a removal may be and still stand for it
FULL = {
    **{"shares": [0.1, 0.2], "scoring": [10, 128], "fitting": [64, 128], "tokens": 2048, "length": 128},
    **{"tasks": {"lambada_openai": 100}, "tasks_at": 0.2, "repeats": 3, "context": 2048},
}
FURTHER = (0.3,)  # shares that came later, each a piece of its own: a search behind them begins anew
QUICK = FULL | {
    **{"shares": [0.1], "scoring": [2, 32], "fitting": [8, 32], "tokens": 256, "length": 32, "context": 64},
    **{"tasks": {"lambada_openai": 2}, "tasks_at": 0.1, "repeats": 1},
}
METRICS = {"lambada_openai": "acc"}  # of TriviaQA SmolLM2 answers none of 24 questions, and GSM8K is harder
SIDES = {"with": "against", "without": "model"}
SPEEDS = {"layer": 5, ATTENTION: 2, MLP: 5}  # kind of unit -> every which one goes


def jobs(data: Path, settings: dict, pieces: dict) -> Jobs:
    """The pieces, by model, way and kind of unit; repairs of the share that answers tasks before all others."""
    check_data(data, CALIBRATION, *TEXTS)
    found: dict[str, Callable[[], dict]] = {}
    shares = sorted(settings["shares"], key=lambda share: share != settings["tasks_at"])
    for source in sources():
        one, name = Bench(source, data, settings), source.stem
        found[f"dense {name}"] = one.dense
        for way in WAYS:
            for kind in KINDS:
                found[f"choose {name} {kind} {way}"] = partial(one.choose, kind, way)
        found |= {f"speed {name} {kind}": partial(one.speed, kind) for kind in SPEEDS} | {f"losses {name}": one.losses}
        for share in shares:
            for way in reversed(WAYS):
                for kind in KINDS:
                    made = partial(needed, pieces, f"choose {name} {kind} {way}")
                    found[f"repair {name} {kind} {way} {share:g}"] = partial(one.repair, made, way, share)
        for way, share, kind in itertools.product(WAYS, FURTHER if settings is FULL else (), KINDS):
            key = f"{name} {kind} {way} {share:g}"
            found[f"choose {key}"] = partial(one.choose, kind, way, (share,))
            found[f"repair {key}"] = partial(one.repair, partial(needed, pieces, f"choose {key}"), way, share)
    return found


class Bench(Measured):
    """One model: what goes by every way, and what that costs."""

    def targets(self, shares: Iterable[float]) -> dict[str, float]:
        """Share that is asked for -> share of the whole layers that come nearest to it."""
        record = self.model.record
        layer = max(record.layer_parameters) / record.parameters
        return {f"{share:g}": max(1, round(share / layer)) * layer for share in shares}

    def answers(self, removal: Removal = NOTHING) -> dict:
        """Task -> value, error and count, of the model as it stands in memory."""
        found = {}
        for name, limit in self.settings["tasks"].items():
            tasks = Tasks((name,), self.data.parent / "tasks", limit)
            found |= zero_shot(self.model, tasks, removal=removal)
        return {name: {METRICS[name]: one.metrics[METRICS[name]], "count": one.count} for name, one in found.items()}

    def dense(self) -> dict:
        """Perplexity and tasks of the model as it is."""
        found = removals_perplexity(self.model, self.texts, [NOTHING], "dense")[0]
        values = {name: one.value for name, one in found.items()}
        return {"perplexity": values, "layers": self.model.record.layers, "tasks": self.answers()}

    def order(self, kind: str, way: str, shares: Iterable[float]) -> list[int]:
        """Numbers of the units in the order of removal, until the largest share is gone or no more may go."""
        criterion, selection = WAYS[way]
        units = self.model.units(kind)
        for share in sorted(shares, reverse=True):
            try:
                chosen = plan(
                    self.model,
                    amount=Amount(ratio=share),
                    choosing=SelectionOptions(selection),
                    criterion=criterion,
                    units=kind,
                    calibration=self.calibration,
                    out=ROOT / f"runs/units/{self.source.stem}-{kind}-{way}-{share:.3f}.json",  # a search goes on there
                )
            except UserError:  # more than there is of the kind
                continue
            known = {units.name(number): number for number in range(len(units))}
            return [known[name] for name in [*chosen.units] or map(str, chosen.order)]
        return []

    def cut(self, units: Units, order: list[int], share: float) -> list[int] | None:
        """The first units of an order with which about that share goes; None where none is near enough."""
        every = self.model.record.parameters
        cuts = [order[:count] for count in range(1, len(order) + 1)]
        nearest = min(cuts, key=lambda one: abs(units.parameters(one) / every - share), default=[])
        return nearest if nearest and abs(units.parameters(nearest) / every - share) <= NEAR else None

    def choose(self, kind: str, way: str, shares: Iterable[float] = ()) -> dict:
        """What goes at every share, or at these, and the perplexity without it."""
        units, targets = self.model.units(kind), self.targets(shares or self.settings["shares"])
        with Peak("cpu") as peak:
            order = self.order(kind, way, targets.values())
        cuts = {share: one for share, target in targets.items() if (one := self.cut(units, order, target))}
        removals = [units.removal(numbers) for numbers in cuts.values()]
        figures = removals_perplexity(self.model, self.texts, removals, f"{kind} {way}") if removals else []
        rows = {}
        for (share, numbers), figure in zip(cuts.items(), figures, strict=True):
            rows[share] = {
                "units": [units.name(number) for number in numbers],
                "share": units.parameters(numbers) / self.model.record.parameters,
                "perplexity": {name: value.value for name, value in figure.items()},
            }
        return {"rows": rows, "seconds": peak.seconds}

    def repair(self, made: Callable[[], dict], way: str, share: float) -> dict:
        """The same with ``sequential``, fitted on the shipped prose: no kind of the texts alone; tasks for greedy's."""
        row = made()["rows"].get(f"{share:g}")
        if row is None:
            return {}
        asked = way == "greedy" and share == self.settings["tasks_at"]
        removal = drop(self.model, row["units"]).removal
        samples, length = self.settings["fitting"]
        how = RepairOptions("sequential", {}, Calibration(samples=samples, length=length))
        patch, _ = fit_repair(self.model, removal, how)
        with self.model.patched(patch):
            found = {name: perplexity(self.model, one, removal=removal).value for name, one in self.texts.items()}
            return {"perplexity": found, **({"tasks": self.answers(removal)} if asked else {})}

    def losses(self) -> dict:
        """Seconds of the losses of all parts, each left out alone, and of the half-layer forwards that they need.

        Needed are the dense forward, for every attention its own layer's MLP, for both parts all layers behind, and
        the head for each; every forward is timed alone, with the same kernels.
        """
        tokens = calibration_samples(self.calibration, lambda: self.model.tokenizer, self.model.vocabulary).tokens
        ideal, ours = [], []
        for _ in range(self.settings["repeats"]):
            ideal.append(self.needed(open_model(self.source, FP32), tokens))
            fresh = open_model(self.source, FP32)
            ours.append(score(fresh, criterion="perplexity", units="sublayer", calibration=self.calibration).seconds)
        return {"ideal": ideal, "ours": ours, "parts": len(self.model.units("sublayer"))}

    @torch.no_grad()
    def needed(self, model: Model, tokens: torch.Tensor) -> float:
        """Seconds of the forwards that the losses of all parts need, each the least of a few."""
        replay, depth, parts = replay_of(model), len(model.stack), batches(model, tokens)
        recordings = [replay.record(part) for part in parts]
        streams = [recording.entering for recording in recordings]
        whole, behind_attention = [], []

        def walked(index: int, streams: list) -> list:
            return [replay.step(one, index, stream) for one, stream in zip(recordings, streams, strict=True)]

        with fast_products(model.module):
            for index in range(depth):
                with model.without(Removal.told((), [f"{index}.{ATTENTION}"])):
                    behind_attention.append(least(partial(walked, index, streams))[0])
                seconds, streams = least(partial(walked, index, streams))
                whole.append(seconds)
            last = torch.cat(streams, dim=replay.axes[0])
            blocks = chunks(model.vocabulary, tokens, model.module.dtype.itemsize)
            head = least(lambda: [float(head_nll(replay, last, tokens, block).double().sum()) for block in blocks])[0]
        behind = [sum(whole[index + 1 :]) for index in range(depth)]
        return sum(whole) + head + sum(behind_attention) + 2 * sum(behind) + 2 * depth * head

    def speed(self, kind: str) -> dict:
        """Decoding and prefill without units that lie evenly in the stack, against the dense model, with a long
        context.
        """
        every, context = SPEEDS[kind], self.settings["context"]
        chosen = [*_evenly(len(self.model.stack), every)]
        names = chosen if kind == "layer" else [f"{index}.{kind}" for index in chosen]
        with tempfile.TemporaryDirectory() as place:
            prune(self.model, drop(self.model, names), out=Path(place) / "out", verify=False, format="custom")
            grid = Grid(batches=(1,), prompts=(context,), new=(32,), repeats=2 * self.settings["repeats"])
            found = bench(Path(place) / "out", against=self.model, grid=grid, compute=FP32)
        row = found.speedups[0]
        cache = {name: int(found.analytic[side].kv_bytes_per_token) for name, side in SIDES.items()}
        return {"units": names, "decode": row.decode, "ideal": row.ideal, "prefill": row.prefill, "cache": cache}


def _evenly(layers: int, every: int) -> Iterator[int]:
    """Every so many layers, the first and the last left out."""
    return (index for index in range(1, layers - 1) if index % every == 0)


if __name__ == "__main__":
    run(
        __doc__,
        "units",
        beside=f"text/{CALIBRATION}",
        settings=(FULL, QUICK),
        about=about,
        jobs=jobs,
        table=table,
        picture=picture,
    )
