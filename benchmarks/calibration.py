"""How much the choice of layers depends on the calibration text and its size, in fp32 on the CPU.

Every criterion chooses a fifth of the layers, calibrated on each kind of text (encyclopaedia, novels, dialogue,
code, instructions, all five mixed, the shipped prose) with 10, 64 and 256 samples of 128 tokens. Each distinct set
of removed layers is evaluated once per model, unrepaired and by virtual removal, on held-out text of every kind and
on newspapers.
Each finished piece is on disk before the next one begins, so a second start goes on where the first one ended. The
tables are made from the JSON file alone.
"""

import argparse
import json
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from itertools import chain, groupby
from pathlib import Path
from typing import NamedTuple
from unittest.mock import patch

import gpu_models
import numpy as np
import torch
from calibration_tables import DATA_FREE, REPAIR, Removed, updated
from harness.machine import machine, others
from harness.pieces import ended, parsed, parser_of
from harness.store import FP32, ROOT, begun, place, removal, save

from shallower import (
    Amount,
    Calibration,
    Plan,
    RepairOptions,
    Scores,
    SelectionOptions,
    UserError,
    open_model,
    plan,
    score,
)
from shallower.anatomy.model import Model
from shallower.artifacts import Removal, plain
from shallower.cli.demo import demo_model
from shallower.data.tokens import calibration_samples
from shallower.evaluation.perplexity import perplexity, segments_of_tokens
from shallower.evaluation.removals import removals_perplexity
from shallower.runtime.memory import Peak
from shallower.runtime.progress import shown
from shallower.runtime.provenance import versions
from shallower.settings.quantities import seconds_of
from shallower.stages.repair import fit_repair
from shallower.storage.files import write_atomic
from shallower.walk.removals import LossWalk

SECOND_MODEL = ROOT.parent / "shared/models/get-qwen"  # prints the path of a model
RESULTS, PAGE = ROOT / "benchmarks/results/calibration.json", ROOT / "docs/calibration.md"
MIXED, SHIPPED, NEWSPAPERS = "mixed", "shipped", "newspapers"
REPAIRED = {"full": 64, "tiny": 12}  # samples that a repair is fitted on
LARGEST = 1_000_000  # characters of a kind, in equal parts from its files
SMALL = 200_000_000  # parameters up to which a model is evaluated on more segments
TOGETHER = 8  # removals evaluated in one walk
FULL = {
    "sizes": [10, 64, 256],
    "length": 128,
    "seed": 1234,
    "share": 0.2,  # of the layers that go
    "evaluation": {"length": 128, "segments": 16, "segments_of_large_models": 8, "seed": 4321},
}
TINY = FULL | {
    "sizes": [6, 12],
    "share": 0.34,
    "length": 16,
    "evaluation": {"length": 16, "segments": 4, "segments_of_large_models": 4, "seed": 4321},
}
WALKS = {  # what is scored in one pass because it looks at the same evidence, the cheapest first
    "streams": ("block_influence", "angular"),
    "flows": ("gate", "gradient-hidden"),
    "gradients": ("taylor", "gradient-l1"),
    "losses": ("perplexity",),
    "greedy": ("greedy",),
}
DEAR = ("losses", "greedy")  # walks that come last, but for the first model at the first size
CRITERIA = tuple(name for names in WALKS.values() for name in names)
PUBLISHED = (
    "lowest taylor",
    "lowest block_influence",
    "window angular",
    "lowest perplexity",
    "greedy",
)  # evaluated first


class Kind(NamedTuple):
    """A kind of text: the files to calibrate on, those to evaluate on, and how a file is read; for code, modules."""

    calibration: tuple[str, ...]
    evaluation: tuple[str, ...]
    read: Callable[[Path, str], str]


class Step(NamedTuple):
    """Scoring one model by one walk with so many samples, over all kinds."""

    size: int
    model: str
    walk: str


class Job(NamedTuple):
    """Pieces to be made at once: their name, what they cost (tokens x parameters), and how."""

    name: str
    cost: float
    make: Callable[[], dict[str, dict]]


# ---------------------------------------------------------------- texts


def prose(folder: Path, name: str) -> str:
    """A text file of the data folder."""
    return (folder / name).read_text(encoding="utf-8")


