"""Comparison of models.

Which of their figures may be held against each other, by how much they differ, and how surely.
"""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from jaxtyping import Float

from ..artifacts import ComparedFigure, ComparedModel, Comparison, Perplexity
from ..errors import UserError
from ..evaluation.perplexity import LARGEST_NLL, perplexity_of
from .bootstrap import FEWEST, interval, means
from .retention import partings
from .sources import ComparisonEntry, Timing

TIED = 1e-9
LOSSES = (
    "nll",
    "loss",
    "perplexity",
    "word_perplexity",
    "byte_perplexity",
    "bits_per_byte",
    "brier_score",
)  # lower is better
TIME_COLUMNS = {  # column -> what of a row of a Speed
    "decode_ms": lambda timing: timing.milliseconds("decode"),
    "prefill_ms": lambda timing: timing.milliseconds("prefill"),
    "tokens_per_second": lambda timing: timing.row.tokens_per_second,
    "peak_memory_bytes": lambda timing: timing.row.peak_memory_bytes or None,
    "weight_bytes": lambda timing: timing.weight_bytes,
}
ItemSamples = Float[np.ndarray, " resample"]


@dataclass
class ComparedColumn:
    """One figure of some of the models; the keys of the dicts are places in the table, 0 the base.

    ``effects`` are the deltas to the base, ``samples`` of them and of the values come from the same draws.
    """

    name: str
    better: str = "lower"
    effect: str = "ratio"  # or difference
    values: dict[int, int | float] = field(default_factory=dict)
    effects: dict[int, float] = field(default_factory=dict)
    value_samples: dict[int, ItemSamples] = field(default_factory=dict)
    effect_samples: dict[int, ItemSamples] = field(default_factory=dict)

    def figure(self, place: int) -> ComparedFigure:
        """The figure of a place, with its intervals."""
        low, high = interval(self.value_samples[place]) if place in self.value_samples else (None, None)
        delta = self.effects.get(place) if place else None
        sampled = place and place in self.effect_samples
        delta_low, delta_high = interval(self.effect_samples[place]) if sampled else (None, None)
        none = 1.0 if self.effect == "ratio" else 0.0
        clear = not delta_low <= none <= delta_high if sampled else None
        return ComparedFigure(
            value=self.values[place],
            low=low,
            high=high,
            delta=delta,
            delta_low=delta_low,
            delta_high=delta_high,
            clear=clear,
            effect=self.effect,
            better=self.better,
            best=place in self.best(),
        )

    def best(self) -> set[int]:
        """The places of the best value; none where all are alike."""
        top = (min if self.better == "lower" else max)(self.values.values())
        places = {place for place, value in self.values.items() if abs(value - top) <= TIED * abs(top)}
        return places if len(places) < len(self.values) else set()


def compare_entries(entries: Sequence[ComparisonEntry], notes: Sequence[str] = ()) -> Comparison:
    """One table of all models, the first of which is the base.

    Raises:
        UserError: fewer than two models, or no measured figure that two of them share.
    """
    if len(entries) < 2:
        only = f"only {entries[0].name} was found" if entries else "no model was found"
        raise UserError(f"nothing to compare: {only}; give at least two models, runs or evaluation files")
    notes = list(notes)
    texts, bytes_columns = _text_columns(entries, notes)
    tasks = _task_columns(entries, notes)
    measurements = [*texts, *_mean_ratio(texts, notes), *bytes_columns, *tasks, *_task_mean(tasks, notes)]
    measurements += _task_columns(entries, notes, "agreement")
    notes += partings([entry.name for entry in entries], *_sorts(entries, tasks))
    measurements += _speed_columns(entries, notes)
    if not any(len(column.values) > 1 for column in measurements):
        raise UserError(_nothing_shared_text(entries))
    alone = [column for column in measurements if len(column.values) == 1]
    notes += [f"{title(column.name)}: only {entries[next(iter(column.values))].name} has it" for column in alone]
    columns = [*_sizes(entries), *(column for column in measurements if len(column.values) > 1)]
    notes += _dtype_note(entries)
    rows = [_row(place, entry, columns) for place, entry in enumerate(entries)]
    return Comparison(entries[0].name, [column.name for column in columns], rows, list(dict.fromkeys(notes)))


