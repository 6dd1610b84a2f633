"""What each criterion costs and what its plans are worth, on SmolLM2-135M-Instruct in fp32 on the CPU.

Cost: each criterion scores once in a fresh process, so that no peak is another's. Worth: every plan is evaluated by
virtual removal on three texts, equal removals once. Each finished piece is on disk before the next one begins, so a
second start goes on where the first one ended. The tables are made from the JSON file alone.
"""

import argparse
import hashlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import mean

import numpy as np
import torch

from shallower import methods, stages
from shallower.anatomy.model import Model
from shallower.artifacts import Scores, versions
from shallower.calibration import Calibration, calibration_tokens
from shallower.demo import demo_model
from shallower.errors import UserError
from shallower.evaluation.perplexity import Protocol, perplexity
from shallower.files import write_atomic
from shallower.progress import shown
from shallower.tables import layers

ROOT = Path(__file__).resolve().parents[1]
DATA = Path(os.environ.get("SHALLOWER_DATA", ROOT.parent / "shared" / "data" / "text"))
OUT = ROOT / "benchmarks" / "results" / "criteria.json"
CALIBRATION = "wikitext2.valid.txt"
TEXTS = ("wikitext2-raw.test.txt", "ptb.valid.txt", "books/emma_158.txt")
CRITERIA = methods.names("criteria")
FULL, QUICK = {"sizes": [3, 6, 9], "tokens": 8192, "length": 128}, {"sizes": [1, 2], "tokens": 1024, "length": 128}
SECTIONS = ("scores", "plans", "perplexity")
KEPT = ("criterion", "settings", "scores", "windows", "seconds", "peak_memory_bytes", "dtype")


@dataclass(frozen=True)
class Spec:
    """One way to choose layers; ``bare`` protects none of them."""

    selection: str
    criterion: str | None = None
    iterative: bool = False
    strategy: str | None = None
    seed: int | None = None
    bare: bool = False

    @property
    def walks(self) -> bool:
        """Whether planning runs the model, which takes its time."""
        return self.iterative or self.selection == "greedy"

    @property
    def row(self) -> list[str]:
        """Selection and criterion for the table; equal for the seeds of random, which are averaged."""
        return [self.selection + (f" {self.strategy}" if self.strategy else " --iterative" if self.iterative else ""), self.criterion or "-"]

    @property
    def key(self) -> str:
        """Name of the plan's piece."""
        return ", ".join([*self.row, *["unprotected"] * self.bare, *([f"seed {self.seed}"] if self.seed else [])])


def specs() -> list[Spec]:
    """All plans. Iterative perplexity is missing because greedy is that; magnitude and random do not change by iteration."""
    found = [Spec("lowest", name) for name in CRITERIA if name != "random"]
    found += [Spec("lowest", "random", seed=seed) for seed in (1234, 1235, 1236)]
    found += [Spec("lowest", name, bare=True) for name in ("magnitude", "taylor")]
    found += [Spec("window", name) for name in ("angular", "perplexity")]
    found += [Spec("positional", strategy=name) for name in ("max-gap", "input", "output", "middle", "both")]
    return [*found, *(Spec("lowest", name, iterative=True) for name in ("block_influence", "taylor")), Spec("greedy")]


@dataclass(frozen=True)
class Job:
    """One piece of work: where its result is kept, how many seconds it takes at a guess, and how it is made."""

    section: str
    key: str
    guess: float
    make: Callable[[], dict]


