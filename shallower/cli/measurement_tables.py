"""Tables of what is measured: evaluations, sweeps, speed, healing, comparisons."""

from collections.abc import Sequence
from pathlib import Path

from rich.table import Table
from rich.text import Text

from ..artifacts import (
    Analytic,
    Comparison,
    Evaluation,
    Exported,
    FailedRow,
    Healing,
    Quantised,
    Speed,
    SpeedRow,
    Sweep,
)
from ..artifacts.speed import Typical
from ..evaluation.tasks import centred_mean, mean_of
from ..results.comparison import title
from ..results.comparison_text import LEGEND, cells, remarks
from ..results.generation import agreement_lines, draft_lines
from ..results.healing import gap_closed, losses, own_answers, perplexities
from ..runtime.format import millions
from .grid import grid, plain_console
from .tables import loading_note, saved_note

BUSY = 1.2  # load per thread before a run from which on others' work disturbs the clock
ROUGH = 0.05  # nats of KL divergence from which on the rounding of an exported copy is told


def sweep_table(sweep: Sweep, out: Path | None = None) -> None:
    console = plain_console()
    dense = sweep.rows[0]
    rows = []
    for row in sweep.rows:
        values = [
            f"{item.value:.2f} ({item.value / dense.perplexity[name].value:.2f}x)"
            for name, item in row.perplexity.items()
        ]
        rows.append([str(row.removed), millions(row.parameters), *values, row.what])
    grid(
        console,
        ["removed", "parameters", *dense.perplexity, "layers removed" if not sweep.rows[-1].units else "units removed"],
        rows,
        heading=Path(sweep.model.source).name,
        spare=("parameters",),
    )
    saved_note(console, out)


def healing_table(healing: Healing, out: Path | None = None) -> None:
    console = plain_console()
    first, last = losses(healing)
    console.print(
        f"{healing.method}: {millions(healing.trained_parameters)} of {millions(healing.model.parameters)} "
        "parameters trained on "
        f"{millions(healing.train_tokens)} tokens of {healing.data.source} in {healing.steps} steps",
        soft_wrap=True,
    )
    if answers := own_answers(healing):
        console.print(answers, soft_wrap=True)
    console.print(f"training loss {first:.4f} -> {last:.4f} nats (first and last tenth of the steps)", soft_wrap=True)
    for name, values in perplexities(healing).items():
        console.print(
            f"perplexity {name}: {values[0][1]:.3f} -> {values[-1][1]:.3f} ({healing.data.length} tokens a segment)",
            soft_wrap=True,
        )
        if gap := gap_closed(healing, name):
            console.print(f"  {gap}", soft_wrap=True)
    console.print(
        f"{healing.seconds:.1f} s, peak memory {healing.peak_memory_bytes / 2**30:.2f} GiB, {healing.dtype}; "
        f"reloaded logits equal {healing.reloaded.logits}",
        soft_wrap=True,
    )
    loading_note(console, out)


def evaluation_table(evaluation: Evaluation, out: Path | None = None) -> None:
    console = plain_console()
    heading = Path(evaluation.model.source).name
    if evaluation.without:
        heading += f" without {evaluation.without}"
    if evaluation.perplexity:
        rows = []
        for name, perplexity in evaluation.perplexity.items():
            bits = f"{perplexity.bits_per_byte:.4f}" if perplexity.bits_per_byte else "-"
            protocol = (perplexity.tokens, perplexity.length, perplexity.stride, perplexity.bos)
            rows.append([name, f"{perplexity.value:.3f}", bits, *map(str, protocol)])
        columns = ("text", "perplexity", "bits per byte", "tokens", "length", "stride", "bos")
        grid(console, columns, rows, heading=heading, spare=("bos", "stride", "length", "tokens", "bits per byte"))
    if evaluation.tasks:
        rows = []
        for name, task in evaluation.tasks.items():
            error = f"{task.stderr:.4f}" if task.stderr is not None else "-"
            rows.append([name, task.metric, f"{task.value:.4f}", error, _four(task.centred), str(task.count)])
        rows.append(["mean", "", f"{mean_of(evaluation.tasks):.4f}", "", _four(centred_mean(evaluation.tasks)), ""])
        columns = ("task", "metric", "value", "±", "centred", "items")
        grid(console, columns, rows, heading=heading, spare=("items", "metric"))
    written = [*agreement_lines(evaluation.agreement)] if evaluation.agreement else []
    written += [*draft_lines(evaluation.draft)] if evaluation.draft else []
    for line in written:
        console.print(line, soft_wrap=True)
    saved_note(console, out)