def title(column: str) -> str:
    """The name of a column for people."""
    kind, _, name = column.partition(" ")
    titles = {
        "perplexity_ratio": "mean perplexity ratio",
        "bits_per_byte": "bits per byte",
        "task_mean": "mean of tasks",
    }
    units = {"decode_ms": "decode, ms/token", "prefill_ms": "prefill, ms", "tokens_per_second": "tokens/s"}
    sizes = {"peak_memory_bytes": "peak memory", "weight_bytes": "weights"}
    label = (titles | units | sizes).get(kind, kind)
    return name if kind == "task" else f"{label} {name}".strip()


def _row(place: int, entry: ComparisonEntry, columns: Sequence[ComparedColumn]) -> ComparedModel:
    figures = {column.name: column.figure(place) for column in columns if place in column.values}
    return ComparedModel(
        name=entry.name,
        source=entry.model.source,
        fingerprint=entry.model.fingerprint,
        removed=list(entry.removal.layers),
        units=[str(unit) for unit in entry.removal.units] if entry.removal.kind != "layer" else [],
        how=entry.how,
        layers=entry.layers,
        parameters=entry.parameters,
        figures=figures,
    )


def _of_values(name: str, values: dict[int, int | float], better: str = "lower") -> ComparedColumn:
    """A column of plain figures, with ratios to the base."""
    base = values.get(0)
    return ComparedColumn(
        name, better, values=values, effects={place: value / base for place, value in values.items()} if base else {}
    )


def _sizes(entries: Sequence[ComparisonEntry]) -> list[ComparedColumn]:
    return [
        _of_values(key, {place: getattr(entry, key) for place, entry in enumerate(entries)})
        for key in ("layers", "parameters")
    ]


def _names(entries: Sequence[ComparisonEntry], kind: str) -> list[str]:
    """The texts or tasks that any entry has, in the order they come."""
    return list(dict.fromkeys(name for entry in entries for name in getattr(entry, kind)))


def _comparable(entries: Sequence[ComparisonEntry], kind: str, name: str, notes: list[str]) -> dict[int, Any]:
    """Place -> item, of all that were measured like the first that has it; the others are named in a note."""
    results = {place: getattr(entry, kind)[name] for place, entry in enumerate(entries) if name in getattr(entry, kind)}
    first, *others = results
    for place in others:
        was, now = results[first].identity(), results[place].identity()
        if other := [label for label in was if was[label] != now[label]]:
            what = "perplexity " + name if kind == "texts" else name
            value = results.pop(place).value
            base = entries[first].name
            notes.append(
                f"{what}: {entries[place].name} ({value:.4g}) is not held against {base}: other {', '.join(other)}"
            )
    return results


def _resampled_means(
    column: ComparedColumn, parts: dict[int, list], count: int, notes: list[str]
) -> dict[int, ItemSamples]:
    """Place -> resampled means, where the items are known and are as many as those of the others."""
    arrays = {place: np.asarray(items, float) for place, items in parts.items() if len(items)}
    if len(arrays) < len(parts) or len({len(array) for array in arrays.values()}) > 1:
        notes.append(f"{title(column.name)}: no intervals for some, their single results were not recorded alike")
        size = Counter(len(array) for array in arrays.values()).most_common(1)
        arrays = {place: array for place, array in arrays.items() if len(array) == size[0][0]}
    if not arrays or len(next(iter(arrays.values()))) < FEWEST:
        if arrays:
            notes.append(
                f"{title(column.name)}: no intervals from fewer than {FEWEST} {'segments' if count == 2 else 'items'}"
            )
        return {}
    pairs = [array if count == 2 else np.stack([array, np.ones_like(array)], axis=1) for array in arrays.values()]
    return dict(zip(arrays, means(pairs, column.name), strict=True))