def dialogue(folder: Path, name: str) -> str:
    """The spoken words of a novel, a line for each turn, where at least four paragraphs in a row begin with speech."""
    paragraphs = [line for line in prose(folder, name).split("\n") if line.strip()]
    runs = [list(run) for spoken, run in groupby(paragraphs, lambda line: line[0] in '"“') if spoken]
    return "\n\n".join("\n".join(map(speech, run)) for run in runs if len(run) >= 4)


def speech(paragraph: str) -> str:
    """What stands between quotation marks, in one pair of them."""
    spoken = paragraph.replace("“", '"').replace("”", '"').split('"')[1::2]
    return f'"{" ".join(part.strip() for part in spoken)}"'


def code(folder: Path, name: str) -> str:
    """A module of the running Python's standard library."""
    return Path(sysconfig.get_path("stdlib"), name).read_text(encoding="utf-8")


def instructions(folder: Path, name: str) -> str:
    """Every second example of a file, ``NAME even`` or ``NAME odd``."""
    name, half = name.split()
    rows = (folder.parent / name).read_text(encoding="utf-8").splitlines()[half == "odd" :: 2]
    return "\n\n".join(map(example, map(json.loads, rows)))


def example(row: dict[str, str]) -> str:
    """An instruction with its answer."""
    more = f"### Input:\n{row['input']}\n\n" if row["input"] else ""
    return f"### Instruction:\n{row['instruction']}\n\n{more}### Response:\n{row['output']}"


KINDS = {
    "encyclopaedia": Kind(("wikitext2.valid.txt",), ("wikitext2-raw.test.txt",), prose),
    "novels": Kind(
        ("books/bleak-house_1023.txt", "books/the-moonstone_155.txt", "books/middlemarch_145.txt"),
        ("books/emma_158.txt", "books/moby-dick-or-the-whale_2701.txt", "books/dracula_345.txt"),
        prose,
    ),
    "dialogue": Kind(
        ("books/great-expectations_1400.txt", "books/little-women_514.txt", "books/the-brothers-karamazov_28054.txt"),
        (
            "books/pride-and-prejudice_1342.txt",
            "books/treasure-island_120.txt",
            "books/the-return-of-the-native_122.txt",
        ),
        dialogue,
    ),
    "code": Kind(
        (
            "argparse.py",
            "typing.py",
            "tarfile.py",
            "inspect.py",
            "subprocess.py",
            "difflib.py",
            "pickle.py",
            "ipaddress.py",
        ),
        (
            "optparse.py",
            "statistics.py",
            "unittest/mock.py",
            "logging/__init__.py",
            "shutil.py",
            "threading.py",
            "enum.py",
        ),
        code,
    ),
    "instructions": Kind(("instruct/alpaca_format.jsonl even",), ("instruct/alpaca_format.jsonl odd",), instructions),
    NEWSPAPERS: Kind((), ("ptb.valid.txt",), prose),  # evaluated only
}
CALIBRATED = tuple(name for name, kind in KINDS.items() if kind.calibration)
EVERY_KIND = (*CALIBRATED, MIXED, SHIPPED)


