"""What training gives back: SmolLM2-135M-Instruct without layers 12-17, repaired without training, then healed.

Fp32, CPU.

Throughput: useful tokens per second (those that bear a loss) of the loop here and of the plain transformers Trainer
with padding, in turns, on the same instruction data, model and tokens per batch. Healing: every method on the same
tokens of 22 novels, with the perplexity of a novel of another author. Each finished piece is on disk before the next
one begins, and a killed one goes on from its last checkpoint. The table is made from the JSON file alone.
"""

import tempfile
import time
from collections.abc import Callable
from importlib import metadata
from itertools import pairwise
from pathlib import Path
from statistics import mean, median

import torch
from harness.machine import BUSY, machine
from harness.pieces import run
from harness.store import CALIBRATION, FP32, machines_text

from shallower import Calibration, Protocol, Training, drop, evaluate, heal, open_model, prune
from shallower.artifacts import plain
from shallower.cli.demo import demo_model
from shallower.data.packing import CUT_OFF, read_documents
from shallower.runtime.provenance import versions
from shallower.stages.repair_options import RepairOptions

REMOVED = [*range(12, 18)]
WATCHED = "pride-and-prejudice_1342"
FULL = {
    "train_tokens": 500_000,
    "length": 512,
    "samples": 256,
    "eval_tokens": 20_000,
    "checks": 5,
    "arms": {"continued": {}, "lora": {}},
    "throughput": {"batch": 8, "steps": 10, "turns": 2},
}
QUICK = FULL | {
    "train_tokens": 4_096,
    "length": 64,
    "samples": 8,
    "eval_tokens": 512,
    "checks": 1,
    "throughput": {"batch": 2, "steps": 2, "turns": 1},
}
GOALS = {"closed": 0.4, "minutes": 45, "throughput": 1.5}


