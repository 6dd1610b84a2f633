"""What is left of SmolLM2-135M-Instruct after pruning, plain and repaired without training, in fp32 on the CPU.

Every criterion and selection plans the removal of 3, 6 and 9 of 30 layers; all plans are evaluated as they are, and
the best and the published ones with every compensation. What matters most is made first, and each finished piece is on
disk before the next one begins, so a second start goes on where the first one ended. The tables are made from the JSON
file alone.
"""

import json
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from functools import partial
from pathlib import Path
from statistics import mean
from typing import NamedTuple
from unittest.mock import patch

import numpy as np
import torch
from criteria import KEPT, TOGETHER, Bench, Spec, specs
from harness.criteria import OF_LAYERS
from harness.machine import machine, others
from harness.pieces import check_data, ended, parsed, parser_of
from harness.store import CALIBRATION, FP32, TEXTS, begun, place, removal, save
from quality_tables import Removed, cells, ratio, sets, tables

from shallower import (
    Amount,
    Calibration,
    Protocol,
    RepairOptions,
    Scores,
    SelectionOptions,
    UserError,
    methods,
    open_model,
    plan,
    score,
)
from shallower.artifacts import NOTHING, Removal, plain
from shallower.cli.demo import demo_model
from shallower.data.tokens import calibration_samples, token_hash
from shallower.evaluation.perplexity import evaluation_segments, perplexity
from shallower.repair import fit
from shallower.repair.ridge import Normal
from shallower.runtime.memory import Peak
from shallower.runtime.progress import shown
from shallower.runtime.provenance import versions
from shallower.stages.repair import fit_repair
from shallower.storage.files import write_atomic
from shallower.walk.removals import LossWalk

BOOKS = ("books/bleak-house_1023.txt", "books/the-moonstone_155.txt", "books/middlemarch_145.txt")
METHODS = sorted(
    {*methods.names("compensation")} - {"bias"}, key=lambda name: (name != "sequential", name)
)  # the one of most interest first
PUBLISHED = {
    "greedy": "SLEB",
    "lowest taylor": "Taylor+",
    "lowest perplexity": "PPL+",
    "lowest block_influence": "Block Influence",
    "window angular": "angular window",
    "lowest gradient l1": "GradMAP's metric",
    "lowest --iterative gradient l1": "GradMAP's metric, iterative",
}
FULL = {
    "sizes": [6, 9, 3],  # in this order
    "tokens": 8192,
    "length": 128,
    "long": 1024,
    "long_rows": 2,
    "best": 3,
    "scoring": {"samples": 10, "length": 128, "seed": 1234},
    "fitting": {"samples": 256, "length": 128, "seed": 4321},
    "search": {"beam loss": {"width": "4"}, "evolution loss": {}, "evolution kl": {}},
    "budget": 900.0,
    "published": PUBLISHED,
    "plans": ["plan lowest", "plan window", "plan positional middle", "plan greedy"],  # what their names begin with
    "goals": {"6": {"ratio": 1.4, "share": 0.7}, "9": {"ratio": 2.0}},
}
QUICK = FULL | {
    "sizes": [2],
    "tokens": 512,
    "length": 64,
    "long": 128,
    "long_rows": 1,
    "best": 1,
    "scoring": {"samples": 2, "length": 64, "seed": 1234},
    "fitting": {"samples": 10, "length": 64, "seed": 4321},
    "search": {"beam loss": {"width": "2"}, "evolution kl": {"population": "3", "generations": "2"}},
    "budget": 30.0,
    "published": {"greedy": "SLEB"},
    "plans": ["plan lowest gradient l1", "plan lowest --iterative gradient", "plan window angular", "plan greedy"],
    "goals": {"2": {"ratio": 1.4, "share": 0.7}},
}
LEADING = 2  # rows of each size that are repaired before the searches begin
GUESSES = {
    "score": 20,
    "score perplexity": 60,
    "repair sequential": 240,
    "repair": 90,
}  # seconds, until one has been made


class Job(NamedTuple):
    """A piece to be made: what is like it (for the guess of its time), a first guess, and how.

    Or a text to evaluate on.
    """

    kind: str
    guess: float
    make: Callable[[], dict] | None = None  # None: what it works on is not known yet
    text: str = ""
    removed: Removed = ()


