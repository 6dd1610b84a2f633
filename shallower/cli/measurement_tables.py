"""Tables of what is measured: evaluations, sweeps, speed, healing, comparisons."""

from collections.abc import Sequence
from pathlib import Path

from rich.table import Table
from rich.text import Text

from ..artifacts import Analytic, Comparison, Evaluation, FailedRow, Healing, Speed, SpeedRow, Sweep
from ..artifacts.speed import Typical
from ..evaluation.tasks import mean_of
from ..results.comparison import title
from ..results.comparison_text import LEGEND, cells, remarks
from ..results.healing import gap_closed, losses, perplexities
from ..runtime.format import layers, millions
from .grid import grid, plain_console
from .tables import saved_note

BUSY = 1.2  # load per thread before a run from which on others' work disturbs the clock


def sweep_table(found: Sweep, out: Path | None = None) -> None:
    console, dense = plain_console(), found.rows[0]
    rows = []
    for row in found.rows:
        values = [
            f"{item.value:.2f} ({item.value / dense.perplexity[name].value:.2f}x)"
            for name, item in row.perplexity.items()
        ]
        rows.append([str(row.removed), millions(row.parameters), *values, layers(row.layers)])
    grid(
        console,
        ["removed", "parameters", *dense.perplexity, "layers removed"],
        rows,
        heading=Path(found.model.source).name,
        spare=("parameters",),
    )
    saved_note(console, out)


def healing_table(found: Healing, out: Path | None = None) -> None:
    console, (first, last) = plain_console(), losses(found)
    console.print(
        f"{found.method}: {millions(found.trained_parameters)} of {millions(found.model.parameters)} "
        "parameters trained on "
        f"{millions(found.train_tokens)} tokens of {found.data.source} in {found.steps} steps",
        soft_wrap=True,
    )
    console.print(f"training loss {first:.4f} -> {last:.4f} nats (first and last tenth of the steps)", soft_wrap=True)
    for name, values in perplexities(found).items():
        console.print(
            f"perplexity {name}: {values[0][1]:.3f} -> {values[-1][1]:.3f} ({found.data.length} tokens a segment)",
            soft_wrap=True,
        )
        if closed := gap_closed(found, name):
            console.print(f"  {closed}", soft_wrap=True)
    console.print(
        f"{found.seconds:.1f} s, peak memory {found.peak_memory_bytes / 2**30:.2f} GiB, {found.dtype}; "
        f"reloaded logits equal {found.reloaded.logits}",
        soft_wrap=True,
    )
    console.print(f"load it with AutoModelForCausalLM.from_pretrained({str(out)!r})", soft_wrap=True)


def evaluation_table(found: Evaluation, out: Path | None = None) -> None:
    console, heading = plain_console(), Path(found.model.source).name
    if found.removed:
        heading += f" without layers {layers(found.removed)}"
    if found.perplexity:
        rows = []
        for name, item in found.perplexity.items():
            bits = f"{item.bits_per_byte:.4f}" if item.bits_per_byte else "-"
            cut = [str(one) for one in (item.tokens, item.length, item.stride, item.bos)]
            rows.append([name, f"{item.value:.3f}", bits, *cut])
        columns = ("text", "perplexity", "bits per byte", "tokens", "length", "stride", "bos")
        grid(console, columns, rows, heading=heading, spare=("bos", "stride", "length", "tokens", "bits per byte"))
    if found.tasks:
        rows = []
        for name, item in found.tasks.items():
            error = f"{item.stderr:.4f}" if item.stderr is not None else "-"
            rows.append([name, item.metric, f"{item.value:.4f}", error, str(item.count)])
        rows.append(["mean", "", f"{mean_of(found.tasks):.4f}", "", ""])
        grid(console, ("task", "metric", "value", "±", "items"), rows, heading=heading, spare=("items", "metric"))
    saved_note(console, out)