class Bench:
    """The pieces, how each is made, and the file in which the finished ones are kept."""

    def __init__(self, data: Path, out: Path, settings: dict, *, restart: bool):
        self.model, self.out, self.sizes = open_demo(), out, settings["sizes"]
        self.calibration = Calibration(text=str(data / CALIBRATION))
        self.tokens, self.record = calibration_tokens(self.calibration, lambda: self.model.tokenizer, self.model.vocabulary)
        protocol = Protocol(length=settings["length"], max_tokens=settings["tokens"])
        self.segments = stages.evaluation_segments(self.model, [data / name for name in TEXTS], None, protocol)
        self.guess = 12 * settings["tokens"] / 8192
        header = {
            "model": {"source": Path(self.model.record.source).name, "fingerprint": self.model.record.fingerprint},
            "settings": settings,
            "calibration": asdict(self.record),
            "texts": {name: segments.description for name, segments in self.segments.items()},
            "versions": versions(),
            "machine": {"cpu": cpu_name(), "cores": os.cpu_count(), "torch_threads": torch.get_num_threads()},
        }
        self.content = begun(out, header, restart=restart)

    def jobs(self) -> list[Job]:
        """All pieces in order; evaluations of plans still to be made stand in under keys of their own."""
        found = [Job("scores", name, 70 if name == "perplexity" else 20, lambda name=name: self.score(name)) for name in CRITERIA]
        sets = {removal(()): ()}
        for spec in specs():
            guess = (30 if spec.selection == "greedy" else 8 if spec.walks else 0) * self.sizes[-1]
            found.append(Job("plans", spec.key, guess, lambda spec=spec: self.plan(spec)))
            plan = self.content["plans"].get(spec.key)
            known = plan["removed"].values() if plan else ()
            sets |= {removal(layers): layers for layers in known} if plan else {f"{spec.key} {size}": () for size in self.sizes}
        return found + [self.evaluation(text, key, removed) for key, removed in sets.items() for text in self.segments]

    def evaluation(self, text: str, key: str, removed: Iterable[int]) -> Job:
        return Job("perplexity", f"{text} {key}", self.guess, lambda: perplexity(self.model, self.segments[text], removed=removed))

    def score(self, criterion: str) -> dict:
        """Score in a fresh process of this script, which is handed the tokens ready-made."""
        with tempfile.TemporaryDirectory() as folder:
            tokens, out = f"{folder}/tokens.npy", f"{folder}/scores.json"
            np.save(tokens, self.tokens.numpy())
            if subprocess.run([sys.executable, __file__, "--one", criterion, "--tokens", tokens, "--out", out]).returncode:
                raise UserError(f"scoring with {criterion} failed; see above")
            return read(Path(out))

    def plan(self, spec: Spec) -> dict:
        """Which layers go, by size: the beginnings of one plan where they are nested, else one plan per size."""
        nested, keep = spec.selection in ("lowest", "greedy"), 0 if spec.bare else None
        choosing = stages.Choosing(spec.selection, {"strategy": spec.strategy} if spec.strategy else {}, keep, keep, spec.iterative)
        how = {"criterion": spec.criterion or "taylor", "settings": {"seed": str(spec.seed)} if spec.seed else None}
        if spec.walks:
            _ = self.model.stack  # loaded before the clock starts
        plans = {}
        with shown(spec.selection == "greedy"):
            for size in self.sizes[-1:] if nested else self.sizes:
                amount = stages.Amount(remove=size)
                plans[size] = stages.plan(self.source(spec), amount=amount, choosing=choosing, calibration=self.calibration, **how)
        most = plans[self.sizes[-1]]
        removed = {str(size): sorted(most.order[:size]) if nested else plans[size].removed for size in self.sizes}
        kept = {"keep": [most.keep_first, most.keep_last], "order": most.order, "trace": most.trace, "seconds": most.seconds}
        return {"row": spec.row, "walks": spec.walks, "removed": removed, **kept}

    def source(self, spec: Spec) -> Model | Scores:
        """The scores of the first part where the plan follows from them, else the model."""
        if spec.walks or spec.seed or not spec.criterion:
            return self.model
        stored = self.content["scores"][spec.criterion]
        return Scores(**{name: stored[name] for name in KEPT}, model=self.model.record, calibration=self.record)

    def pending(self) -> list[Job]:
        return [job for job in self.jobs() if job.key not in self.content[job.section]]

    def run(self) -> None:
        """Make what is missing, write it at once, and say how long the rest takes."""
        total, left, worked, started = len(self.jobs()), self.pending(), 0.0, time.monotonic()
        done, guess = total - len(left), sum(job.guess for job in left) / 60
        say(f"resuming: {done} of {total} pieces are done" if done else f"{total} pieces at most, about {guess:.0f} min")
        while left:
            job, began = left[0], time.monotonic()
            self.content[job.section][job.key] = job.make()
            save(self.out, self.content)
            worked, left, ended = worked + job.guess, self.pending(), time.monotonic()
            rest = (ended - started) / max(worked, 1) * sum(job.guess for job in left) / 60
            say(f"{job.section}: {job.key}: {ended - began:.1f} s; {len(left)} left, about {rest:.0f} min")


