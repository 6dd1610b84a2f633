"""What the GPU benchmark holds ``heal`` against: the plain transformers Trainer on the same text, in bf16."""

import time
from itertools import pairwise
from pathlib import Path

import torch
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    PrinterCallback,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)

from shallower.anatomy.loading import quiet
from shallower.evaluation.analytic import synchronize


class Clock(TrainerCallback):
    """When each step ended, the card's work included, and its loss."""

    def __init__(self, device: str):
        self.device, self.times, self.losses = device, [], []

    def on_step_end(self, *_, **__) -> None:
        synchronize(self.device)
        self.times.append(time.monotonic())

    def on_log(self, *_, logs=None, **__) -> None:
        self.losses += [float(logs["loss"])] if "loss" in (logs or {}) else []


def rows(folder: Path, text: Path, length: int) -> list[dict]:
    """The text in rows of the same length."""
    ids = AutoTokenizer.from_pretrained(folder)(text.read_text(encoding="utf-8"), verbose=False).input_ids
    cut = torch.tensor(ids[: len(ids) // length * length]).view(-1, length)
    return [{"input_ids": row, "labels": row} for row in cut]


def trained(
    folder: Path, text: Path, out: Path, how: dict, device: str, *, lora: bool
) -> tuple[list[float], list[float]]:
    """(losses, seconds of every step but the first).

    Args:
        how: tokens per sequence (``length``), of a batch (``batch_tokens``, which runs at once) and steps.
        lora: train adapters of rank 8 on every linear module of the layers, through peft.
    """
    clock = Clock(device)
    with quiet():
        module = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    if lora:
        from peft import LoraConfig, get_peft_model

        adapters = LoraConfig(r=8, lora_alpha=16, target_modules="all-linear", task_type="CAUSAL_LM")
        module = get_peft_model(module, adapters)
    options = TrainingArguments(
        output_dir=str(out),
        per_device_train_batch_size=how["batch_tokens"] // how["length"],
        max_steps=how["steps"],
        learning_rate=1e-4,
        bf16=True,
        optim="adamw_torch_fused",
        save_strategy="no",
        report_to=[],
        use_cpu=not device.startswith("cuda"),
        dataloader_num_workers=0,
        disable_tqdm=True,
        logging_steps=1,
    )
    trainer = Trainer(module, options, train_dataset=rows(folder, text, how["length"]), callbacks=[clock])
    trainer.remove_callback(PrinterCallback)
    trainer.train()
    return clock.losses, [later - sooner for sooner, later in pairwise(clock.times)]