def _text_columns(
    entries: Sequence[ComparisonEntry], notes: list[str]
) -> tuple[list[ComparedColumn], list[ComparedColumn]]:
    """(perplexity per text, bits per byte of texts that some tokenize differently)."""
    perplexities = []
    bytes_columns = []
    for name in _names(entries, "texts"):
        results = _comparable(entries, "texts", name, notes)
        column = ComparedColumn(f"perplexity {name}", values={place: item.value for place, item in results.items()})
        samples = _resampled_means(column, {place: item.parts or [] for place, item in results.items()}, 2, notes)
        column.value_samples = {place: np.exp(np.minimum(values, LARGEST_NLL)) for place, values in samples.items()}
        if 0 in results:
            column.effects = {place: perplexity_of(item.nll - results[0].nll) for place, item in results.items()}
        if 0 in samples:
            column.effect_samples = {
                place: np.exp(np.minimum(values - samples[0], LARGEST_NLL)) for place, values in samples.items()
            }
        perplexities.append(column)
        bytes_columns += _bytes_column(entries, name, results, notes)
    return perplexities, bytes_columns


def _bytes_column(
    entries: Sequence[ComparisonEntry], name: str, alike: dict[int, Perplexity], notes: list[str]
) -> list[ComparedColumn]:
    """Bits per byte, where others than ``alike`` cut the same text into other tokens; their items do not pair."""
    texts = {place: entry.texts[name] for place, entry in enumerate(entries) if name in entry.texts}
    first = texts[next(iter(alike))]
    same = {place: item for place, item in texts.items() if place in alike or _same_text(first, item)}
    bits = {place: item.bits_per_byte for place, item in same.items() if item.bits_per_byte}
    if len(bits) < 2 or bits.keys() <= alike.keys():
        return []
    notes.append(
        f"{title('bits_per_byte')} {name}: tokenizers differ, so segments do not pair and there are no intervals"
    )
    return [_of_values(f"bits_per_byte {name}", bits)]


def _same_text(one: Perplexity, other: Perplexity) -> bool:
    """Whether two evaluations by different tokenizers cover the same bytes, up to the last segment, which is dropped.

    Equally many tokens with other contents are another text, or a text cut after a number of tokens.
    """
    if not one.bits_per_byte or not other.bits_per_byte or one.tokens == other.tokens:
        return False
    if {**one.identity(), "tokens": 0, "BOS rule": 0} != {**other.identity(), "tokens": 0, "BOS rule": 0}:
        return False
    sizes = [item.nll * item.tokens / math.log(2) / item.bits_per_byte for item in (one, other)]
    segment = max(size / item.tokens * item.length for size, item in zip(sizes, (one, other), strict=True))
    return abs(sizes[0] - sizes[1]) <= 1.5 * segment + 1


def _shared_columns(columns: Sequence[ComparedColumn], what: str, notes: list[str]) -> list[ComparedColumn]:
    """The columns that the base and all others have that have any; a note says which where they are not all."""
    with_base = [column for column in columns if 0 in column.values and len(column.values) > 1]
    places = {place for column in with_base for place in column.values}
    shared = [column for column in with_base if column.values.keys() == places]
    if with_base and not shared:
        notes.append(f"no {what}: no column is shared by all")
    elif len(shared) < len(columns) and shared:
        notes.append(
            f"{what}: over {', '.join(column.name.partition(' ')[2] for column in shared)}, which all of them share"
        )
    return shared


def _mean(columns: Sequence[ComparedColumn], kind: str) -> dict:
    """Place -> the mean of values, effects or samples over the columns, which are resampled apart from each other."""
    places = [place for place in getattr(columns[0], kind) if all(place in getattr(column, kind) for column in columns)]
    return {place: sum(getattr(column, kind)[place] for column in columns) / len(columns) for place in places}


def _mean_ratio(texts: Sequence[ComparedColumn], notes: list[str]) -> list[ComparedColumn]:
    """The mean over texts of the perplexity's ratio to that of the base."""
    if not (shared := _shared_columns(texts, "mean perplexity ratio", notes)):
        return []
    ratios = _mean(shared, "effects")
    samples = _mean(shared, "effect_samples")
    samples.pop(0, None)  # 1 by definition
    return [
        ComparedColumn("perplexity_ratio", values=ratios, effects=ratios, value_samples=samples, effect_samples=samples)
    ]


