"""The best repaired models that there are, on the CPU in fp32: what is chosen, by what it is repaired, what is left.

6 and 9 of SmolLM2's 30 layers go, 5 of 24 of a second model, chosen by SLEB's greedy search, by Taylor+, and as the
run whose closed-form repair is best (``--objective repaired``). It is left as it is, or repaired by closed forms
(``linear`` is ReplaceMe's, ``sequential`` ours), by ``local`` training from there on, or by LoRA from there on for as
long as that took. Fitted on encyclopaedia and novels; perplexity on a text of each, on newspapers, and on kinds of
which nothing was fitted, at two lengths. Then what is written: tasks with choices and such whose answers are written,
and agreement with the dense model on the shipped prompts. Repaired models are kept in runs/repaired. Each finished
piece is on disk before the next one begins; the table is made from the JSON file alone. A second model is measured too
where $SHALLOWER_SECOND_MODEL names one.
"""

import json
import time
from collections.abc import Callable
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from calibration import KINDS, text_of
from harness.models import about, sources
from harness.pieces import Jobs, check_data, needed, run
from harness.store import CALIBRATION, FP32, ROOT, TEXTS
from repaired_tables import table

from shallower import (
    Amount,
    Answers,
    Calibration,
    Protocol,
    RepairOptions,
    SelectionOptions,
    Tasks,
    Training,
    drop,
    evaluate,
    heal,
    open_model,
    plan,
    prune,
)
from shallower.anatomy.model import Model
from shallower.artifacts import NOTHING, Removal, plain
from shallower.data.tokens import calibration_samples
from shallower.evaluation.perplexity import evaluation_segments, perplexity
from shallower.evaluation.tasks import zero_shot
from shallower.runtime.memory import Peak
from shallower.storage.files import write_atomic

BOOKS = ("books/bleak-house_1023.txt", "books/the-moonstone_155.txt", "books/middlemarch_145.txt")
LARGE = 200_000_000  # parameters from which on half of each text is read
UNSEEN = ("dialogue", "code", "instructions")  # kinds of which nothing is fitted, as newspapers are
WAYS = {
    "taylor": ("taylor", SelectionOptions("lowest")),
    "greedy": ("perplexity", SelectionOptions("greedy")),
    "repaired": (None, SelectionOptions("window", objective="repaired")),
}
REPAIRS = ("none", "linear", "sequential", "local", "lora")
FULL: dict[str, Any] = {
    **{"sizes": {"first": [6, 9], "second": [5]}, "scoring": [10, 128], "choosing": [64, 128]},
    **{"fitting": {"first": [1024, 128], "second": [256, 128]}, "lengths": [128, 1024], "tokens": 4096},
    **{"settings": {"local": {}}, "trial_tokens": 8192, "lora": {"lr": 3e-4, "batch_tokens": 2048}},
    **{"tasks": {"arc_easy": 200, "lambada_openai": 200, "triviaqa": 100}, "prompts": 40, "answer_tokens": 64},
}
QUICK = FULL | {
    **{"sizes": {"first": [2], "second": [2]}, "scoring": [2, 32], "choosing": [16, 32]},
    **{"fitting": {"first": [16, 32], "second": [16, 32]}, "lengths": [32], "tokens": 256},
    **{"settings": {"local": {"steps": "2", "batch_tokens": "64"}}, "trial_tokens": 128},
    **{"lora": {"lr": 3e-4, "batch_tokens": 64}, "prompts": 2, "answer_tokens": 4},
    "tasks": {"arc_easy": 2, "lambada_openai": 2},
}