def begun(path: Path, header: dict, *, restart: bool) -> dict:
    """The results so far, or empty ones; other settings than those of the file are refused."""
    header = json.loads(json.dumps(header))
    digest = hashlib.sha256(json.dumps(header, sort_keys=True).encode()).hexdigest()[:16]
    if restart or not path.exists():
        return {"settings_hash": digest, "date": time.strftime("%Y-%m-%d"), **header, **{name: {} for name in SECTIONS}}
    content = read(path)
    if content.get("settings_hash") != digest:
        other = ", ".join(name for name in header if content.get(name) != header[name])
        raise UserError(f"{path} was made with other settings ({other}): --restart begins anew, --out FILE writes elsewhere")
    return content


def save(path: Path, content: dict) -> None:
    """Write the file atomically, one piece a line."""
    lines = {name: ",\n".join(f"  {json.dumps(key)}: {json.dumps(piece)}" for key, piece in content[name].items()) for name in SECTIONS}
    parts = [f"{json.dumps(key)}: " + (f"{{\n{lines[key]}\n}}" if key in lines else json.dumps(value)) for key, value in content.items()]
    write_atomic(path, "{\n" + ",\n".join(parts) + "\n}\n")


def score_alone(criterion: str, tokens: Path, out: Path) -> None:
    """Load, note the process's memory, score, and write what is kept; runs in a process of its own."""
    model = open_demo()
    for weight in model.module.parameters():
        weight.sum()  # weights that are only mapped so far would count as the criterion's memory
    _, pages, *_ = Path("/proc/self/statm").read_text().split()
    found = stages.score(model, criterion=criterion, calibration=Calibration(tokens=str(tokens)))
    write_atomic(out, json.dumps({name: getattr(found, name) for name in KEPT} | {"loaded_bytes": int(pages) * os.sysconf("SC_PAGE_SIZE")}))


def tables(content: dict) -> str:
    """Both tables in Markdown, from the JSON alone."""
    used, machine, most = content["calibration"], content["machine"], max(content["settings"]["sizes"])
    slow = "; ".join(f"{' '.join(plan['row'])} {plan['seconds']:.0f} s" for plan in content["plans"].values() if plan["walks"])
    about = f"{content['model']['source']}, fp32, {machine['cpu']}, {machine['torch_threads']} threads, torch {content['versions']['torch']}"
    cost = f"One scoring on {used['samples']} x {used['length']} tokens of {used['source']}, in a fresh process, loading left out."
    protocol = f"{content['settings']['tokens']} tokens of each text in segments of {content['settings']['length']}"
    worth = f"Perplexity without the removed layers, {protocol}; `x dense` is the mean over the texts of perplexity / dense perplexity."
    first = [f"# Criteria\n\n{about}, {content['date']}.\n\n## Cost\n\n{cost}\n", *cost_rows(content["scores"])]
    notes = [f"\nPlans that run the model, {most} layers: {slow}.", f"\n## Worth\n\n{worth} Lowest --iterative with perplexity is greedy.\n"]
    return "\n".join([*first, *notes, *worth_rows(content)]) + "\n"


