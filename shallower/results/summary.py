"""Report summary: labels, ratios to the dense model, the headline."""

import math
from dataclasses import dataclass
from functools import cached_property
from pathlib import PurePosixPath

from ..artifacts import CalibrationRecord, Evaluation, ModelRecord, Perplexity, Speed
from ..artifacts.record import SettingValues
from ..runtime.format import Number, millions, short
from .collection import CollectedArtifact, Collection, Pruning
from .timings import setting

TextColumn = tuple[str, str]  # name of a text, hash of its tokens


@dataclass(frozen=True)
class EvaluationRow:
    """An evaluation, and of what it is."""

    label: str
    detail: str
    artifact: CollectedArtifact
    dense: bool = False
    pruning: Pruning | None = None

    @property
    def evaluation(self) -> Evaluation:
        return self.artifact.record

    def at(self, column: TextColumn) -> Perplexity | None:
        """The perplexity on a text, where it was measured on the same tokens."""
        item = self.evaluation.perplexity.get(column[0])
        return item if item and item.hash == column[1] else None


class Summary:
    """Summary of a collection."""

    def __init__(self, collection: Collection):
        self.collection = collection
        self.root = collection.root

    @property
    def name(self) -> str:
        """The name of the dense model."""
        return (
            model_name(self.root) if self.root else PurePosixPath(self.collection.of("comparison")[0].record.base).name
        )

    @cached_property
    def rows(self) -> list[EvaluationRow]:
        """Every evaluation: first the dense model, then by layers left, then by path."""
        rows = [self._row(item) for item in self.collection.of("evaluation")]
        return sorted(
            rows,
            key=lambda row: (
                not row.dense,
                len(row.evaluation.removal) - row.evaluation.model.layers,
                row.pruning is not None,
            ),
        )

    def _row(self, artifact: CollectedArtifact) -> EvaluationRow:
        record = artifact.record
        pruning = self.collection.pruning_of(record.model)
        if record.removal:
            text = str(record.removal)
            what = text if len(text) <= 20 else f"{len(record.removal)} {'units' if record.units else 'layers'}"
            return EvaluationRow(f"without {what}", "left out virtually, nothing repaired", artifact)
        if pruning:
            trained = pruning.pruned.fingerprint != record.model.fingerprint
            repair = f"repaired by {pruning.repair}" if pruning.repair else "not repaired"
            return EvaluationRow(pruning.name, "trained further" if trained else repair, artifact, pruning=pruning)
        dense = record.model.fingerprint == self.root.fingerprint
        return EvaluationRow(
            "dense" if dense else model_name(record.model), f"{record.model.layers} layers", artifact, dense=dense
        )

    @cached_property
    def columns(self) -> list[TextColumn]:
        """The texts, by name and tokens, in the order in which they come up."""
        items = [(name, item.hash) for row in self.rows for name, item in row.evaluation.perplexity.items()]
        return list(dict.fromkeys(items))

    def base(self, column: TextColumn) -> Number | None:
        """The perplexity of the dense model on a text."""
        return next((row.at(column).value for row in self.rows if row.dense and row.at(column)), None)

    def ratio(self, row: EvaluationRow, column: TextColumn) -> float | None:
        """The perplexity as a multiple of that of the dense model on the same tokens."""
        item = row.at(column)
        base = self.base(column)
        return item.value / base if item and base else None

    def mean_ratio(self, row: EvaluationRow) -> tuple[float, int] | None:
        """The geometric mean of the ratios over the texts that can be compared, and their number."""
        ratios = [ratio for column in self.columns if (ratio := self.ratio(row, column))]
        return (math.exp(sum(map(math.log, ratios)) / len(ratios)), len(ratios)) if ratios and not row.dense else None

    @cached_property
    def main(self) -> Pruning | None:
        """The pruning that the headline speaks of.

        Where several removed the same layers, the one with the lowest perplexity.
        """
        return min(self.collection.prunings, key=self._order, default=None)

    @cached_property
    def main_row(self) -> EvaluationRow | None:
        """Its evaluation; where there is none, that of the virtual removal."""
        if self.main is None:
            return None
        own = [row for row in self.rows if row.pruning is self.main and row.evaluation.perplexity]
        virtual = [
            row for row in self.rows if row.evaluation.removal == self.main.plan.removal and row.evaluation.perplexity
        ]
        return min(
            own, key=lambda row: (self.mean_ratio(row) or (math.inf, 0))[0], default=virtual[0] if virtual else None
        )

    def _order(self, pruning: Pruning) -> tuple[bool, int, float]:
        ratios = [ratio[0] for row in self.rows if row.pruning is pruning and (ratio := self.mean_ratio(row))]
        return pruning.pruned is None, -len(pruning.removal), min(ratios, default=math.inf)

    @property
    def sets(self) -> list[Pruning]:
        """One pruning for each set of removed layers, the main one first."""
        prunings = sorted(self.collection.prunings, key=lambda pruning: pruning is not self.main)
        return list({pruning.removal: pruning for pruning in reversed(prunings)}.values())[::-1]

    @property
    def removable(self) -> str:
        """What the prunings took from, in words."""
        parts = any(pruning.removal.kind != "layer" for pruning in self.collection.prunings)
        return "attentions, MLPs and layers" if parts else f"of {self.root.layers} layers"

    def _narrower(self) -> str:
        layers = f"{len(self.main.removal.layers)} layers less, " if self.main.removal.layers else ""
        mean = self.mean_ratio(self.main_row) if self.main_row else None
        quality = f", perplexity ×{mean[0]:.2f}" if mean else ""
        return f"{layers}narrower layers, {percent(self.parameters_left(self.main))} parameters{quality}"

    def headline(self) -> str:
        """One line, such as: 6 of 30 layers removed, −15.8 % parameters, perplexity ×1.22."""
        if self.main is None:
            return (
                f"{self.root.layers} layers, {millions(self.root.parameters)} parameters"
                if self.root
                else "Models side by side"
            )
        counts = sorted({len(pruning.removal) for pruning in self.collection.prunings})
        if any(pruning.removal.narrows for pruning in self.collection.prunings):
            return f"{len(self.sets)} prunings, some of them of the width" if len(self.sets) > 1 else self._narrower()
        if len(counts) > 1:
            return f"{len(self.sets)} prunings, {counts[0]} to {counts[-1]} {self.removable} removed"
        verb = "removed" if any(pruning.pruned for pruning in self.collection.prunings) else "would be removed"
        parts = [
            f"{counts[0]} {self.removable} {verb}",
            f"{percent(self.parameters_left(self.main))} parameters",
        ]
        if self.main_row and (mean := self.mean_ratio(self.main_row)):
            parts.append(f"perplexity ×{mean[0]:.2f}" + (f" (mean of {mean[1]} texts)" if mean[1] > 1 else ""))
        return ", ".join(parts)

    def parameters_left(self, pruning: Pruning) -> float:
        """The share of the root's parameters that a pruning left."""
        return pruning.plan.params_after / self.root.parameters

    def key_figures(self) -> list[tuple[str, str]]:
        """(figure, what it is) for the cards at the top."""
        if self.main is None:
            return []
        plan = self.main.plan
        repair = self.main.repair
        cards = [
            (
                f"−{len(plan.removed)}" if plan.units else f"{self.root.layers} → {len(plan.kept)}",
                ("attentions, MLPs and layers" if plan.units else "layers")
                + (f", {self.main.name}" * (len(self.sets) > 1)),
            ),
            (
                f"{millions(self.root.parameters)} → {millions(plan.params_after)}",
                f"parameters, {percent(self.parameters_left(self.main))}",
            ),
        ]
        if self.main_row:
            column = next((column for column in self.columns if self.ratio(self.main_row, column)), None)
            if column:
                before, after = self.base(column), self.main_row.at(column).value
                cards.append(
                    (
                        f"{perplexity_text(before)} → {perplexity_text(after)}",
                        f"perplexity, {column[0]}" + (f", repaired by {repair}" if repair else ""),
                    )
                )
        for artifact in self.collection.of("speed"):
            cards += speed_cards(artifact.record)
        if self.main.pruned and self.main.pruned.proof:
            cards.append(
                (
                    self.main.pruned.proof.logits,
                    "reloaded from disk, logits equal to those of the intended model",
                )
            )
        return cards[:6]