def ways(settings: dict) -> dict[str, Spec]:
    """All plans that are one piece, by name, those that run the model last."""
    found = {key: spec for key, spec in specs().items() if spec.criterion != "gradient"}
    for norm in ("l1", "l2", "hidden"):
        found[f"plan lowest gradient {norm}"] = Spec("lowest", "gradient", norm, SelectionOptions(), {"norm": norm})
    iterative = Spec("lowest --iterative", "gradient", "l1", SelectionOptions(iterative=True), {"norm": "l1"}, step=8)
    found["plan lowest --iterative gradient l1"] = iterative
    found = {key.removesuffix(" -").replace(" - ", " "): spec for key, spec in found.items()}
    kept = {key: spec for key, spec in found.items() if key.startswith(tuple(settings["plans"]))}
    return dict(sorted(kept.items(), key=lambda item: item[1].step))


def scoring(spec: Spec) -> str | None:
    """The piece that scores the dense model for a plan, where there is one."""
    if spec.criterion not in OF_LAYERS or spec.step or "seed" in spec.settings:
        return None
    return " ".join(filter(None, ("score", spec.criterion, spec.settings.get("norm"))))


def passes(spec: Spec, layers: int, decisions: int = 1) -> tuple[int, int]:
    """Forwards and backwards of one layer over all scoring tokens, losses of removals left out; see ``counted``."""
    method = methods.find("criteria", spec.criterion) if spec.criterion in OF_LAYERS else None
    kind = getattr(method, "EVIDENCE", None)
    walked = sum(layers - gone for gone in range(decisions))
    return {"streams": (walked, 0), "gradients": (2 * walked, walked), "flows": (2 * walked, walked)}.get(kind, (0, 0))


def forwards(keys: list[str]) -> int:
    """Layer forwards of removals (1: layer removed) that are walked together: distinct beginnings that end in a layer
    that runs.
    """
    return len({key[:k] for key in keys for k in range(1, len(key) + 1) if key[k - 1] == "0"})


@contextmanager
def counted() -> Iterator[Counter]:
    """Layer forwards of the losses of removals inside."""
    found, whole = Counter(), LossWalk.__call__

    def call(walk: LossWalk, removals: Sequence[Removal], *args, **options) -> torch.Tensor:
        walked = [*removals, NOTHING] if options.get("objective") == "kl" else removals
        found["forwards"] += forwards(["".join(walk.model.steps(one).states(one)) for one in walked])
        return whole(walk, removals, *args, **options)

    with patch.object(LossWalk, "__call__", call):
        yield found


@contextmanager
def clocked() -> Iterator[Counter]:
    """Seconds of solving, and of deciding by held-out tokens; the rest of a fit is its pass over the other tokens."""
    found = Counter(solving_seconds=0.0, deciding_seconds=0.0)

    def timing(work: Callable, what: str) -> Callable:
        def call(*given):
            began = time.monotonic()
            try:
                return work(*given)
            finally:
                if given[-2] != ():  # the dense model's loss is for the report alone
                    found[f"{what}_seconds"] += time.monotonic() - began

        return call

    with (
        patch.object(Normal, "solve", timing(Normal.solve, "solving")),
        patch.object(fit, "all_nll", timing(fit.all_nll, "deciding")),
        patch.object(fit, "drift", timing(fit.drift, "deciding")),
    ):
        yield found


def brief(value):
    """Notes of a compensation without what was tried and not taken."""
    if isinstance(value, dict):
        return {key: brief(one) for key, one in value.items() if key not in ("tried", "losses", "loss_before")}
    if isinstance(value, list):
        return [brief(one) for one in value]
    return round(value, 5) if isinstance(value, float) else value