def _task_columns(entries: Sequence[ComparisonEntry], notes: list[str], kind: str = "tasks") -> list[ComparedColumn]:
    """A column for every task, or every figure of the agreement with another model."""
    columns = []
    for name in _names(entries, kind):
        results = _comparable(entries, kind, name, notes)
        better = "lower" if next(iter(results.values())).metric in LOSSES else "higher"
        column = ComparedColumn(
            f"{kind.removesuffix('s')} {name}",
            better,
            "difference",
            {place: item.value for place, item in results.items()},
        )
        column.value_samples = _resampled_means(
            column, {place: item.items for place, item in results.items()}, 1, notes
        )
        if 0 in results:
            column.effects = {place: item.value - results[0].value for place, item in results.items()}
        if (base := column.value_samples.get(0)) is not None:
            column.effect_samples = {place: values - base for place, values in column.value_samples.items()}
        columns.append(column)
    return columns


def _sorts(entries: Sequence[ComparisonEntry], tasks: Sequence[ComparedColumn]) -> list[dict[int, list]]:
    """Place -> (value, chance, resampled values) of the tasks with choices, and of those whose answers are written."""
    found: list[dict[int, list]] = [{}, {}]
    for column in tasks:
        name = column.name.partition(" ")[2]
        for place, samples in column.value_samples.items():
            chance = entries[place].tasks[name].chance
            if chance is not None:
                found[chance == 0].setdefault(place, []).append((column.values[place], chance, samples))
    return found


def _task_mean(tasks: Sequence[ComparedColumn], notes: list[str]) -> list[ComparedColumn]:
    """The unweighted mean of the tasks; every task is resampled by itself."""
    shared = _shared_columns([column for column in tasks if column.better == "higher"], "mean of tasks", notes)
    kinds = ("values", "effects", "value_samples", "effect_samples")
    return (
        [ComparedColumn("task_mean", "higher", "difference", *(_mean(shared, kind) for kind in kinds))]
        if len(shared) > 1
        else []
    )


def _speed_columns(entries: Sequence[ComparisonEntry], notes: list[str]) -> list[ComparedColumn]:
    """Measured speed under the same conditions at the smallest setting that most of the models share."""
    places: dict[tuple, dict[int, Timing]] = {}
    for place, entry in enumerate(entries):
        for timing in sorted(entry.timings, key=lambda timing: timing.created):
            places.setdefault((timing.conditions, timing.setting), {})[place] = timing
    if not places:
        return []
    key = min(places, key=lambda key: (-len(places[key]), 0 not in places[key], key[1], key[0]))
    timings = places[key]
    conditions, (batch, prompt, new) = key
    notes.append(f"speed: {', '.join(filter(None, conditions))}; batch {batch}, prompt {prompt}, {new} new tokens")
    if len({timing.created for timing in timings.values()}) > 1:
        notes.append("speed: measured in several runs, so that the machine's state may differ between them")
    for place, entry in enumerate(entries):
        if entry.timings and place not in timings:
            notes.append(f"speed: {entry.name} was not measured under the same conditions and setting")
    values = {
        key: {place: value for place, timing in timings.items() if (value := value_of(timing))}
        for key, value_of in TIME_COLUMNS.items()
    }
    return [
        _of_values(key, those, "higher" if key == "tokens_per_second" else "lower")
        for key, those in values.items()
        if those
    ]


def _dtype_note(entries: Sequence[ComparisonEntry]) -> list[str]:
    dtypes = {entry.name: " and ".join(sorted(entry.dtypes - {""})) for entry in entries}
    dtypes = {name: dtype for name, dtype in dtypes.items() if dtype}
    if len(set(dtypes.values())) < 2:
        return []
    return ["evaluated in different dtypes: " + ", ".join(f"{name} in {dtype}" for name, dtype in dtypes.items())]


def _nothing_shared_text(entries: Sequence[ComparisonEntry]) -> str:
    def has(entry: ComparisonEntry) -> str:
        texts = [f"perplexity {name} at length {item.length}" for name, item in entry.texts.items()]
        return ", ".join([*texts, *entry.tasks]) or ("speed" if entry.timings else "nothing")

    texts = "; ".join(f"{entry.name} has {has(entry)}" for entry in entries[:4])
    return (
        f"nothing to compare, no figure is shared: {texts}: evaluate all on the same texts or tasks by the same "
        "protocol"
    )