def cost_rows(scores: dict) -> list[str]:
    """The first table, the fastest first."""
    rows = ["| criterion | seconds | peak memory, MiB | beyond the loaded model, MiB |", "|---|--:|--:|--:|"]
    for name, item in sorted(scores.items(), key=lambda pair: pair[1]["seconds"]):
        peak, loaded = item["peak_memory_bytes"] / 2**20, item["loaded_bytes"] / 2**20
        rows.append(f"| {name} | {item['seconds']:.2f} | {peak:.0f} | {max(0, peak - loaded):.0f} |")
    return rows


def worth_rows(content: dict) -> list[str]:
    """The second table: the dense model, then by size and the best first; plans with the same row are averaged."""
    dense, groups = figures(content, ()), {}
    for plan in content["plans"].values():
        for size, removed in plan["removed"].items():
            groups.setdefault((int(size), *plan["row"], "{} + {}".format(*plan["keep"])), []).append(removed)
    body = []
    for label, sets in groups.items():
        measured = [figures(content, removed) for removed in sets]
        ratios = [mean(new / old for new, old in zip(row, dense, strict=True)) for row in measured]
        which = layers(sets[0]) if len(sets) == 1 else f"{len(sets)} seeds, mean; {min(ratios):.2f} to {max(ratios):.2f} x dense"
        body.append((label[0], mean(ratios), [*label, *(f"{mean(column):.1f}" for column in zip(*measured, strict=True)), f"{mean(ratios):.2f}", which]))
    head = [["removed", "selection", "criterion", "protected", *content["texts"], "x dense", "layers"], ["--:", *["---"] * 3, *["--:"] * 4, "---"]]
    first = [0, "dense", "-", "-", *(f"{value:.1f}" for value in dense), "1.00", "-"]
    return [f"| {' | '.join(map(str, row))} |" for row in [*head, first, *(line[-1] for line in sorted(body))]]


def figures(content: dict, removed: Iterable[int]) -> list[float]:
    """Perplexity on every text without these layers."""
    try:
        return [content["perplexity"][f"{text} {removal(removed)}"]["value"] for text in content["texts"]]
    except KeyError as error:
        raise UserError(f"no figure yet for {error}: let the benchmark end first") from error


def removal(removed: Iterable[int]) -> str:
    """One text for one set of layers."""
    return "without " + (",".join(map(str, sorted(removed))) or "none")


def open_demo() -> Model:
    return stages.open_model(demo_model(), stages.Compute(dtype="fp32", device="cpu"))


def cpu_name() -> str:
    found = [line.split(":", 1)[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
    return found[0] if found else "unknown"


def say(message: str) -> None:
    print(message, file=sys.stderr, flush=True)


def read(path: Path) -> dict:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read ({error}); run the benchmark, with --restart if the file is broken") from error


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=DATA, help="folder of the texts, also $SHALLOWER_DATA (%(default)s)")
    parser.add_argument("--out", type=Path, help=f"the results, with the tables beside them as .md ({OUT})")
    parser.add_argument("--quick", action="store_true", help="a smoke test: 1 and 2 layers, 1024 tokens; needs --out")
    parser.add_argument("--restart", action="store_true", help="begin anew")
    parser.add_argument("--table", action="store_true", help="only remake the tables from the results")
    parser.add_argument("--one", choices=CRITERIA, help="only score with this criterion on --tokens (used by the script itself)")
    parser.add_argument("--tokens", type=Path, help="a .npy file for --one")
    given = parser.parse_args()
    if (given.quick or given.one) and not given.out or given.one and not given.tokens:
        parser.error("--quick needs --out; --one needs --tokens and --out")
    return given


def main() -> None:
    given = arguments()
    out = given.out or OUT
    if given.one:
        return score_alone(given.one, given.tokens, out)
    if not given.table:
        if not (given.data / CALIBRATION).is_file():
            raise UserError(f"no {CALIBRATION} in {given.data}: say with --data or $SHALLOWER_DATA where the texts are")
        Bench(given.data, out, QUICK if given.quick else FULL, restart=given.restart).run()
    print(write_atomic(out.with_suffix(".md"), tables(read(out))))


if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        sys.exit(f"error: {error}")
