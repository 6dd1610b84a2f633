"""Table of what shrinking has made, and the single steps that would have done the same."""

import shlex
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from ..artifacts import Unverified
from ..results.healing import perplexity_times
from ..runtime import distributed
from ..runtime.format import byte_count, layers, millions
from ..settings.amount import Amount
from ..settings.calibration import Calibration
from ..settings.fields import flag_of, options_of
from ..stages.shrink import Shrunk
from .grid import grid, plain_console


def single_steps(
    made: Shrunk, model: str, choice: Sequence[Any], how: Sequence[Any], texts: Sequence[str]
) -> list[str]:
    """The commands that would have done the same one by one.

    Args:
        choice: settings that say what goes.
        how: settings of the calibration, of computing and of writing.
        texts: what was evaluated on.
    """
    calibration, compute, writing = how
    folder, source = shlex.quote(str(made.folder)), shlex.quote(model)
    much, computing = "".join(map(_options, choice)), _options(compute)
    objective = f" --objective {made.plan.settings['objective']}" if "objective" in made.plan.settings else ""
    bounded = getattr(choice[0], "max_ppl_increase", None) is not None
    eval_texts, plain_texts = (
        "".join(f" {flag} {shlex.quote(text)}" for text in texts) for flag in ("--eval-text", "--text")
    )
    repair = ""
    if made.repair is not None:
        start = " --set start=none" if "start" in made.repair.settings else ""
        repair = f"{_options(replace(calibration, samples=Calibration().samples))} --compensate local"
        repair += f" --repair-budget {made.repair.settings['budget']}{start}"
        repair += f" --compensate-samples {made.repair.calibration.samples}"
    timing = _options(replace(compute, layered=None, max_batch_tokens=None))
    timed = f"{_options(made.grid)}{timing}"
    speed = f"shallower bench {folder}/model --against {source}{timed} --out {folder}/speed.json"
    choosing = f"{much}{_options(calibration)}{objective}{eval_texts if bounded else ''}{computing}"
    written = f"{repair}{computing}{_options(writing)}"
    return [
        f"shallower plan {source}{choosing} --out {folder}/plan.json",
        f"shallower prune {source} --plan {folder}/plan.json{written} --out {folder}/model",
        f"shallower evaluate {source}{plain_texts}{computing} --out {folder}/evaluation-dense.json",
        f"shallower evaluate {folder}/model{plain_texts}{computing} --out {folder}/evaluation-pruned.json",
        *([speed] if made.speed else []),
        f"shallower report {folder}",
    ]


def _options(settings: Any) -> str:
    """What was set, as options, each with a blank in front."""
    words: list[str] = []
    usual = None if isinstance(settings, Amount) else type(settings)()
    for name, field in options_of(type(settings)).items():
        value = getattr(settings, name)
        if value == getattr(usual, name, None) or value is None:
            continue
        flag, _, negative = flag_of(field).partition("/")
        if isinstance(value, bool):
            words.append(flag if value else negative)
            continue
        for one in value if isinstance(value, (tuple, list)) else (value,):
            words += [flag, f"{one:.10g}" if isinstance(one, float) else str(one)]
    return "".join(f" {shlex.quote(word)}" for word in words)


def show(made: Shrunk, steps: list[str]) -> None:
    """One table, and the single steps that would have done the same; the first process shows them."""
    if distributed.rank():
        return
    plan, pruned = made.plan, made.pruned
    rows = [
        ["layers", str(plan.model.layers), f"{len(plan.kept)} (without {layers(plan.removed)})"],
        ["parameters", millions(plan.params_before), f"{millions(plan.params_after)} (-{plan.share:.1%})"],
        ["weights", byte_count(plan.bytes_before), byte_count(pruned.weight_bytes)],
    ]
    for name, before in made.dense.perplexity.items():
        after = made.after.perplexity[name].value
        rows.append([f"perplexity, {name}", f"{before.value:.2f}", f"{after:.2f} (x {after / before.value:.3f})"])
    if pruned.compensation is not None:
        before, after = perplexity_times(pruned.compensation.loss)
        rows.append(["held-out calibration text", "x 1", f"x {before:.3f} as cut, x {after:.3f} repaired"])
    if made.speed is not None:
        row = made.speed.speedups[0]
        rows.append(["one sequence", "1x", f"prefill {row.prefill:.2f}x, decoding {row.decode:.2f}x as fast"])
    if not isinstance(pruned.verified, Unverified):
        rows.append(["reloaded from disk", "control passed", f"logits equal {pruned.verified.logits}"])
    console = plain_console()
    grid(console, ["", "dense", "shallower"], rows)
    console.print("the same in single steps:", soft_wrap=True)
    for line in steps:
        console.print(f"  {line}", soft_wrap=True)
    console.print(f"the model: {made.model}; the report: {made.folder / 'report.html'}", soft_wrap=True)