def exported_table(exported: Exported, out: Path | None = None) -> None:
    console = plain_console()
    what = f"{Path(exported.model.source).name}: {exported.bytes / 1e6:.0f} MB of {exported.storage or exported.type}"
    copied = exported.copied
    console.print(f"{what}, {'converted' if copied is None else 'written'} in {exported.seconds:.1f} s", soft_wrap=True)
    if copied is not None:
        anew = f", {copied.remade} anew as {', '.join(copied.types)} (rounded by {copied.rounding:.2%} at most)"
        console.print(f"{copied.copied} tensors copied from {copied.of}{anew if copied.remade else ''}", soft_wrap=True)
    for change in exported.changes if copied is None else ():
        console.print("added to what the converter writes:", change, soft_wrap=True)
    proof = exported.proof
    if proof is None:
        console.print("not verified", soft_wrap=True)
    else:
        prompts = ", ".join(map(str, proof.prompts))
        console.print(
            f"proven in {proof.by} against transformers behind prompts of {prompts} tokens: relative difference "
            f"{proof.difference:.2g}, KL {proof.divergence:.2g} nats, "
            f"{'the same' if proof.same_next else 'not always the same'} likeliest token",
            soft_wrap=True,
        )
        if proof.rounded is not None and proof.rounded > ROUGH:
            what = "the changed tensors" if copied is not None else "the weights"
            cost = f"rounding {what} costs KL {proof.rounded:.2g} nats"
            console.print(f"{cost}: --type q8_0 costs less", soft_wrap=True)
    saved_note(console, out)


def quantised_table(quantised: Quantised, out: Path | None = None) -> None:
    console = plain_console()
    proof = quantised.proof
    before, after = quantised.weight_bytes_before, quantised.weight_bytes
    lines = (
        f"{Path(quantised.model.source).name}: {quantised.projections} projections by {quantised.method} to "
        f"{quantised.bits} bits in groups of {quantised.group_size}, the rest in {quantised.dtype}",
        f"{before / 1e6:.0f} -> {after / 1e6:.0f} MB of weights, in {quantised.seconds:.0f} s, on "
        f"{quantised.fitted_tokens:,} tokens of {quantised.calibration.source}",
        f"on {proof.tokens:,} held-out tokens: KL {proof.divergence:.3g} nats per token, perplexity "
        f"{proof.perplexity_before:.2f} -> {proof.perplexity_after:.2f} (x {proof.ratio:.3f}), the same likeliest "
        f"token behind {proof.same_next:.0%}",
        f"loaded for that by {proof.by}; loading it needs pip install compressed-tensors",
    )
    for line in lines:
        console.print(line, soft_wrap=True)
    loading_note(console, out)


