"""What each criterion costs and what its plans are worth, on SmolLM2-135M-Instruct in fp32 on the CPU.

Cost: each criterion scores once in a fresh process, so that no peak is another's. Worth: every plan is evaluated by
virtual removal on three texts, equal removals once. Each finished piece is on disk before the next one begins, so a
second start goes on where the first one ended. The tables are made from the JSON file alone.
"""

import argparse
import json
import math
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict
from functools import partial
from pathlib import Path
from statistics import mean
from typing import NamedTuple

import numpy as np
from harness.criteria import OF_LAYERS
from harness.machine import machine
from harness.pieces import check_data, ended, parsed, parser_of
from harness.store import CALIBRATION, FP32, TEXTS, begun, machines_text, place, removal, save

from shallower import (
    Amount,
    Calibration,
    Protocol,
    Scores,
    SelectionOptions,
    UserError,
    open_model,
    plan,
    score,
)
from shallower.artifacts import Removal
from shallower.cli.demo import demo_model
from shallower.data.tokens import calibration_samples
from shallower.evaluation.perplexity import evaluation_segments
from shallower.runtime.format import layers
from shallower.runtime.progress import shown
from shallower.runtime.provenance import versions
from shallower.storage.files import write_atomic
from shallower.walk.removals import LossWalk

FULL, QUICK = {"sizes": [3, 6, 9], "tokens": 8192, "length": 128}, {"sizes": [1, 2], "tokens": 1024, "length": 128}
KEPT = ("criterion", "settings", "scores", "windows", "seconds", "peak_memory_bytes", "dtype")
TOGETHER = 16  # removals evaluated in one walk


class Spec(NamedTuple):
    """One way to choose layers: its selection and criterion as the table names them, what else tells it apart, and
    how.
    """

    selection: str
    criterion: str
    other: str
    choosing: SelectionOptions
    settings: dict[str, str]
    step: float = 0.0  # seconds a layer at a guess, where planning runs the model


def specs() -> dict[str, Spec]:
    """All plans by name. Iterative perplexity is missing because greedy is that.

    Magnitude and random gain nothing by iteration.
    """
    found = [Spec("lowest", name, "", SelectionOptions("lowest"), {}) for name in OF_LAYERS if name != "random"]
    found += [
        Spec("lowest", "random", f"seed {seed}", SelectionOptions("lowest"), {"seed": seed})
        for seed in ("1234", "1235", "1236")
    ]
    found += [
        Spec("lowest", name, "unprotected", SelectionOptions(keep_first=0, keep_last=0), {})
        for name in ("magnitude", "taylor")
    ]
    found += [Spec("window", name, "", SelectionOptions("window"), {}) for name in ("angular", "perplexity")]
    for name in ("max-gap", "input", "output", "middle", "both"):
        found.append(Spec(f"positional {name}", "-", "", SelectionOptions("positional", {"strategy": name}), {}))
    found += [
        Spec("lowest --iterative", name, "", SelectionOptions(iterative=True), {}, step=8)
        for name in ("block_influence", "taylor")
    ]
    found.append(Spec("greedy", "-", "", SelectionOptions("greedy"), {}, step=30))
    return {" ".join(filter(None, ("plan", *spec[:3]))): spec for spec in found}


