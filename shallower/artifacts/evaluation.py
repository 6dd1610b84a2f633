"""Evaluation record: perplexities and task results (evaluation.json)."""

import html
from dataclasses import dataclass, field
from typing import Any

from ..runtime.format import layers
from ..runtime.provenance import Provenance
from .model import ModelRecord


@dataclass(frozen=True)
class Evaluation:
    """Measured quality.

    ``perplexity[name]`` holds value, nll, bits_per_byte (None for given tokens), tokens, length, stride, bos, the hash
    of the tokens, and ``parts``: (sum of the NLL, tokens) per segment, to resample from. ``tasks[name]`` holds value,
    stderr, metric, count, version and ``items``: the metric of every item in the order of the data. ``removed`` are
    layers that were left out virtually.
    """

    model: ModelRecord
    perplexity: dict[str, dict[str, Any]]
    tasks: dict[str, dict[str, Any]] = field(default_factory=dict)
    removed: list[int] = field(default_factory=list)
    protocol: str = ""
    seconds: float = 0.0
    dtype: str = ""
    provenance: Provenance = field(default_factory=Provenance.now)
    kind: str = "evaluation"
    schema: int = 1

    def __repr__(self) -> str:
        measured = [f"{name} {item['value']:.2f}" for name, item in self.perplexity.items()]
        measured += [f"{name} {item['value']:.3f}" for name, item in self.tasks.items()]
        without = f" without layers {layers(self.removed)}" if self.removed else ""
        return f"<Evaluation of {self.model!r}{without}: {', '.join(measured)}>"

    def _repr_html_(self) -> str:
        rows = [(name, "perplexity", f"{item['value']:.3f}") for name, item in self.perplexity.items()]
        rows += [(name, item["metric"], f"{item['value']:.4f}") for name, item in self.tasks.items()]
        cells = "".join(
            "<tr>" + "".join(f"<td>{html.escape(str(cell))}</td>" for cell in row) + "</tr>" for row in rows
        )
        return f"<table><tr><th>text or task</th><th>metric</th><th>value</th></tr>{cells}</table>"