def _four(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"


def comparison_table(comparison: Comparison, out: Path | None = None) -> None:
    """As many columns side by side as fit; the best of each is bold."""
    console = plain_console()
    unbounded = console.options.update(width=10_000)
    body = [
        [Text("\n".join(lines), style="bold" if best else "") for lines, best in line] for line in cells(comparison)
    ]
    titles = list(map(title, comparison.columns))
    while titles:
        count = len(titles)
        while (
            count > 1
            and console.measure(_table(comparison, titles[:count], body), options=unbounded).maximum > console.width
        ):
            count -= 1
        console.print(_table(comparison, titles[:count], body))
        titles = titles[count:]
        body = [line[count:] for line in body]
    console.print(LEGEND, soft_wrap=True)
    for note in remarks(comparison):
        console.print("-", note, soft_wrap=True)
    saved_note(console, out)


def _table(comparison: Comparison, titles: Sequence[str], body: Sequence[Sequence[Text]]) -> Table:
    table = Table("model", *titles)
    for column in table.columns[1:]:
        column.justify = "right"
    for row, line in zip(comparison.rows, body, strict=True):
        table.add_row(Text(row.name), *line[: len(titles)])
    return table


def speed_table(speed: Speed, out: Path | None = None) -> None:
    console = plain_console()
    typical = speed.settings.typical
    names = _speed_names(speed)
    for key, record in (("model", speed.model), ("against", speed.against)):
        if record is not None:
            console.print(f"{names[key]}: {_analytic(speed.analytic[key])}", soft_wrap=True)
    bandwidth = f", which reads its memory at {speed.bandwidth / 1e9:.1f} GB/s" if speed.bandwidth else ""
    console.print(f"{speed.dtype} on {speed.device} with {speed.threads} threads{bandwidth}", soft_wrap=True)
    console.print(f"protocol {speed.protocol}: {typical} [10 to 90 % of the runs], milliseconds", soft_wrap=True)
    columns = (
        "model",
        "batch",
        "tokens",
        "prefill",
        "decode, per step",
        "tokens/s",
        "peak GiB",
        "of bandwidth",
        "runs",
    )
    rows = []
    for row in speed.rows:
        rows.append([names[row.of], str(row.batch), f"{row.prompt} + {row.new}", *_speed_cells(row, typical)])
    grid(console, columns, rows, spare=("runs", "of bandwidth", "peak GiB"))
    for row in speed.speedups:
        gains = ", ".join(
            f"{getattr(row, key):.3f} in {what}"
            for key, what in (("prefill", "prefill"), ("decode", "decode"), ("latency", "all"))
        )
        ideal = f"expected of decode by the bytes that a step reads {row.ideal:.3f}"
        console.print(
            f"batch {row.batch}, {row.prompt} + {row.new} tokens, times faster: {gains}; {ideal}",
            soft_wrap=True,
        )
    if speed.device.startswith("cpu") and speed.settings.load > BUSY * speed.threads:
        busy = (
            f"the machine was busy (load {speed.settings.load:.1f} on {speed.threads} threads): take these "
            "times with care"
        )
        console.print(busy, soft_wrap=True)
    console.print(f"{speed.seconds:.0f} s", soft_wrap=True)
    saved_note(console, out)


def _speed_names(speed: Speed) -> dict[str, str]:
    """The models by the last part of their sources, in full where these are the same."""
    sources = {"model": speed.model.source} | ({"against": speed.against.source} if speed.against else {})
    short = {key: Path(source).name or source for key, source in sources.items()}
    return (
        short
        if len(set(short.values())) == len(short)
        else sources
        if len(set(sources.values())) == len(sources)
        else {k: k for k in sources}
    )


def _speed_cells(row: SpeedRow | FailedRow, typical: Typical) -> list[str]:
    if isinstance(row, FailedRow):
        return [row.error, *["-"] * 5]
    step, low, high = (f"{one * 1e3:.1f}" for one in (row.decode.of(typical), row.decode.p10, row.decode.p90))
    memory = f"{row.peak_memory_bytes / 2**30:.2f}"
    runs = str(row.runs)
    prefill = f"{row.prefill.of(typical) * 1e3:.1f}"
    return [prefill, f"{step} [{low}-{high}]", f"{row.tokens_per_second:.1f}", memory, f"{row.bound:.0%}", runs]


def _analytic(figures: Analytic) -> str:
    return (
        f"{millions(int(figures.parameters))} parameters; per token "
        f"{figures.read_bytes_per_token / 1e6:.1f} MB of weights to read, "
        f"{millions(int(figures.flops_per_token))} FLOPs, {figures.kv_bytes_per_token / 1e3:.1f} KB more "
        "in the cache"
    )