def text_of(kind: Kind, names: tuple[str, ...], data: Path) -> str:
    """The text of some files of a kind, equal parts of each."""
    try:
        return "\n\n".join(kind.read(data, name)[: LARGEST // len(names)] for name in names)
    except FileNotFoundError as error:
        raise UserError(f"no {error.filename}: say with --data or $SHALLOWER_DATA where the texts are") from error


def written_texts(data: Path, folder: Path) -> None:
    """Write ``KIND.txt`` to calibrate on and ``evaluation-KIND.txt``."""
    for name, kind in KINDS.items():
        write_atomic(folder / f"evaluation-{name}.txt", text_of(kind, kind.evaluation, data))
        if kind.calibration:
            write_atomic(folder / f"{name}.txt", text_of(kind, kind.calibration, data))


def made_up_texts(folder: Path) -> None:
    """The same files with made-up words, other ones for each kind."""
    for number, name in enumerate(KINDS):
        draw = np.random.default_rng(number)
        words = ["".join(draw.choice(list("abcdefghijklmnop"), 5)) for _ in range(40)]
        for file in (f"evaluation-{name}.txt", f"{name}.txt"):
            write_atomic(folder / file, " ".join(draw.choice(words, 1500)))


# ---------------------------------------------------------------- counting


@contextmanager
def counted() -> Iterator[Counter]:
    """Layer forwards of the losses of removals inside: their distinct beginnings that end in a layer that runs."""
    found, whole = Counter(), LossWalk.halves

    def call(walk: LossWalk, removals: Sequence[Removal], *given, **options):
        keys = ["".join(walk.model.steps(removal).states(removal)) for removal in removals]
        found["forwards"] += len({key[:k] for key in keys for k in range(1, len(key) + 1) if key[k - 1] == "0"})
        return whole(walk, removals, *given, **options)

    with patch.object(LossWalk, "halves", call):
        yield found


def passes(walk: str, layers: int, removed: int) -> tuple[int, int]:
    """Forwards and backwards of one layer for every sample; greedy's forwards at a guess, ``counted`` tells them."""
    leave_one_out = layers * (layers + 1) // 2 - 1
    return {
        "streams": (layers, 0),
        "flows": (2 * layers, layers),
        "gradients": (2 * layers, layers),
        "losses": (leave_one_out, 0),
        "greedy": (int(0.6 * leave_one_out * removed), 0),
    }[walk]


def short(values: list[float]) -> list[float]:
    """Six digits of each."""
    return [float(f"{value:.6g}") for value in values]


# ---------------------------------------------------------------- the pieces


class CalibrationBench:
    """The pieces, how each is made, and the file in which the finished ones are kept."""

    def __init__(self, models: list[Path], texts: Path, out: Path, settings: dict, given: argparse.Namespace):
        self.paths = {path.stem: path for path in models}
        self.texts, self.out, self.settings = (
            texts,
            out,
            settings | {"repaired": REPAIRED["tiny" if given.tiny else "full"]},
        )
        self.sizes, self.kinds = given.sizes or settings["sizes"], given.kinds or list(EVERY_KIND)
        self.criteria = given.criteria or [*CRITERIA, DATA_FREE, REPAIR]
        files = {name: {"calibration": kind.calibration, "evaluation": kind.evaluation} for name, kind in KINDS.items()}
        about = {
            "settings": settings,
            "kinds": {"made-up words": {}} if given.tiny else json.loads(json.dumps(files)),
            "calibrated": list(CALIBRATED),
            "texts": list(KINDS),
            "versions": versions(),
            "machine": machine(),
        }
        content = begun(out, about, restart=given.restart)
        known = {name: {} for name in self.paths} | content.pop("models", {})
        last = {
            "walks": {walk: list(names) for walk, names in WALKS.items()},
            "models": known,
            "pieces": content.pop("pieces"),
        }
        self.content = {name: value for name, value in content.items() if name not in last} | last
        self.pieces = self.content["pieces"]
        self.opened: dict[str, Model] = {}

    def model(self, name: str) -> Model:
        """The model of that name; the one before is let go."""
        if name not in self.opened:
            self.opened.clear()
            found = open_model(self.paths[name], FP32)
            record, known = found.record, self.content["models"][name]
            if known.get("fingerprint", record.fingerprint) != record.fingerprint:
                raise UserError(f"{self.out} is of another {name}: --restart begins anew, --out FILE writes elsewhere")
            own = self.settings["evaluation"]
            known |= {"fingerprint": record.fingerprint, "layers": record.layers, "parameters": record.parameters}
            known["removed"] = round(self.settings["share"] * record.layers)
            known["segments"] = own["segments" if record.parameters <= SMALL else "segments_of_large_models"]
            known.setdefault("calibration", {})
            self.opened[name] = found
        return self.opened[name]

    def steps(self) -> list[Step]:
        """What is scored in order: small sizes first, dear walks last; greedy at the smallest size only."""
        first = (self.settings["sizes"][0], next(iter(self.paths)))
        every = [Step(size, model, walk) for size in self.sizes for model in self.paths for walk in WALKS]
        every = [step for step in every if step.walk != "greedy" or step.size == first[0]]
        return sorted(every, key=lambda step: step.walk in DEAR and step[:2] != first)

    def jobs(self) -> Iterator[Job]:
        """What is missing, that which matters most first; evaluations of plans as soon as these are known."""
        blocks = groupby(self.steps(), lambda step: (step.size, step.model, step.walk == "greedy"))
        for (_, name, greedy), steps in blocks:
            for step in steps:
                yield from self.scorings(step)
            yield from self.evaluations(name)
            if DATA_FREE in self.criteria and not greedy and f"fixed {name}" not in self.pieces:
                yield Job(f"fixed {name}", 1, partial(self.fixed, name))
                yield from self.evaluations(name)

    def scorings(self, step: Step) -> Iterator[Job]:
        """One walk on every kind of text, for the criteria that are asked for and missing."""
        for kind in self.kinds:
            start = f"score {step.model} {kind} {step.size} "
            asked = [name for name in WALKS[step.walk] if name in self.criteria]
            missing = [name for name in asked if start + name not in self.pieces]
            if missing:
                make = partial(self.greedy if step.walk == "greedy" else self.score, step, kind, missing)
                yield Job(start + "+".join(missing), self.cost(step), make)

    def repairs(self) -> Iterator[Job]:
        """A repair of one removal, fitted on each kind of text.

        The removal is that which block influence's window finds on the mixed.
        """
        for name in self.paths if REPAIR in self.criteria else ():
            size, chosen = self.settings["repaired"], self.chosen(name)
            if chosen not in self.pieces:
                step = Step(self.sizes[0], name, "streams")
                yield Job(chosen, self.cost(step), partial(self.score, step, MIXED, ["block_influence"]))
            for kind in self.kinds:
                if f"repair {name} {kind} {size}" not in self.pieces:
                    yield Job(f"repair {name} {kind} {size}", size, partial(self.repair, name, kind, size))

    def chosen(self, name: str) -> str:
        """The piece that says which layers are gone where a repair is fitted."""
        return f"score {name} {MIXED} {self.sizes[0]} block_influence"

    def repair(self, name: str, kind: str, size: int) -> dict[str, dict]:
        """What ``sequential`` leaves on every text when it was fitted on one kind, in NLL.

        And on the samples that it held out itself.
        """
        model, (tokens, _) = self.model(name), self.drawn(name, kind, size)
        gone = Removal.of_layers(self.pieces[self.chosen(name)]["plans"]["window block_influence"]["removed"])
        with shown():
            patch, report = fit_repair(model, gone, RepairOptions("sequential", {}, tokens))
            with model.patched(patch):
                told = {
                    text: perplexity(model, segments_of_tokens(self.evaluated(name, text)), removal=gone).nll
                    for text in KINDS
                }
        about = {
            "removed": list(gone.layers),
            "nll": told,
            "held_out": plain(report.loss),
            "fitted_tokens": report.fitted_tokens,
        }
        return {f"repair {name} {kind} {size}": about | {"seconds": round(report.seconds, 3)}}

    def evaluated(self, name: str, text: str) -> torch.Tensor:
        """The tokens of a text to evaluate a model on."""
        own = self.settings["evaluation"]
        wanted = Calibration(
            text=str(self.texts / f"evaluation-{text}.txt"),
            samples=self.content["models"][name]["segments"],
            length=own["length"],
            seed=own["seed"],
        )
        return calibration_samples(wanted, lambda: self.model(name).tokenizer, self.model(name).vocabulary).tokens

    def cost(self, step: Step) -> float:
        """Tokens x parameters, a backward counted as two forwards; the head left out."""
        record = self.model(step.model).record
        there, back = passes(step.walk, record.layers, self.content["models"][step.model]["removed"])
        each = sum(record.layer_parameters) / record.layers
        return step.size * self.settings["length"] * each * (there + 2 * back)

    def plans(self, name: str) -> dict[Removed, list[str]]:
        """Every removal that is planned for a model, those of published ways first, then those chosen most often."""
        found: dict[Removed, list[str]] = {(): []}
        for key, piece in self.pieces.items():
            if key.startswith((f"score {name} ", f"fixed {name}")):
                for label, one in piece["plans"].items():
                    found.setdefault(tuple(one["removed"]), []).append(label)
        first = {(), *(gone for gone, labels in found.items() if set(labels) & set(PUBLISHED))}
        order = sorted(found, key=lambda gone: (gone not in first, -len(found[gone]), gone))
        return {gone: found[gone] for gone in order}

    def evaluations(self, name: str) -> Iterator[Job]:
        """Perplexities without each set of layers, several sets on one text at once."""
        every = list(self.plans(name))
        keys = {gone: {text: f"plain {name} {text} {removal(gone)}" for text in KINDS} for gone in every}
        missing = [gone for gone in every if any(key not in self.pieces for key in keys[gone].values())]
        for start in range(0, len(missing) if len(every) > 1 else 0, TOGETHER):
            for text in KINDS:
                group = [gone for gone in missing[start : start + TOGETHER] if keys[gone][text] not in self.pieces]
                if group:
                    record, known = self.model(name).record, self.content["models"][name]
                    tokens = known["segments"] * self.settings["evaluation"]["length"] * len(group)
                    make = partial(self.evaluate, name, text, {keys[gone][text]: gone for gone in group})
                    yield Job(f"plain {name} {text}, {len(group)} sets", tokens * record.parameters, make)

    def drawn(self, name: str, kind: str, size: int) -> tuple[Calibration, int]:
        """The calibration tokens of a kind as a file, and how many samples they are."""
        path, model = self.texts / f"{name} {kind} {size}.npy", self.model(name)
        if not path.is_file():
            files = {MIXED: CALIBRATED, SHIPPED: ()}.get(kind, (kind,))
            named = [str(self.texts / f"{file}.txt") for file in files] or None
            how = {"samples": size, "length": self.settings["length"], "seed": self.settings["seed"], "at_most": True}
            found = calibration_samples(Calibration(text=named, **how), lambda: model.tokenizer, model.vocabulary)
            np.save(path, found.tokens.numpy())
            sources = {source.name: source.samples for source in found.record.sources}
            about = {"samples": found.record.samples, "hash": found.record.hash, "sources": sources}
            self.content["models"][name]["calibration"][f"{kind} {size}"] = about
        return Calibration(tokens=str(path)), self.content["models"][name]["calibration"][f"{kind} {size}"]["samples"]

    def score(self, step: Step, kind: str, names: list[str]) -> dict[str, dict]:
        """Scores of the dense model by criteria of one walk, and the layers that follow from them."""
        model, (tokens, samples) = self.model(step.model), self.drawn(step.model, kind, step.size)
        norms = {name.partition("-")[0]: {"norm": name.partition("-")[2]} for name in names if "-" in name}
        asked = [name.partition("-")[0] for name in names]
        with shown(step.walk in DEAR), counted() as losses:
            found = score(model, criterion=asked, settings=norms, calibration=tokens)
        there, back = passes(step.walk, model.record.layers, 0)
        took = {
            "seconds": round(found[0].seconds, 3),
            "passes": [losses["forwards"] or there, back],
            "samples": samples,
        }
        took |= {"peak_memory_bytes": found[0].peak_memory_bytes, "together": names}
        return {
            f"score {step.model} {kind} {step.size} {name}": {
                "scores": short(one.scores),
                "plans": self.planned(step.model, one),
            }
            | took
            for name, one in zip(names, found, strict=True)
        }

    def planned(self, name: str, scores: Scores) -> dict[str, dict]:
        """The lowest layers and the lowest run of layers."""
        amount = Amount(self.content["models"][name]["removed"])
        label = "-".join([scores.criterion, *filter(None, [scores.settings.get("norm")])])
        ways = {f"{selection} {label}": SelectionOptions(selection) for selection in ("lowest", "window")}
        return {way: brief(plan(scores, amount=amount, choosing=choosing)) for way, choosing in ways.items()}

    def greedy(self, step: Step, kind: str, names: list[str]) -> dict[str, dict]:
        """Greedy's layers, which need the losses of many removals."""
        model, (tokens, samples) = self.model(step.model), self.drawn(step.model, kind, step.size)
        amount = Amount(self.content["models"][step.model]["removed"])
        _ = model.stack  # loaded before the clock starts
        with shown(), counted() as losses, Peak() as peak:
            found = plan(model, amount=amount, choosing=SelectionOptions("greedy"), calibration=tokens)
        made = {"order": found.order, "plans": {"greedy": brief(found)}, "seconds": round(found.seconds, 3)}
        made |= {"passes": [losses["forwards"], 0], "samples": samples}
        made |= {"peak_memory_bytes": peak.bytes, "together": names}
        return {f"score {step.model} {kind} {step.size} greedy": made}

    def fixed(self, name: str) -> dict[str, dict]:
        """Plans that need no text."""
        model, amount = self.model(name), Amount(self.content["models"][name]["removed"])
        made = {}
        for criterion in ("magnitude", "random"):
            made[f"lowest {criterion}"] = plan(score(model, criterion=criterion), amount=amount)
        for strategy in ("max-gap", "input", "output", "middle", "both"):
            how = SelectionOptions("positional", {"strategy": strategy})
            made[f"positional {strategy}"] = plan(model, amount=amount, choosing=how)
        return {f"fixed {name}": {"plans": {label: brief(one) for label, one in made.items()}}}

    def evaluate(self, name: str, text: str, keys: dict[str, Removed]) -> dict[str, dict]:
        """Perplexity without each set of layers, all walked together."""
        model, tokens = self.model(name), self.evaluated(name, text)
        removals = [*map(Removal.of_layers, keys.values())]
        with shown():
            found = removals_perplexity(model, {text: segments_of_tokens(tokens)}, removals, "perplexity")
        kept = ("value", "nll", "tokens", "hash")
        return {key: {field: getattr(row[text], field) for field in kept} for key, row in zip(keys, found, strict=True)}

    def run(self, budget: float) -> bool:
        """Make what is missing, write it at once, and say how long the rest takes; whether the time sufficed."""
        started = time.monotonic()
        while (
            job := next(chain(self.jobs() if {*self.criteria} - {REPAIR} else (), self.repairs()), None)
        ) is not None:
            if time.monotonic() - started >= budget:
                print(f"{budget / 60:g} minutes are used up; a second start goes on", file=sys.stderr)
                return False
            began = time.monotonic()
            print(f"{(began - started) / 60:.1f} min: {job.name}{self.expected(job)}", file=sys.stderr, flush=True)
            with others() as shared:
                made = job.make()
            wall = round((time.monotonic() - began) / len(made), 2)
            costs = {"wall": wall, "cost": job.cost / len(made)} | place(self.content, machine())
            self.pieces |= {key: piece | shared | costs for key, piece in made.items()}
            save(self.out, self.content)
        return True

    def expected(self, job: Job) -> str:
        """How long a job takes at the pace of those like it."""
        verb = job.name.split()[0]
        like = [piece for key, piece in self.pieces.items() if key.startswith(verb)]
        paid = sum(piece["cost"] for piece in like)
        return f", about {sum(piece['wall'] for piece in like) / paid * job.cost:.0f} s" if paid else ""


def brief(found: Plan) -> dict:
    """The layers that go, and on how many both halves of the samples agree."""
    return {"removed": found.removed, "agreement": found.agreement}


# ---------------------------------------------------------------- the command


def usual_models() -> list[Path]:
    """The demo's model and, where it can be had, a second one."""
    found = [demo_model()]
    if SECOND_MODEL.is_file():
        done = subprocess.run(["bash", str(SECOND_MODEL)], capture_output=True, text=True)
        if done.returncode == 0:
            return [*found, Path(done.stdout.strip())]
    print("the second model cannot be had: only the demo's is measured; --models takes paths", file=sys.stderr)
    return found


def tiny_model(folder: Path) -> Path:
    """A random one of 6 layers."""
    return gpu_models.small(folder, "llama", {"hidden": 32, "layers": 6, "vocabulary": 384})


def only(names: Iterable[str]) -> str:
    """Help for an option that picks some of many."""
    return f"only these of {', '.join(names)}"


def main() -> None:
    """Read the arguments."""
    parser = parser_of(__doc__, "calibration", trial="tiny", without=("again", "only"))
    sizes, names = [*map(str, FULL["sizes"])], (*CRITERIA, DATA_FREE, REPAIR)
    parser.add_argument("--models", type=Path, nargs="+", help="models to measure (the demo's and a second one)")
    parser.add_argument("--kinds", nargs="+", choices=EVERY_KIND, metavar="KIND", help=only(EVERY_KIND))
    parser.add_argument("--sizes", nargs="+", type=int, metavar="N", help=only(sizes) + " samples")
    parser.add_argument("--criteria", nargs="+", choices=names, metavar="NAME", help=only(names))
    parser.add_argument("--budget", default="1000h", help="begin no piece after so long, such as 40m")
    given = parsed(parser, "calibration", trial="tiny")
    settings = TINY if given.tiny else FULL
    unknown = sorted(set(given.sizes or []) - set(settings["sizes"]))
    if unknown:
        parser.error(f"--sizes {unknown[0]}: there are {', '.join(map(str, settings['sizes']))}")
    out, budget = given.out, seconds_of(given.budget, "budget")
    if not given.table:
        with tempfile.TemporaryDirectory() as folder:
            texts = Path(folder)
            made_up_texts(texts) if given.tiny else written_texts(given.data, texts)
            models = given.models or ([tiny_model(texts)] if given.tiny else usual_models())
            CalibrationBench(models, texts, out, settings, given).run(budget)
    page = PAGE if out == RESULTS else out.with_suffix(".md")
    before = page.read_text(encoding="utf-8") if page.is_file() else ""
    print(write_atomic(page, updated(before, json.loads(out.read_text(encoding="utf-8")))))


if __name__ == "__main__":
    ended(main)