class Measuring:
    """The pieces and how each is made; the pruned model is written once and stays in the folder."""

    def __init__(self, data: Path, settings: dict):
        self.data, self.settings = data, settings
        self.folder = Path(tempfile.gettempdir()) / f"shallower-healing{'-quick' * (settings is QUICK)}"
        self.folder.mkdir(exist_ok=True)

    def books(self) -> list[Path]:
        """The novels that are trained on: none of the author of the one that is watched."""
        austen = ("emma", "mansfield-park", "pride-and-prejudice", "sense-and-sensibility")
        return [path for path in sorted((self.data / "books").glob("*.txt")) if not path.name.startswith(austen)]

    def pruned(self) -> Path:
        """The written model, repaired without training."""
        place = self.folder / f"pruned-{self.settings['samples']}"
        if not place.exists():
            dense = open_model(demo_model(), FP32)
            text = Calibration(
                text=str(self.data / CALIBRATION), samples=self.settings["samples"], seed=4321, at_most=True
            )
            prune(dense, drop(dense, REMOVED), out=place, compensating=RepairOptions("sequential", {}, text))
        return place

    def watched(self) -> Path:
        return self.data / "books" / f"{WATCHED}.txt"

    def dense(self) -> dict:
        protocol = Protocol(length=self.settings["length"], max_tokens=self.settings["eval_tokens"])
        found = evaluate(open_model(demo_model(), FP32), texts=[self.watched()], protocol=protocol).perplexity[WATCHED]
        return {name: getattr(found, name) for name in ("nll", "value", "tokens")}

    def arm(self, name: str) -> dict:
        """One method on all tokens."""
        own, chosen = dict(self.settings["arms"][name]), self.settings
        made = self.folder / f"healed-{name}"
        training = Training(
            length=chosen["length"],
            resume=True,
            eval_texts=[self.watched()],
            eval_tokens=chosen["eval_tokens"],
            eval_steps=max(1, chosen["train_tokens"] // 2048 // chosen["checks"]),
            checkpoint_minutes=3,
        )
        found = heal(
            self.pruned(),
            data=self.books(),
            train_tokens=chosen["train_tokens"],
            out=made,
            method=own.pop("method", name),
            settings=own,
            training=training,
            compute=FP32,
            overwrite=True,
        )
        kept = (
            "method",
            "settings",
            "recipe",
            "steps",
            "batch_tokens",
            "train_tokens",
            "trained_parameters",
            "peak_memory_bytes",
            "seconds",
        )
        curve = [
            plain(row.eval[WATCHED]) | {"tokens": row.tokens, "seconds": row.seconds or 0.0}
            for row in found.rows
            if row.eval
        ]
        rate = median(row.tokens_per_second for row in found.rows if row.tokens_per_second is not None)
        return {field: plain(getattr(found, field)) for field in kept} | {"curve": curve, "tokens_per_second": rate}

    def throughput(self) -> dict:
        """Both loops in turns; the first steps of each are left out."""
        turns = [
            {"here": self._here(), "trainer": self._trainer()} for _ in range(self.settings["throughput"]["turns"])
        ]
        ratio = median(turn["here"]["rate"] for turn in turns) / median(turn["trainer"]["rate"] for turn in turns)
        return {"turns": turns, "ratio": ratio}

    def instructions(self) -> Path:
        return self.data.parent / "instruct/alpaca_format.jsonl"

    def _here(self) -> dict:
        chosen = self.settings["throughput"]
        with tempfile.TemporaryDirectory(dir=self.folder) as folder:
            tokens = chosen["batch"] * CUT_OFF
            training = Training(length=2 * CUT_OFF, batch_tokens=tokens, checkpoint_minutes=60)
            found = heal(
                self.pruned(),
                data=[self.instructions()],
                train_tokens=tokens * chosen["steps"],
                out=Path(folder) / "out",
                method="continued",
                training=training,
                compute=FP32,
            )
        rows = [row for row in found.rows if "loss" in row]
        seconds = [later["seconds"] - sooner["seconds"] for sooner, later in pairwise(rows)]
        useful = sum(row["tokens_per_second"] * took for row, took in zip(rows[1:], seconds, strict=True))
        return {"rate": useful / sum(seconds), "useful": round(useful), "seconds": sum(seconds), "batch_tokens": tokens}

    def _trainer(self) -> dict:
        from transformers import (
            AutoModelForCausalLM,
            DataCollatorForSeq2Seq,
            Trainer,
            TrainerCallback,
            TrainingArguments,
        )

        chosen = self.settings["throughput"]
        model = open_model(self.pruned(), FP32)
        found = read_documents([self.instructions()], model.tokenizer, model.vocabulary)
        rows = []
        for ids, prompt in zip(found.ids, found.prompts, strict=True):
            ids = ids[:CUT_OFF].tolist()
            rows.append(
                {
                    "input_ids": ids,
                    "attention_mask": [1] * len(ids),
                    "labels": [-100] * min(prompt, len(ids)) + ids[prompt:],
                }
            )
        rows = [row for row in rows if any(label >= 0 for label in row["labels"])]
        useful, padded, times = [], [], []

        class Clock(TrainerCallback):
            def on_step_end(self, *_, **__):
                times.append(time.monotonic())

        class Collator(DataCollatorForSeq2Seq):
            def __call__(self, features, return_tensors=None):
                batch = super().__call__(features, return_tensors)
                useful.append(int((batch["labels"][:, 1:] >= 0).sum()))
                padded.append(batch["labels"].numel())
                return batch

        with tempfile.TemporaryDirectory(dir=self.folder) as folder:
            options = TrainingArguments(
                output_dir=folder,
                per_device_train_batch_size=chosen["batch"],
                max_steps=chosen["steps"],
                learning_rate=1e-4,
                save_strategy="no",
                report_to=[],
                use_cpu=True,
                dataloader_num_workers=0,
                disable_tqdm=True,
                logging_strategy="no",
            )
            tokenizer = model.tokenizer
            tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
            collator = Collator(tokenizer, pad_to_multiple_of=8)
            module = AutoModelForCausalLM.from_pretrained(self.pruned(), dtype=torch.float32)
            Trainer(module, options, train_dataset=rows, data_collator=collator, callbacks=[Clock()]).train()
        seconds = times[-1] - times[0]
        total = sum(useful[1 : len(times)])
        return {
            "rate": total / seconds,
            "useful": total,
            "seconds": seconds,
            "batch_tokens": round(mean(padded[1 : len(times)])),
        }

    def jobs(self) -> dict[str, Callable[[], dict]]:
        found = {"throughput": self.throughput, "dense": self.dense}
        return found | {f"heal {name}": lambda name=name: self.arm(name) for name in self.settings["arms"]}


def table(content: dict) -> str:
    """The results in Markdown, from the JSON alone."""
    pieces, settings = content["pieces"], content["settings"]
    used = ", ".join(f"{name} {content['versions'][name]}" for name in ("torch", "transformers", "accelerate", "peft"))
    parts = [
        f"# Healing\n\n{content['model']}, layers 12-17 of 30 removed and repaired by `sequential`, fp32; "
        f"{machines_text(content)}, {used}, {content['date']}. Made by `make bench-healing`.",
    ]
    if found := pieces.get("throughput"):
        parts += ["## Useful tokens per second on instruction data", _throughput(found)]
    if "dense" in pieces and any(f"heal {name}" in pieces for name in settings["arms"]):
        parts += [
            f"## {settings['train_tokens']:,} tokens of novels; perplexity of *Pride and Prejudice*",
            _arms(content),
        ]
    return "\n\n".join(parts) + "\n"


def _throughput(found: dict) -> str:
    lines = ["| loop | tokens a batch | useful tokens per second, each turn |", "|---|--:|---|"]
    for name, label in (
        ("here", "`heal --method continued`"),
        ("trainer", "transformers Trainer, padded to the longest of a batch"),
    ):
        rates = ", ".join(f"{turn[name]['rate']:.0f}" for turn in found["turns"])
        lines.append(f"| {label} | {found['turns'][0][name]['batch_tokens']} | {rates} |")
    met = "met" if found["ratio"] >= GOALS["throughput"] else "**missed**"
    return "\n".join(lines) + f"\n\nRatio of the medians: {found['ratio']:.2f} (at least {GOALS['throughput']}: {met})."


def _arms(content: dict) -> str:
    pieces, dense = content["pieces"], content["pieces"]["dense"]
    head = (
        "method",
        "perplexity before",
        "after",
        "gap closed",
        "minutes",
        f"{GOALS['closed']:.0%} closed after, minutes",
        "tokens/s",
        "peak memory, GiB",
    )
    lines = [f"| {' | '.join(head)} |", "|---|" + "--:|" * (len(head) - 1)]
    for name in content["settings"]["arms"]:
        if not (made := pieces.get(f"heal {name}")):
            continue
        first, last = made["curve"][0], made["curve"][-1]
        shares = [
            (row["seconds"] / 60, (first["nll"] - row["nll"]) / (first["nll"] - dense["nll"])) for row in made["curve"]
        ]
        (minutes, closed), busy = shares[-1], made.get("cores_used_by_others", 0)
        reached = next((f"{when:.1f}" for when, share in shares if share >= GOALS["closed"]), "-")
        met = "met" if closed >= GOALS["closed"] and minutes <= GOALS["minutes"] else "**missed**"
        spent = f"{minutes:.1f}" + (f", others used {busy:.1f} cores" if busy > BUSY else "")
        cells = [name, f"{first['value']:.2f}", f"{last['value']:.2f}", f"{closed:.0%}", f"{spent}: {met}", reached]
        lines.append(
            f"| {' | '.join(cells)} | {made['tokens_per_second']:.0f} | {made['peak_memory_bytes'] / 2**30:.2f} |"
        )
    curves = ["| method | perplexity after so many tokens |", "|---|---|"]
    for name in content["settings"]["arms"]:
        if made := pieces.get(f"heal {name}"):
            points = ", ".join(f"{row['tokens'] / 1000:.0f}k: {row['value']:.2f}" for row in made["curve"])
            curves.append(f"| {name} | {points} |")
    note = (
        f"The dense model: {dense['value']:.2f}. The gap is that of the log-perplexities; to close at least "
        f"{GOALS['closed']:.0%} of it "
        f"within {GOALS['minutes']} minutes is the goal."
    )
    return "\n".join(lines) + f"\n\n{note}\n\n" + "\n".join(curves)


def about(settings: dict) -> dict:
    """What decides the results."""
    return {
        "model": demo_model().name,
        "settings": settings,
        "versions": versions() | {name: metadata.version(name) for name in ("accelerate", "peft")},
        "machine": machine(),
    }


if __name__ == "__main__":
    run(
        __doc__,
        "healing",
        beside="instruct/alpaca_format.jsonl",
        settings=(FULL, QUICK),
        about=about,
        jobs=lambda data, settings, _: Measuring(data, settings).jobs(),
        table=table,
    )
