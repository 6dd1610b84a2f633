"""Quantisation worker: a script for the environment that has llm-compressor; it imports nothing of this package.

``python -I quantise_worker.py JOB.json`` does one job and writes what it found to the job's ``answer``:

- ``quantise``: the model in bfloat16, its projections rounded by a method, written as compressed-tensors.
- ``prove``: the written files with plain weights against the unquantised model, on held-out tokens.

It ends when its input is closed, so that it does not outlive the process that started it.
"""

import json
import math
import os
import sys
import threading
import traceback
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoModelForCausalLM, CompressedTensorsConfig

Job = dict[str, Any]


def tell(text: str) -> None:
    """One line for whoever started this."""
    print(f"shallower: {text}", flush=True)


def loaded(job: Job, folder: str, dtype: str, **more: Any) -> torch.nn.Module:
    """A model, from this machine's files alone."""
    options = {"dtype": getattr(torch, dtype), "trust_remote_code": bool(job["trust_remote_code"])}
    return AutoModelForCausalLM.from_pretrained(folder, local_files_only=True, **options, **more).eval()


def gptq(job: Job) -> Any:
    """llm-compressor's GPTQ, which rounds column by column and lets later columns make up for the error."""
    from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme
    from llmcompressor.modifiers.gptq import GPTQModifier

    form = {"num_bits": job["bits"], "type": "int", "symmetric": True}
    weights = QuantizationArgs(strategy="group", group_size=job["group_size"], **form)
    groups = {"group_0": QuantizationScheme(targets=["Linear"], weights=weights)}
    return GPTQModifier(config_groups=groups, ignore=list(job["ignore"]))


METHODS = {"gptq": gptq}  # name -> the recipe of a job


def quantise(job: Job) -> dict[str, Any]:
    """Quantise a model and write it."""
    from datasets import Dataset
    from llmcompressor import oneshot

    recipe = METHODS[job["method"]](job)
    tokens = np.load(job["tokens"], allow_pickle=False)
    data = Dataset.from_dict({"input_ids": tokens.tolist(), "attention_mask": np.ones_like(tokens).tolist()})
    model = loaded(job, job["model"], job["dtype"])
    tell(f"{job['method']}, {job['bits']} bits, groups of {job['group_size']}, on {tokens.size:,} tokens")
    count, length = tokens.shape
    oneshot(
        model=model,
        dataset=data,
        recipe=recipe,
        max_seq_length=length,
        num_calibration_samples=count,
        shuffle_calibration_samples=False,
    )
    model.save_pretrained(job["out"], save_compressed=True, max_shard_size=job["max_shard_size"])
    return {}


@torch.no_grad()
def prove(job: Job) -> dict[str, float]:
    """KL divergence and perplexities of the written files and of the unquantised model, one of them in memory.

    Both are computed in the same type of numbers, so that only what was rounded makes a difference.
    """
    rows = torch.from_numpy(np.load(job["tokens"], allow_pickle=False).astype(np.int64))
    model = loaded(job, job["model"], job["dtype"])
    wanted = [log_probabilities(model, row) for row in rows]
    del model
    plain = CompressedTensorsConfig(dequantize=True)
    model = loaded(job, job["out"], job["dtype"], quantization_config=plain)
    sums = {"divergence": 0.0, "nll_before": 0.0, "nll_after": 0.0, "same_next": 0.0}
    for row, before in zip(rows, wanted, strict=True):
        after = log_probabilities(model, row)
        sums["divergence"] += float((before.exp() * (before - after)).sum(-1).double().sum())
        sums["same_next"] += float((before.argmax(-1) == after.argmax(-1)).sum())
        for name, values in (("nll_before", before), ("nll_after", after)):
            sums[name] -= float(values[:-1].gather(1, row[1:, None]).double().sum())
    predicted = rows.numel() - len(rows)
    found = {name: value / (predicted if name.startswith("nll") else rows.numel()) for name, value in sums.items()}
    return {name: value if math.isfinite(value) else None for name, value in found.items()}


def log_probabilities(model: torch.nn.Module, row: torch.Tensor) -> torch.Tensor:
    """Log-probabilities behind every token of a sample, (token, vocabulary), in float32 on the CPU."""
    logits = model(input_ids=row[None].to(model.device), use_cache=False).logits
    return logits[0].float().log_softmax(-1).cpu()


def end_with_parent() -> None:
    """End this process when whoever started it is gone, which closes its input."""

    def wait() -> None:
        while os.read(0, 1024):  # not sys.stdin, whose lock would be held when Python ends
            pass
        os._exit(3)

    threading.Thread(target=wait, daemon=True).start()


def main(path: str) -> int:
    """Do a job; the last line says what went wrong."""
    job = json.loads(Path(path).read_text(encoding="utf-8"))
    try:
        found = {"quantise": quantise, "prove": prove}[job["do"]](job)
    except Exception as error:  # libraries raise all kinds
        traceback.print_exc()
        print(f"error: {type(error).__name__}: {' '.join(str(error).split())[:160]}", flush=True)
        return 1
    Path(job["answer"]).write_text(json.dumps(found), encoding="utf-8")
    return 0


if __name__ == "__main__":
    end_with_parent()
    sys.exit(main(sys.argv[1]))
