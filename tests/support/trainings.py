"""Tiny trainings, in this process and by the command line, and what is compared of them."""

import os
import subprocess
import sys
from pathlib import Path

import torch
from safetensors.torch import load_file

from shallower import Compute, Training, heal

CPU = Compute(device="cpu")
SIZE = {"length": 32, "batch_tokens": 128, "lr": 3e-3}
GIVEN = [  # SIZE for the command line
    *("--train-tokens", "768", "--length", "32", "--batch-tokens", "128", "--lr", "3e-3"),
    *("--checkpoint-steps", "1", "--device", "cpu"),
]
LAUNCH = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", "-m", "shallower"]
KILLED = """
import os, signal, sys
from shallower import cli
from shallower.training.checkpoints import Checkpointer
keep = Checkpointer.keep
def killed(self, step, *rest):
    keep(self, step, *rest)
    if step == 3:
        os.kill(os.getpid(), signal.SIGKILL)
Checkpointer.keep = killed
cli.main(sys.argv[1:])
"""
STOPPED = """
import os, signal, sys
from shallower import cli
from shallower.training import loop
step = loop._step
def stopped(run, accelerator, objective, optimizer, parameters, number):
    if number == 3:
        os.kill(os.getpid(), signal.SIGTERM)
    return step(run, accelerator, objective, optimizer, parameters, number)
loop._step = stopped
cli.main(sys.argv[1:])
"""


def healed(folder, data, out, *, method="continued", settings=None, tokens=768, **training):
    options = SIZE | training
    return heal(
        folder,
        data=[data],
        train_tokens=tokens,
        out=out,
        method=method,
        settings=settings,
        training=Training(**options),
        compute=CPU,
    )


def curve(found) -> list[float]:
    return [row.loss for row in found.rows if row.loss is not None]


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return {name: tensor for path in folder.glob("*.safetensors") for name, tensor in load_file(path).items()}


def arguments(folder, data, out, method: str, *more: str, source: str = "--data") -> list[str]:
    return ["heal", str(folder), "--method", method, source, str(data), *GIVEN, *more, "--out", str(out)]


def command(*names: str, **variables: str) -> subprocess.CompletedProcess:
    env = os.environ | {"OMP_NUM_THREADS": "1"} | variables
    return subprocess.run([sys.executable, *names], capture_output=True, text=True, env=env, timeout=240)