class Quality(Bench):
    """The pieces, how each is made, and the file in which the finished ones are kept."""

    def __init__(self, data: Path, out: Path, settings: dict, *, restart: bool):
        self.model, self.out, self.settings, self.sizes = (
            open_model(demo_model(), FP32),
            out,
            settings,
            settings["sizes"],
        )
        self.calibration = Calibration(text=str(data / CALIBRATION), **settings["scoring"])
        _, self.record = self.tokens_of(self.calibration)
        self.folder = tempfile.TemporaryDirectory()
        fitting = self.fitting(data, **settings["fitting"])
        np.save(f"{self.folder.name}/fitting.npy", fitting.numpy())
        files = [data / name for name in TEXTS]
        short, long = (Protocol(length=settings[name], max_tokens=settings["tokens"]) for name in ("length", "long"))
        self.texts = evaluation_segments(self.model, files, None, short)
        self.short, at = list(self.texts), f" at {settings['long']}"
        self.texts |= {name + at: text for name, text in evaluation_segments(self.model, files, None, long).items()}
        self.long = [name + at for name in self.short]
        about = {
            "model": {"source": Path(self.model.record.source).name, "fingerprint": self.model.record.fingerprint},
            "layers": self.model.record.layers,
            "settings": settings,
            "calibration": asdict(self.record),
            "fitting": {"sources": [CALIBRATION, *BOOKS], "hash": token_hash(fitting)},
            "texts": {name: self.texts[name].description for name in self.short},
            "long_texts": {name: self.texts[name].description for name in self.long},
            "versions": versions(),
            "machine": machine(),
        }
        self.content = begun(out, about, restart=restart)
        self.pieces = self.content["pieces"]

    def tokens_of(self, calibration: Calibration):
        found = calibration_samples(calibration, lambda: self.model.tokenizer, self.model.vocabulary)
        return found.tokens, found.record

    def fitting(self, data: Path, samples: int, length: int, seed: int) -> torch.Tensor:
        """Half encyclopedia, half novels, in turn, so that the last samples, which are held out, are of all sources
        too.
        """
        parts = [samples - samples // 2, *(len(range(book, samples // 2, len(BOOKS))) for book in range(len(BOOKS)))]
        sources = [
            iter(self.tokens_of(Calibration(text=str(data / name), samples=count, length=length, seed=seed))[0])
            for name, count in zip((CALIBRATION, *BOOKS), parts, strict=True)
        ]
        order = [0 if place % 2 == 0 else 1 + place // 2 % len(BOOKS) for place in range(samples)]
        return torch.stack([next(sources[source]) for source in order])

    def jobs(self) -> dict[str, Job]:
        """All pieces, those that matter most first; where it is not known yet which, jobs without work stand in."""
        plans = ways(self.settings)
        found: dict[str, Job] = {}
        for spec in plans.values():
            if name := scoring(spec):
                found[name] = Job(name, GUESSES.get(name, GUESSES["score"]), partial(self.score, spec))
        found |= {
            key: Job(key, 1 + spec.step * max(self.sizes), partial(self.plan, key, spec)) for key, spec in plans.items()
        }
        for size in self.sizes:
            found |= self.evaluations({(), *sets(self.content, size)}, self.short)
            found |= self.repairs(size, self.rows(size)[:LEADING], METHODS)
        for size in self.sizes:
            found |= self.repairs(size, self.rows(size), METHODS)
        for size in self.sizes:
            found |= self.searches(size)
            found |= self.repairs(size, self.rows(size), METHODS)
            found |= self.stand_ins(size, found)
            found |= self.longer(size)
        return found

    def searches(self, size: int) -> dict[str, Job]:
        """Plans that search, a piece for each size, and what they are worth."""
        found, budget = {}, self.settings["budget"]
        for name, own in self.settings["search"].items():
            selection, objective = name.split()
            how = SelectionOptions(selection, settings=own | {"objective": objective}, budget=budget)
            make = partial(self.plan, f"plan {name}", Spec(selection, "-", objective, how, {}, step=1), [size])
            found[f"plan {name} {size}"] = Job(f"plan {name}", budget, make)
        return found | self.evaluations(sets(self.content, size), self.short)

    def evaluations(self, removals: set[Removed], texts: list[str]) -> dict[str, Job]:
        guess = 12 * self.settings["tokens"] / 8192
        return {
            f"plain {text} {removal(gone)}": Job("plain", guess, None, text, gone)
            for gone in sorted(removals)
            for text in texts
        }

    def rows(self, size: int) -> list[Removed]:
        """The removals worth repairing: greedy's, the best plain ones, the published ones."""
        known = sets(self.content, size)
        worth = {gone: value for gone in known if (value := ratio(self.content, gone)) is not None}
        best = sorted(worth, key=worth.get)[: self.settings["best"]]
        published = [gone for label in self.settings["published"] for gone, labels in known.items() if label in labels]
        return list(dict.fromkeys([*published[:1], *best, *published]))

    def repairs(self, size: int, rows: list[Removed], names: list[str]) -> dict[str, Job]:
        found = {}
        for name in names:
            guess = GUESSES.get(f"repair {name}", GUESSES["repair"])
            for gone in rows:
                found[f"repair {size} {name} {removal(gone)}"] = Job(
                    f"repair {name}", guess, partial(self.repair, name, gone, self.short)
                )
        return found

    def stand_ins(self, size: int, known: dict[str, Job]) -> dict[str, Job]:
        """Repairs of plans that are still to be made, so that the guess of the time counts them."""
        most = self.settings["best"] + len(self.settings["published"])
        missing = 0 if all(key in self.pieces for key in self.searches(size)) else most - len(self.rows(size))
        guesses = {name: GUESSES.get(f"repair {name}", GUESSES["repair"]) for name in METHODS}
        return {
            f"? repair {size} {name} {n}": Job(f"repair {name}", guess)
            for name, guess in guesses.items()
            for n in range(missing)
        }

    def longer(self, size: int) -> dict[str, Job]:
        """The best rows on longer segments, once all are known.

        Beside them the dense model and the best plain published method.
        """
        grid = self.repairs(size, self.rows(size), METHODS)
        if not self.rows(size) or not all(key in self.pieces for key in grid):
            return {}
        every = sorted(
            (value, gone, name)
            for gone, row in cells(self.content, size).items()
            for name, value in row.items()
            if value
        )
        known = sets(self.content, size)
        published = [
            item for item in every if item[2] == "none" and set(known[item[1]]) & set(self.settings["published"])
        ]
        chosen = [*every[: self.settings["long_rows"]], *published[:1]]
        found = self.evaluations({(), *(gone for _, gone, _ in chosen)}, self.long)
        for _, gone, name in chosen:
            if name != "none":
                make = partial(self.repair, name, gone, self.long)
                found[f"long {size} {name} {removal(gone)}"] = Job(f"repair {name}", GUESSES["repair"], make)
        return found

    def score(self, spec: Spec) -> dict:
        """Score the dense model once."""
        with shown(spec.criterion == "perplexity"), counted() as losses:
            found = score(self.model, criterion=spec.criterion, settings=spec.settings, calibration=self.calibration)
        there, back = passes(spec, self.model.record.layers)
        return {name: getattr(found, name) for name in KEPT} | {"passes": [there + losses["forwards"], back]}

    def plan(self, key: str, spec: Spec, sizes: list[int] | None = None) -> dict:
        """Which layers go, by size: the beginnings of one plan where they are nested, else one plan per size."""
        how = {"choosing": spec.choosing, "settings": spec.settings, "calibration": self.calibration}
        how |= {"criterion": spec.criterion} if spec.criterion in OF_LAYERS else {}
        source, stored = self.model, self.pieces.get(scoring(spec))
        if stored:
            source = Scores(**{name: stored[name] for name in KEPT}, model=self.model.record, calibration=self.record)
        else:
            _ = self.model.stack  # loaded before the clock starts
        nested, sizes = spec.choosing.selection in ("lowest", "greedy"), sorted(sizes or self.sizes)
        with shown(spec.step > 8), counted() as losses, Peak() as peak:
            plans = {size: plan(source, amount=Amount(size), **how) for size in (sizes[-1:] if nested else sizes)}
        most = plans[sizes[-1]]
        made = {
            "label": key.removeprefix("plan "),
            "protected": f"{most.keep_first} + {most.keep_last}",
            "walks": spec.step > 0,
        }
        made["removed"] = {str(size): sorted(most.order[:size]) if nested else plans[size].removed for size in sizes}
        made |= {"order": most.order, "seconds": most.seconds, "planned": sizes[-1]}
        if stored:
            return made | {"passes": stored["passes"], "peak_memory_bytes": stored["peak_memory_bytes"]}
        there, back = passes(spec, self.model.record.layers, sizes[-1] if spec.choosing.iterative else 1)
        return made | {"passes": [there + losses["forwards"], back], "peak_memory_bytes": peak.bytes}

    def repair(self, name: str, removed: Removed, texts: list[str]) -> dict:
        """Fit one compensation and evaluate with it; a refusal is a result too."""
        made = {"method": name, "removed": list(removed)}
        how = RepairOptions(name, calibration=Calibration(tokens=f"{self.folder.name}/fitting.npy"))
        try:
            with shown(), clocked() as parts:
                changes, report = fit_repair(self.model, Removal.of_layers(removed), how)
        except (UserError, torch.linalg.LinAlgError) as error:
            return made | {"refused": " ".join(str(error).split())}
        began = time.monotonic()
        with self.model.patched(changes), shown():
            values = {
                text: perplexity(self.model, self.texts[text], removal=Removal.of_layers(removed), label=text).value
                for text in texts
            }
        made |= {"perplexity": values, "evaluation_seconds": time.monotonic() - began, "changed": len(report.changed)}
        kept = ("seconds", "peak_memory_bytes", "loss", "fitted_tokens", "held_out_tokens", "settings")
        return made | parts | {field: plain(getattr(report, field)) for field in kept} | {"notes": brief(report.notes)}

    def left(self, only: str) -> dict[str, Job]:
        """What is missing, with the time that each takes by those like it that have been made."""
        took: dict[str, list[float]] = {}
        every = self.jobs()
        for key, job in every.items():
            if "wall" in self.pieces.get(key, {}):
                took.setdefault(job.kind, []).append(self.pieces[key]["wall"])
        missing = {
            key: job for key, job in every.items() if key not in self.pieces and key.removeprefix("? ").startswith(only)
        }
        return {key: job._replace(guess=mean(took.get(job.kind, [job.guess]))) for key, job in missing.items()}

    def together(self, job: Job, left: dict[str, Job]) -> dict[str, dict]:
        """Evaluations on one text, walked at once."""
        group = {key: other.removed for key, other in left.items() if job.text and other.text == job.text}
        group = dict(list(group.items())[:TOGETHER])
        return dict(zip(group, self.evaluate(job.text, list(group.values())), strict=True))

    def run(self, only: str = "", minutes: float = float("inf")) -> bool:
        """Make what is missing, write it at once, and say how long the rest takes; whether the time sufficed."""
        started = time.monotonic()
        while left := self.left(only):
            key, job = next(((key, job) for key, job in left.items() if job.make or job.text), ("", None))
            if job is None:
                break
            if time.monotonic() - started >= 60 * minutes:
                print(
                    f"{minutes:g} minutes are used up, {len(left)} pieces are left; a second start goes on",
                    file=sys.stderr,
                )
                return False
            total = sum(job.guess for job in left.values())
            print(f"{len(left)} left, about {total / 60:.0f} min: {key}", file=sys.stderr, flush=True)
            began = time.monotonic()
            with others() as shared:
                made = {key: job.make()} if job.make else self.together(job, left)
            wall = (time.monotonic() - began) / len(made)
            self.pieces |= {
                name: piece | shared | place(self.content, machine()) | {"wall": round(wall, 2)}
                for name, piece in made.items()
            }
            save(self.out, self.content)
        return True


def main() -> None:
    """Read the arguments."""
    parser = parser_of(__doc__, "quality")
    parser.add_argument(
        "--minutes", type=float, default=float("inf"), help="begin no piece after so many; a second start goes on"
    )
    given = parsed(parser, "quality")
    out = given.out
    if not given.table:
        check_data(given.data, CALIBRATION, *TEXTS, *BOOKS)
        bench = Quality(given.data, out, QUICK if given.quick else FULL, restart=given.restart)
        for key in [key for key in bench.pieces if given.again and key.startswith(given.again)]:
            del bench.pieces[key]
        bench.run(given.only, given.minutes)
    print(write_atomic(out.with_suffix(".md"), tables(json.loads(out.read_text()))))


if __name__ == "__main__":
    ended(main)