def comparison_table(found: Comparison, out: Path | None = None) -> None:
    """As many columns side by side as fit; the best of each is bold."""
    console = plain_console()
    wide = console.options.update(width=10_000)
    shown = [[Text("\n".join(lines), style="bold" if best else "") for lines, best in line] for line in cells(found)]
    titles = list(map(title, found.columns))
    while titles:
        count = len(titles)
        while (
            count > 1 and console.measure(_columns(found, titles[:count], shown), options=wide).maximum > console.width
        ):
            count -= 1
        console.print(_columns(found, titles[:count], shown))
        titles, shown = titles[count:], [line[count:] for line in shown]
    console.print(LEGEND, soft_wrap=True)
    for note in remarks(found):
        console.print("-", note, soft_wrap=True)
    saved_note(console, out)


def _columns(found: Comparison, titles: Sequence[str], shown: Sequence[Sequence[Text]]) -> Table:
    table = Table("model", *titles)
    for column in table.columns[1:]:
        column.justify = "right"
    for row, line in zip(found.rows, shown, strict=True):
        table.add_row(Text(row.name), *line[: len(titles)])
    return table


def speed_table(found: Speed, out: Path | None = None) -> None:
    console, typical = plain_console(), found.settings.typical
    names = _speed_names(found)
    for key, record in (("model", found.model), ("against", found.against)):
        if record is not None:
            console.print(f"{names[key]}: {_analytic(found.analytic[key])}", soft_wrap=True)
    read = f", which reads its memory at {found.bandwidth / 1e9:.1f} GB/s" if found.bandwidth else ""
    console.print(f"{found.dtype} on {found.device} with {found.threads} threads{read}", soft_wrap=True)
    console.print(f"protocol {found.protocol}: {typical} [10 to 90 % of the runs], milliseconds", soft_wrap=True)
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
    for row in found.rows:
        rows.append([names[row.of], str(row.batch), f"{row.prompt} + {row.new}", *_measured(row, typical)])
    grid(console, columns, rows, spare=("runs", "of bandwidth", "peak GiB"))
    for row in found.speedups:
        gained = ", ".join(
            f"{getattr(row, key):.3f} in {what}"
            for key, what in (("prefill", "prefill"), ("decode", "decode"), ("latency", "all"))
        )
        expected = f"expected of decode by the bytes that a step reads {row.ideal:.3f}"
        console.print(
            f"batch {row.batch}, {row.prompt} + {row.new} tokens, times faster: {gained}; {expected}",
            soft_wrap=True,
        )
    if found.device.startswith("cpu") and found.settings.load > BUSY * found.threads:
        busy = (
            f"the machine was busy (load {found.settings.load:.1f} on {found.threads} threads): take these "
            "times with care"
        )
        console.print(busy, soft_wrap=True)
    console.print(f"{found.seconds:.0f} s", soft_wrap=True)
    saved_note(console, out)


def _speed_names(found: Speed) -> dict[str, str]:
    """The models by the last part of their sources, in full where these are the same."""
    sources = {"model": found.model.source} | ({"against": found.against.source} if found.against else {})
    short = {key: Path(source).name or source for key, source in sources.items()}
    return (
        short
        if len(set(short.values())) == len(short)
        else sources
        if len(set(sources.values())) == len(sources)
        else {k: k for k in sources}
    )


def _measured(row: SpeedRow | FailedRow, typical: Typical) -> list[str]:
    if isinstance(row, FailedRow):
        return [row.error, *["-"] * 5]
    step, low, high = (f"{one * 1e3:.1f}" for one in (row.decode.of(typical), row.decode.p10, row.decode.p90))
    memory, runs = f"{row.peak_memory_bytes / 2**30:.2f}", str(row.runs)
    prefill = f"{row.prefill.of(typical) * 1e3:.1f}"
    return [prefill, f"{step} [{low}-{high}]", f"{row.tokens_per_second:.1f}", memory, f"{row.bound:.0%}", runs]


def _analytic(figures: Analytic) -> str:
    return (
        f"{millions(int(figures.parameters))} parameters; per token "
        f"{figures.read_bytes_per_token / 1e6:.1f} MB of weights to read, "
        f"{millions(int(figures.flops_per_token))} FLOPs, {figures.kv_bytes_per_token / 1e3:.1f} KB more "
        "in the cache"
    )