def speed_cards(speed: Speed) -> list[tuple[str, str]]:
    """The first setting's decoding speed-up, and the change of peak memory."""
    cards = []
    if speed.speedups:
        cards.append((f"×{speed.speedups[0].decode:.2f}", f"decoding speed, {setting(speed.speedups[0])}"))
    for row in speed.measured:
        twins = (other for other in speed.measured if other.of == "against" and setting(other) == setting(row))
        twin = next(twins, None)
        if row.of == "model" and row.peak_memory_bytes and twin and twin.peak_memory_bytes:
            cards.append((percent(row.peak_memory_bytes / twin.peak_memory_bytes), f"peak memory, {setting(row)}"))
            break
    return cards


def model_name(model: ModelRecord) -> str:
    """The last part of where a model came from, without the ending of a file."""
    return PurePosixPath(model.source.replace("\\", "/")).name.removesuffix(".gguf") or model.family


def percent(share: Number) -> str:
    """A share that is left, as a change: −15.8 %."""
    return f"{'−' if share < 1 else '+'}{abs(1 - share):.1%}".replace("%", " %")


def perplexity_text(value: Number) -> str:
    """A perplexity with two decimals, a large one with fewer."""
    return f"{value:.2f}" if value < 1000 else short(value)


def seconds(count: Number) -> str:
    """A duration for people."""
    return f"{count:.1f} s" if count < 100 else f"{count / 60:.1f} min" if count < 6000 else f"{count / 3600:.1f} h"


def gigabytes(count: Number) -> str:
    """Bytes for people."""
    return f"{count / 2**30:.2f} GiB"


def tokens_used(record: CalibrationRecord | None) -> str:
    """Which tokens a stage used."""
    if record is None:
        return "none"
    seed = f", seed {record.seed}" if record.seed is not None else ""
    return f"{record.samples} × {record.length} of {record.source}{seed}, BOS {record.bos}"


def settings_of(settings: SettingValues) -> str:
    """A method's settings as they are given on the command line."""
    return ", ".join(
        f"{name}={short(value) if isinstance(value, float) else value}" for name, value in settings.items()
    )
