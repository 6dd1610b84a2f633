"""Tables for people: what each verb prints on stdout when it is not asked for JSON."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from .artifacts import Comparison, Evaluation, Healing, Inspection, Plan, Pruned, Scores, Speed, Sweep
from .comparison.comparing import title
from .comparison.page import LEGEND, cells, remarks
from .evaluation.tasks import mean_of
from .progress import stdout

BUSY = 1.2  # load per thread before a run from which on others' work disturbs the clock


def plain_console() -> Console:
    """Prints names and paths as they are: no markup in them is read, nothing is coloured by guess."""
    return Console(file=stdout(), markup=False, highlight=False)


def millions(count: int) -> str:
    """A parameter count for people: 6.74B, 134.5M, 345.2K."""
    for size, unit, digits in ((1e9, "B", 2), (1e6, "M", 1), (1e3, "K", 1)):
        if count >= size:
            return f"{count / size:.{digits}f}{unit}"
    return str(count)


def layers(indices: list[int]) -> str:
    """Layer numbers with runs joined: 3, 8-10."""
    runs: list[list[int]] = []
    for index in sorted(indices):
        if runs and index == runs[-1][-1] + 1:
            runs[-1].append(index)
        else:
            runs.append([index])
    return ", ".join(f"{run[0]}-{run[-1]}" if len(run) > 2 else ", ".join(map(str, run)) for run in runs) or "none"


def inspection(found: Inspection, out: Path | None = None) -> None:
    console, model = plain_console(), found.model
    share = sum(model.layer_parameters) / model.parameters
    tied = "tied" if found.tied_embeddings else "untied"
    console.print(model.source, soft_wrap=True)
    console.print(f"{model.family} ({found.architecture}), {model.layers} layers in {found.stack}", soft_wrap=True)
    console.print(
        f"{millions(model.parameters)} parameters, {share:.1%} of them in the layers; stored as {found.dtype}; {tied} embeddings",
        soft_wrap=True,
    )
    table = Table("layer", "original", "kind", "parameters", "share", "may go alone")
    for index, count in enumerate(model.layer_parameters):
        legal = "yes" if index in found.removable else "no"
        share = f"{count / model.parameters:.2%}"
        table.add_row(str(index), str(model.original[index]), found.layer_kinds[index], millions(count), share, legal)
    console.print(table)
    for refusal in found.refusals.values():
        console.print("-", refusal, soft_wrap=True)
    _saved(console, out)


def scores(found: Scores, out: Path | None = None) -> None:
    console = plain_console()
    ranks = {index: rank for rank, index in enumerate(sorted(range(len(found.scores)), key=found.scores.__getitem__), 1)}
    table = Table(
        "layer", found.criterion, "rank (1 goes first)", title=f"{found.criterion} on {Path(found.model.source).name}", title_justify="left"
    )
    for index, value in enumerate(found.scores):
        table.add_row(str(index), f"{value:.6g}", str(ranks[index]))
    console.print(table)
    used = f" on {found.calibration.samples} x {found.calibration.length} tokens of {found.calibration.source}" if found.calibration else ""
    console.print(f"{found.seconds:.1f} s, peak memory {found.peak_memory_bytes / 2**30:.2f} GiB, {found.dtype}{used}", soft_wrap=True)
    _saved(console, out)


def plan(found: Plan, out: Path | None = None) -> None:
    console = plain_console()
    console.print(f"remove {len(found.removed)} of {found.model.layers} layers: {layers(found.removed)}", soft_wrap=True)
    console.print(f"order of removal: {', '.join(map(str, found.order))}", soft_wrap=True)
    console.print(
        f"parameters {millions(found.params_before)} -> {millions(found.params_after)}, {found.share:.2%} of all; "
        f"first {found.keep_first} and last {found.keep_last} protected",
        soft_wrap=True,
    )
    if found.assumed:
        console.print(f"assumed: {found.assumed}", soft_wrap=True)
    _saved(console, out)


def sweep(found: Sweep, out: Path | None = None) -> None:
    console, dense = plain_console(), found.rows[0]
    table = Table("removed", "parameters", *dense["perplexity"], "layers", title=Path(found.model.source).name, title_justify="left")
    for row in found.rows:
        values = (
            f"{item['value']:.2f} ({item['value'] / dense['perplexity'][name]['value']:.2f}x)" for name, item in row["perplexity"].items()
        )
        table.add_row(str(row["removed"]), millions(row["parameters"]), *values, layers(row["layers"]))
    console.print(table)
    _saved(console, out)


def pruned(found: Pruned, out: Path | None = None) -> None:
    plan(found.plan)
    console = plain_console()
    for change in found.config_changes:
        console.print("config:", change, soft_wrap=True)
    if found.compensation:
        loss, count = found.compensation["loss"], len(found.compensation["changed"])
        what = f"{count} weights changed" if count else "nothing changed"
        console.print(
            f"{found.compensation['method']}: {what}; held-out loss {loss['before']:.4f} -> {loss['after']:.4f} nats "
            f"(unpruned {loss['dense']:.4f})",
            soft_wrap=True,
        )
    proof = found.verified
    if "skipped" in proof:
        console.print(f"not verified: {proof['skipped']}", soft_wrap=True)
    else:
        console.print(
            f"verified after reloading ({proof['dtype']}): logits equal {proof['logits']}, cached decoding within "
            f"{proof['cached_difference']:.1e} of uncached (unpruned {proof['cached_difference_unpruned']:.1e}), no missing keys",
            soft_wrap=True,
        )
    console.print(f"load it with AutoModelForCausalLM.from_pretrained({str(out)!r})", soft_wrap=True)


def losses(found: Healing) -> tuple[float, float]:
    """Means of the training loss over the first and the last tenth of the steps, in nats."""
    values = [row["loss"] for row in found.rows if "loss" in row]
    part = max(1, len(values) // 10)
    return sum(values[:part]) / part, sum(values[-part:]) / part


def perplexities(found: Healing, control: bool = False) -> dict[str, list[tuple[int, float]]]:
    """Text -> (step, perplexity) wherever it was measured, of the healed model or of the control."""
    rows = (found.control or ()) if control else found.rows
    measured = [(row["step"], row["eval"]) for row in rows if row.get("eval")]
    names = measured[0][1] if measured else ()
    return {name: [(step, one[name]["value"]) for step, one in measured if name in one] for name in names}


def gaps(found: Healing) -> dict[str, tuple[float, float]]:
    """Text -> how much of the gap in log-perplexity to the unpruned model is closed: to it as it was, and to it trained the same."""
    closed, control = {}, perplexities(found, control=True)
    for name, values in perplexities(found).items():
        if name in control:
            (before, after), (plain, trained) = ([math.log(one[at][1]) for at in (0, -1)] for one in (values, control[name]))
            if before > plain:
                closed[name] = (before - after) / (before - plain), 1 - (after - trained) / (before - plain)
    return closed


def gap_closed(found: Healing, name: str) -> str:
    """That in words; nothing where there is no control."""
    if name not in gaps(found):
        return ""
    plain, trained = gaps(found)[name]
    return f"{plain:.0%} of the gap to the unpruned model, {trained:.0%} of it when that is trained on the same tokens"


def healing(found: Healing, out: Path | None = None) -> None:
    console, (first, last) = plain_console(), losses(found)
    console.print(
        f"{found.method}: {millions(found.trained_parameters)} of {millions(found.model.parameters)} parameters trained on "
        f"{millions(found.train_tokens)} tokens of {found.data['source']} in {found.steps} steps",
        soft_wrap=True,
    )
    console.print(f"training loss {first:.4f} -> {last:.4f} nats (first and last tenth of the steps)", soft_wrap=True)
    for name, values in perplexities(found).items():
        console.print(
            f"perplexity {name}: {values[0][1]:.3f} -> {values[-1][1]:.3f} ({found.data['length']} tokens a segment)", soft_wrap=True
        )
        if closed := gap_closed(found, name):
            console.print(f"  {closed}", soft_wrap=True)
    console.print(
        f"{found.seconds:.1f} s, peak memory {found.peak_memory_bytes / 2**30:.2f} GiB, {found.dtype}; "
        f"reloaded logits equal {found.reloaded['logits']}",
        soft_wrap=True,
    )
    console.print(f"load it with AutoModelForCausalLM.from_pretrained({str(out)!r})", soft_wrap=True)


def evaluation(found: Evaluation, out: Path | None = None) -> None:
    console, heading = plain_console(), Path(found.model.source).name
    if found.removed:
        heading += f" without layers {layers(found.removed)}"
    if found.perplexity:
        table = Table("text", "perplexity", "bits per byte", "tokens", "length", "stride", "bos", title=heading, title_justify="left")
        for name, item in found.perplexity.items():
            bits = f"{item['bits_per_byte']:.4f}" if item.get("bits_per_byte") else "-"
            table.add_row(name, f"{item['value']:.3f}", bits, *(str(item[key]) for key in ("tokens", "length", "stride", "bos")))
        console.print(table)
    if found.tasks:
        table = Table("task", "metric", "value", "±", "items", title=heading, title_justify="left")
        for name, item in found.tasks.items():
            error = f"{item['stderr']:.4f}" if item["stderr"] is not None else "-"
            table.add_row(name, item["metric"], f"{item['value']:.4f}", error, str(item["count"]))
        table.add_row("mean", "", f"{mean_of(found.tasks):.4f}", "", "", end_section=True)
        console.print(table)
    _saved(console, out)


def comparison(found: Comparison, out: Path | None = None) -> None:
    """As many columns side by side as fit; the best of each is bold."""
    console = plain_console()
    wide = console.options.update(width=10_000)
    shown = [[Text("\n".join(lines), style="bold" if best else "") for lines, best in line] for line in cells(found)]
    titles = list(map(title, found.columns))
    while titles:
        count = len(titles)
        while count > 1 and console.measure(_columns(found, titles[:count], shown), options=wide).maximum > console.width:
            count -= 1
        console.print(_columns(found, titles[:count], shown))
        titles, shown = titles[count:], [line[count:] for line in shown]
    console.print(LEGEND, soft_wrap=True)
    for note in remarks(found):
        console.print("-", note, soft_wrap=True)
    _saved(console, out)


def _columns(found: Comparison, titles: Sequence[str], shown: Sequence[Sequence[Text]]) -> Table:
    table = Table("model", *titles)
    for column in table.columns[1:]:
        column.justify = "right"
    for row, line in zip(found.rows, shown, strict=True):
        table.add_row(Text(row["name"]), *line[: len(titles)])
    return table


def speed(found: Speed, out: Path | None = None) -> None:
    console, typical = plain_console(), found.settings.get("typical", "median")
    console.print(f"model: {found.model.source}: {_analytic(found.analytic['model'])}", soft_wrap=True)
    if found.against is not None:
        console.print(f"against: {found.against.source}: {_analytic(found.analytic['against'])}", soft_wrap=True)
    read = f", which reads its memory at {found.bandwidth / 1e9:.1f} GB/s" if found.bandwidth else ""
    console.print(f"{found.dtype} on {found.device} with {found.threads} threads{read}", soft_wrap=True)
    title = f"protocol {found.protocol}: {typical} [10 to 90 % of the runs], milliseconds"
    table = Table("batch", "tokens", "of", "prefill", "decode, per step", "tokens/s", "peak\nGiB", "of band-\nwidth", "runs", title=title)
    table.title_justify, table.box, table.padding = "left", SIMPLE_HEAD, 0
    for row in found.rows:
        table.add_row(str(row["batch"]), f"{row['prompt']} + {row['new']}", row["of"], *_measured(row, typical))
    console.print(table)
    for row in found.speedups:
        gained = ", ".join(f"{row[key]:.3f} in {what}" for key, what in (("prefill", "prefill"), ("decode", "decode"), ("latency", "all")))
        ideal = f"by the bytes that a step reads, decode could be {row['ideal']:.3f} times as fast"
        console.print(f"batch {row['batch']}, {row['prompt']} + {row['new']} tokens, times faster: {gained}; {ideal}", soft_wrap=True)
    if found.device == "cpu" and found.settings.get("load", 0) > BUSY * found.threads:
        busy = f"the machine was busy (load {found.settings['load']:.1f} on {found.threads} threads): take these times with care"
        console.print(busy, soft_wrap=True)
    console.print(f"{found.seconds:.0f} s", soft_wrap=True)
    _saved(console, out)


def _measured(row: dict[str, Any], typical: str) -> list[str]:
    if "error" in row:
        return [row["error"]]
    decode = [f"{row['decode'][key] * 1e3:.1f}" for key in (typical, "p10", "p90")]
    memory, runs = f"{row['peak_memory_bytes'] / 2**30:.2f}", str(row["runs"])
    times = f"{row['prefill'][typical] * 1e3:.1f}", f"{decode[0]} [{decode[1]}-{decode[2]}]"
    return [*times, f"{row['tokens_per_second']:.1f}", memory, f"{row['bound']:.0%}", runs]


def _analytic(figures: dict[str, float]) -> str:
    return (
        f"{millions(int(figures['parameters']))} parameters; per token {figures['read_bytes_per_token'] / 1e6:.1f} MB of weights to read, "
        f"{millions(int(figures['flops_per_token']))} FLOPs, {figures['kv_bytes_per_token'] / 1e3:.1f} KB more in the cache"
    )


def _saved(console: Console, out: Path | None) -> None:
    if out is not None:
        console.print(f"written to {out}", soft_wrap=True)