class Bench:
    """The pieces, how each is made, and the file in which the finished ones are kept."""

    def __init__(self, data: Path, out: Path, settings: dict, *, restart: bool):
        self.model, self.out, self.sizes = open_model(demo_model(), FP32), out, settings["sizes"]
        self.calibration = Calibration(text=str(data / CALIBRATION))
        found = calibration_samples(self.calibration, lambda: self.model.tokenizer, self.model.vocabulary)
        self.tokens, self.record = found.tokens, found.record
        protocol = Protocol(length=settings["length"], max_tokens=settings["tokens"])
        self.texts = evaluation_segments(self.model, [data / name for name in TEXTS], None, protocol)
        about = {
            "model": {"source": Path(self.model.record.source).name, "fingerprint": self.model.record.fingerprint},
            "settings": settings,
            "calibration": asdict(self.record),
            "texts": {name: text.description for name, text in self.texts.items()},
            "versions": versions(),
            "machine": machine(),
        }
        self.content = begun(out, about, restart=restart)
        self.pieces = self.content["pieces"]

    def jobs(self) -> dict[str, tuple]:
        """All pieces in order: seconds at a guess, and the work. Evaluations of plans still to be made stand in under
        other keys.
        """
        found = {f"score {name}": (70 if name == "perplexity" else 20, partial(self.score, name)) for name in OF_LAYERS}
        sets = {removal(()): ()}
        for key, spec in specs().items():
            found[key] = (spec.step * self.sizes[-1], partial(self.plan, spec))
            known = self.pieces.get(key, {}).get("removed")
            sets |= (
                {removal(gone): gone for gone in known.values()}
                if known
                else {f"{key} {size}": () for size in self.sizes}
            )
        guess = 12 * self.content["settings"]["tokens"] / 8192
        for key, gone in sets.items():
            found |= {f"{name} {key}": (guess, (name, gone)) for name in self.texts}
        return found

    def evaluate(self, name: str, removals: list[tuple[int, ...]]) -> list[dict]:
        """Perplexity without each set of layers, walked together: sets that are equal so far share one stream."""
        walk = LossWalk(self.model, self.texts[name].tokens)
        with shown():
            means = (walk([*map(Removal.of_layers, removals)], name) / walk.predictions).tolist()
        return [{"value": math.exp(mean_nll), "nll": mean_nll, "tokens": walk.predictions} for mean_nll in means]

    def score(self, criterion: str) -> dict:
        """Score in a fresh process of this script, which is handed the tokens ready-made."""
        with tempfile.TemporaryDirectory() as folder:
            tokens, out = f"{folder}/tokens.npy", f"{folder}/scores.json"
            np.save(tokens, self.tokens.numpy())
            if subprocess.run(
                [sys.executable, __file__, "--one", criterion, "--tokens", tokens, "--out", out]
            ).returncode:
                raise UserError(f"scoring with {criterion} failed; see above")
            return json.loads(Path(out).read_text())

    def plan(self, spec: Spec) -> dict:
        """Which layers go, by size: the beginnings of one plan where they are nested, else one plan per size."""
        how = {"choosing": spec.choosing, "settings": spec.settings, "calibration": self.calibration}
        how |= {"criterion": spec.criterion} if spec.criterion in OF_LAYERS else {}
        source, stored = self.model, self.pieces.get(f"score {spec.criterion}")
        if spec.step:
            _ = self.model.stack  # loaded before the clock starts
        elif stored and not spec.settings:
            source = Scores(**{name: stored[name] for name in KEPT}, model=self.model.record, calibration=self.record)
        nested = spec.choosing.selection in ("lowest", "greedy")
        with shown(spec.selection == "greedy"):
            plans = {
                size: plan(source, amount=Amount(size), **how) for size in (self.sizes[-1:] if nested else self.sizes)
            }
        most = plans[self.sizes[-1]]
        removed = {str(size): sorted(most.order[:size]) if nested else plans[size].removed for size in self.sizes}
        row = [spec.selection, spec.criterion, f"{most.keep_first} + {most.keep_last}"]
        return {"row": row, "walks": spec.step > 0, "removed": removed, "order": most.order, "seconds": most.seconds}

    def run(self) -> None:
        """Make what is missing, write it at once, and say how long the rest takes."""
        spent, guessed, jobs = 0.0, 0.0, self.jobs()
        done = sum(key in self.pieces for key in jobs)
        print(
            f"resuming: {done} of {len(jobs)} pieces are done" if done else f"{len(jobs)} pieces at most",
            file=sys.stderr,
        )
        while left := {key: job for key, job in self.jobs().items() if key not in self.pieces}:
            total = sum(guess for guess, _ in left.values())
            (key, (guess, make)), began = next(iter(left.items())), time.monotonic()
            print(
                f"{len(left)} left, about {total * (spent / guessed if guessed else 1) / 60:.0f} min: {key}",
                file=sys.stderr,
            )
            on = place(self.content, machine())
            if isinstance(make, tuple):
                group = {
                    key: (guess, its[1])
                    for key, (guess, its) in left.items()
                    if isinstance(its, tuple) and its[0] == make[0]
                }
                group = dict(list(group.items())[:TOGETHER])
                found = self.evaluate(make[0], [gone for _, gone in group.values()])
                self.pieces |= {key: one | on for key, one in zip(group, found, strict=True)}
                guess = sum(guess for guess, _ in group.values())
            else:
                self.pieces[key] = make() | on
            save(self.out, self.content)
            spent, guessed = spent + time.monotonic() - began, guessed + guess


def score_alone(criterion: str, tokens: Path, out: Path) -> None:
    """Load, note the process's memory, score, and write what is kept; runs in a process of its own."""
    model = open_model(demo_model(), FP32)
    _ = [
        weight.sum() for weight in model.module.parameters()
    ]  # weights only mapped so far would count as the criterion's memory
    loaded = int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    found = score(model, criterion=criterion, calibration=Calibration(tokens=str(tokens)))
    write_atomic(out, json.dumps({name: getattr(found, name) for name in KEPT} | {"loaded_bytes": loaded}))