def jobs(data: Path, settings: dict, pieces: dict) -> Jobs:
    """The pieces, by model and number of layers that go."""
    check_data(data, CALIBRATION, *TEXTS, *BOOKS)
    found: dict[str, Callable[[], dict]] = {}
    for place, source in zip(("first", "second"), sources(), strict=False):
        one, name = Bench(source, data, settings, place), source.stem
        found[f"dense {name}"] = one.dense
        for size in settings["sizes"][place]:
            found |= {f"choose {name} {size} {way}": partial(one.choose, way, size) for way in WAYS}
            for repair in REPAIRS:
                for way in reversed(WAYS):
                    if repair in ("local", "lora", "linear") and way != "repaired":
                        continue
                    made = partial(needed, pieces, f"choose {name} {size} {way}")
                    before = partial(needed, pieces, f"repair {name} {size} {way} local")
                    key = f"{name} {size} {way} {repair}"
                    found[f"repair {key}"] = partial(one.repair, made, before, key, repair)
        found[f"answers {name} dense"] = one.answers
        for key in [key.removeprefix("repair ") for key in found if key.startswith(f"repair {name} ")]:
            found[f"answers {key}"] = partial(one.answers, partial(needed, pieces, f"repair {key}"), key)
    return found


class Bench:
    """One model: what goes, how it is repaired, and what that costs and leaves."""

    def __init__(self, source: Path, data: Path, settings: dict, place: str):
        self.source = source
        self.data = data
        self.settings = settings
        self.folder = ROOT / "runs/repaired"
        self.samples, self.length = settings["fitting"][place]

    @cached_property
    def model(self) -> Model:
        """The dense model."""
        return open_model(self.source, FP32)

    def texts(self, model: Model, length: int) -> dict:
        """Name -> segments of every text, those of the goals first; of these alone at further lengths."""
        tokens = self.settings["tokens"] // (2 if self.model.record.parameters > LARGE else 1)
        protocol = Protocol(length=length, max_tokens=tokens)
        files = [self.data / name for name in TEXTS]
        for kind in UNSEEN if length == self.settings["lengths"][0] else ():
            place = self.folder / f"texts/{kind}.txt"
            place.parent.mkdir(parents=True, exist_ok=True)
            write_atomic(place, text_of(KINDS[kind], KINDS[kind].evaluation, self.data))
            files.append(place)
        return evaluation_segments(model, files, None, protocol)

    def perplexities(self, model: Model, removal: Removal = NOTHING) -> dict:
        """Length -> text -> perplexity."""
        return {
            str(length): {
                name: perplexity(model, text, removal=removal, label=f"{name} at {length}").value
                for name, text in self.texts(model, length).items()
            }
            for length in self.settings["lengths"]
        }

    def dense(self) -> dict:
        """Perplexity of the model as it is."""
        record = self.model.record
        return {"layers": record.layers, "parameters": record.parameters, "perplexity": self.perplexities(self.model)}

    def choose(self, way: str, size: int) -> dict:
        """What goes."""
        criterion, choosing = WAYS[way]
        samples, length = self.settings["choosing" if way == "repaired" else "scoring"]
        how = {"criterion": criterion} if criterion else {}
        text = (
            Calibration(tokens=str(self.fitted(samples, length)))
            if way == "repaired"
            else Calibration(text=str(self.data / CALIBRATION), samples=samples, length=length)
        )
        with Peak("cpu") as peak:
            chosen = plan(self.model, amount=Amount(size), choosing=choosing, calibration=text, **how)
        kept = {"removed": chosen.removed, "share": chosen.share, "seconds": peak.seconds}
        return kept | {"peak_memory_bytes": peak.bytes, "tokens": samples * length}

    def fitted(self, samples: int, length: int) -> Path:
        """File of the tokens that are fitted on: half encyclopaedia, half novels, in turn."""
        place = self.folder / f"{self.source.stem}-{samples}-{length}.npy"
        if not place.exists():
            counts = [samples - samples // 2, *(len(range(book, samples // 2, len(BOOKS))) for book in range(3))]
            parts = [
                iter(self.tokens(name, count, length))
                for name, count in zip((CALIBRATION, *BOOKS), counts, strict=True)
            ]
            order = [0 if number % 2 == 0 else 1 + number // 2 % len(BOOKS) for number in range(samples)]
            place.parent.mkdir(parents=True, exist_ok=True)
            np.save(place, torch.stack([next(parts[source]) for source in order]).numpy())
        return place

    def tokens(self, name: str, count: int, length: int) -> torch.Tensor:
        """Samples of one text."""
        calibration = Calibration(text=str(self.data / name), samples=count, length=length, seed=4321)
        return calibration_samples(calibration, lambda: self.model.tokenizer, self.model.vocabulary).tokens

    def repair(self, made: Callable[[], dict], local: Callable[[], dict], key: str, repair: str) -> dict:
        """Perplexity of what is left, and what the repair cost."""
        removed = made()["removed"]
        if repair == "none":
            removal = drop(self.model, removed).removal
            return {"removed": removed, "perplexity": self.perplexities(self.model, removal)}
        out = self.folder / key.replace(" ", "-")
        with Peak("cpu") as peak:
            cost = self.lora(local, key, out) if repair == "lora" else self.compensated(removed, repair, out)
        kept = {"removed": removed, "peak_memory_bytes": peak.bytes, "seconds": peak.seconds}
        return kept | cost | {"perplexity": self.perplexities(open_model(out, FP32))}

    def compensated(self, removed: list[int], repair: str, out: Path) -> dict:
        """Write what is repaired without a backward through the model; a killed repair goes on."""
        tokens = Calibration(tokens=str(self.fitted(self.samples, self.length)))
        how = RepairOptions(repair, self.settings["settings"].get(repair, {}), tokens)
        gone = drop(self.model, removed)
        prune(self.model, gone, out=out, verify=False, save_dtype="fp32", compensating=how, overwrite=out.exists())
        record = json.loads((out / "shallower.json").read_text(encoding="utf-8"))["compensation"]
        return {"loss": record["loss"], "tokens": self.samples * self.length}

    def lora(self, local: Callable[[], dict], key: str, out: Path) -> dict:
        """Train adapters from what ``sequential`` left, for about as long as ``local`` took, and merge them."""
        start = self.folder / key.replace(" ", "-").replace("lora", "sequential")
        seconds = local()["seconds"]
        own = self.settings["lora"]
        training = Training(length=self.length, resume=True, **own)
        data = [self.data / name for name in (CALIBRATION, *BOOKS)]
        how = {"data": data, "method": "lora", "compute": FP32, "training": training, "overwrite": True}
        trial = self.settings["trial_tokens"]
        began = time.monotonic()
        heal(start, out=out.with_name(f"{out.name}-trial"), train_tokens=trial, **how)
        rate = trial / (time.monotonic() - began)
        tokens = max(own["batch_tokens"], int(rate * seconds))
        record = heal(start, out=out, train_tokens=tokens, **how)
        return {"seconds": record.seconds, "tokens": record.train_tokens}

    def answers(self, made: Callable[[], dict] | None = None, key: str = "") -> dict:
        """Tasks, and agreement with the dense model, of what a piece left; of the dense model without one."""
        own, model, removal = self.settings, self.model, NOTHING
        if made is not None:
            folder, removed = self.folder / key.replace(" ", "-"), made()["removed"]
            removal = NOTHING if folder.is_dir() else drop(self.model, removed).removal
            model = open_model(folder, FP32) if folder.is_dir() else self.model
        found = {}
        for name, limit in own["tasks"].items():
            told = zero_shot(model, Tasks((name,), self.data.parent / "tasks", limit), removal=removal)[name]
            found[name] = {field: getattr(told, field) for field in ("value", "stderr", "chance", "count", "items")}
        how = Answers(against=self.model, max_prompts=own["prompts"], answer_tokens=own["answer_tokens"])
        seen = evaluate(model, removed=[*map(str, removal.units)], answers=how).agreement
        return {"tasks": found, "agreement": plain(seen) | {"against": self.source.name}}  # no path of here


if __name__ == "__main__":
    run(__doc__, "repaired", beside=f"text/{CALIBRATION}", settings=(FULL, QUICK), about=about, jobs=jobs, table=table)