def tables(content: dict) -> str:
    """Both tables in Markdown, from the JSON alone."""
    used, settings, pieces = (content[name] for name in ("calibration", "settings", "pieces"))
    walks = [f"{' '.join(item['row'][:2])} {item['seconds']:.0f} s" for item in pieces.values() if item.get("walks")]
    about = f"{machines_text(content)}, torch {content['versions']['torch']}, {content['date']}"
    tokens = f"{used['samples']} x {used['length']} tokens of {used['source']} (seed {used['seed']})"
    parts = [
        f"# Criteria\n\n{content['model']['source']} in fp32; {about}.",
        f"## Cost\n\nOne scoring on {tokens}, each in a fresh process, loading left out.\n\n{cost_table(pieces)}",
        f"Plans of {max(settings['sizes'])} layers that run the model: {'; '.join(walks)}.",
        f"## Worth\n\nPerplexity by virtual removal, {settings['tokens']} tokens of each text in segments of "
        f"{settings['length']}.",
        "`x dense` is the mean over the texts of perplexity / dense perplexity. Iterative perplexity is "
        "missing: it is greedy.",
        worth_table(content),
    ]
    return "\n\n".join(parts) + "\n"


def cost_table(pieces: dict) -> str:
    """The first table, the fastest first."""
    rows = ["| criterion | seconds | peak memory, MiB | beyond the loaded model, MiB |", "|---|--:|--:|--:|"]
    for item in sorted(
        (item for key, item in pieces.items() if key.startswith("score ")), key=lambda item: item["seconds"]
    ):
        peak, loaded = item["peak_memory_bytes"] / 2**20, item["loaded_bytes"] / 2**20
        rows.append(f"| {item['criterion']} | {item['seconds']:.2f} | {peak:.0f} | {peak - loaded:.0f} |")
    return "\n".join(rows)


def worth_rows(content: dict) -> list[list]:
    """Size, selection, criterion, protection, perplexity per text, ``x dense`` and layers.

    Equal rows (seeds) are averaged.
    """
    pieces, texts, groups, body = content["pieces"], content["texts"], {}, []
    for item in pieces.values():
        for size, removed in item.get("removed", {}).items():
            groups.setdefault((int(size), *item["row"]), []).append(removed)
    figures = {key: piece["value"] for key, piece in pieces.items() if "value" in piece}
    dense = [figures.get(f"{name} {removal(())}", math.nan) for name in texts]
    for label, sets in groups.items():
        measured = [[figures.get(f"{name} {removal(removed)}", math.nan) for name in texts] for removed in sets]
        ratios = [mean(new / old for new, old in zip(values, dense, strict=True)) for values in measured]
        which = (
            layers(sets[0]) if len(sets) == 1 else f"{len(sets)} seeds, mean of {min(ratios):.2f} to {max(ratios):.2f}"
        )
        body.append([*label, *(f"{mean(column):.1f}" for column in zip(*measured, strict=True)), mean(ratios), which])
    body.sort(key=lambda row: (row[0], row[-2]))
    return [[0, "dense", "-", "-", *(f"{value:.1f}" for value in dense), 1.0, "-"], *body]


def worth_table(content: dict) -> str:
    """The second table: the dense model, then by size and the best first."""
    head = [["removed", "selection", "criterion", "protected", *content["texts"], "x dense", "layers"]]
    rows = [*head, ["--:", *["---"] * 3, *["--:"] * 4, "---"], *worth_rows(content)]
    return "\n".join(
        f"| {' | '.join(f'{cell:.2f}' if isinstance(cell, float) else str(cell) for cell in row)} |" for row in rows
    )


def short_table(content: dict) -> str:
    """The README's table: a row per way to choose, ``x dense`` by number of removed layers, the best at 6 first."""
    found: dict[tuple, dict[int, float]] = {}
    for row in worth_rows(content)[1:]:
        found.setdefault(tuple(row[1:4]), {})[row[0]] = row[-2]
    sizes = content["settings"]["sizes"]
    order = sorted(found.items(), key=lambda item: item[1][sizes[len(sizes) // 2]])
    lines = ["| selection | criterion | protected |" + "".join(f" {size} of 30 removed |" for size in sizes)]
    lines.append("|---|---|---|" + "--:|" * len(sizes))
    for label, ratios in order:
        lines.append(
            f"| {' | '.join(label)} |"
            + "".join(f" {ratios[size]:.{2 if ratios[size] < 100 else 0}f} |" for size in sizes)
        )
    return "\n".join(lines) + "\n"


def main() -> None:
    """Read the arguments; ``--one`` with ``--tokens`` is how the script starts itself for a single criterion."""
    parser = parser_of(__doc__, "criteria", without=("only",))
    parser.add_argument("--one", choices=OF_LAYERS, help=argparse.SUPPRESS)
    parser.add_argument("--tokens", type=Path, help=argparse.SUPPRESS)
    given = parsed(parser, "criteria")
    out = given.out
    if given.one:
        return score_alone(given.one, given.tokens, out)
    if not given.table:
        check_data(given.data, CALIBRATION)
        bench = Bench(given.data, out, QUICK if given.quick else FULL, restart=given.restart)
        for key in [key for key in bench.pieces if given.again and key.startswith(given.again)]:
            del bench.pieces[key]
        bench.run()
    print(write_atomic(out.with_suffix(".md"), tables(json.loads(out.read_text()))))


if __name__ == "__main__":
    ended(main)
