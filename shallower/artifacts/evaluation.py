"""Evaluation record: perplexities and task results (evaluation.json)."""

import html
from dataclasses import field
from typing import ClassVar, Literal

from ..runtime.provenance import Provenance
from .generation import Agreement, Draft
from .model import ModelRecord
from .record import SCHEMA, Count, Finite, NonNegative, Positive, Size, TypedRecord, check, record
from .removal import Removal, check_units, parameters_gone


@record
class Perplexity(TypedRecord):
    """Perplexity on one text."""

    LEFT_OUT: ClassVar[tuple[str, ...]] = ("segments", "parts")

    value: Positive
    """Perplexity, exp of the mean NLL."""
    nll: Finite
    """Mean NLL in nats over all predicted tokens."""
    bits_per_byte: Positive | None = field(default=None, kw_only=True)
    """Bits per byte of the text; null for given tokens."""
    tokens: Size
    """Predicted tokens."""
    segments: Size | None = field(default=None, kw_only=True)
    """Segments that the text was cut into."""
    length: Size
    """Tokens per segment."""
    stride: Size
    """Step from one segment to the next."""
    bos: str
    """Rule by which a BOS token was put in: `first`, `every`, `none`, or `as given`."""
    hash: str
    """Hash of every token id and of the shape."""
    parts: list[tuple[Finite, Size]] | None = None
    """Sum of the NLL and number of tokens of every segment, to resample from; not in a sweep."""

    @check
    def _check(self) -> "Perplexity":
        if self.parts and sum(tokens for _, tokens in self.parts) != self.tokens:
            raise ValueError("the tokens of the parts do not add up")
        return self

    def identity(self) -> dict[str, str | int]:
        """What has to be equal before two figures are held against each other."""
        return {"length": self.length, "stride": self.stride, "BOS rule": self.bos, "tokens": self.hash}


@record
class TaskResult(TypedRecord):
    """Result of one task."""

    LEFT_OUT: ClassVar[tuple[str, ...]] = ("chance", "shots")

    value: Finite
    """Value of the metric."""
    stderr: NonNegative | None = field(default=None, kw_only=True)
    """Standard error over the items, where there is one."""
    metric: str
    """Name of the metric."""
    count: Size
    """Items of the task."""
    version: int | Finite | str | None = None
    """Version of the task in lm-eval."""
    chance: Finite | None = None
    """Value that guessing gives: 1 / the choices, 0 where the answer is written; null where that is not known."""
    shots: Size | None = None
    """Examples in a prompt; null for none."""
    metrics: dict[str, Finite] = field(default_factory=dict)
    """Values of all metrics, and their standard errors."""
    hash: str = ""
    """Hash of the items and their prompts."""
    items: list[Finite] = field(default_factory=list)
    """Metric of every item in the order of the data, to resample from."""

    @check
    def _check(self) -> "TaskResult":
        if len(self.items) > self.count:
            raise ValueError(f"items must be at most {self.count}")
        return self

    @property
    def centred(self) -> float | None:
        """The value centred on chance: 0 for guessing, 1 for no mistake."""
        return None if self.chance is None else (self.value - self.chance) / (1 - self.chance)

    def identity(self) -> dict[str, str | int]:
        """What has to be equal before two results are held against each other."""
        named = {"metric": self.metric, "number of items": self.count, "version": str(self.version)}
        return named | {"data or prompts": self.hash}


@record
class Evaluation(TypedRecord):
    """Measured quality of a model, or of it without some layers."""

    LEFT_OUT: ClassVar[tuple[str, ...]] = ("units", "agreement", "draft")

    model: ModelRecord
    """Model that was measured."""
    perplexity: dict[str, Perplexity]
    """Perplexity by text: the file's stem, or `shipped`."""
    tasks: dict[str, TaskResult] = field(default_factory=dict)
    """Result by task."""
    agreement: Agreement | None = None
    """Agreement with another model in what both write."""
    draft: Draft | None = None
    """Use as the draft of another model."""
    removed: list[Count] = field(default_factory=list)
    """Layers that were left out virtually."""
    units: dict[str, Count] = field(default_factory=dict)
    """Units that were left out virtually, such as `5.mlp`, with the parameters of each; empty for whole layers. A layer
    of which nothing was left is in `removed` too."""
    protocol: str = ""
    """Protocol by which texts were cut."""
    seconds: NonNegative = 0.0
    """Seconds of measuring, loading left out."""
    dtype: str = ""
    """Type of numbers that was computed in."""
    provenance: Provenance = field(default_factory=Provenance.now)
    """Origin of the file."""
    kind: Literal["evaluation"] = "evaluation"
    """Kind of the file."""
    schema: Literal[2] = SCHEMA
    """Version of the form."""

    @check
    def _check(self) -> "Evaluation":
        if not set(self.removed) < set(range(self.model.layers)):
            raise ValueError(f"removed leaves out layers {self.removed} of {self.model.layers}")
        check_units(self.units, self.removed, self.model.layers)
        return self

    @property
    def removal(self) -> Removal:
        """What was left out."""
        return Removal.told(self.removed, self.units)

    @property
    def without(self) -> str:
        """What was left out, in words; empty for the model as it is."""
        return self.removal.words if self.removal else ""

    @property
    def parameters(self) -> int:
        """Parameters that were left."""
        return self.model.parameters - parameters_gone(self.units, self.removed, self.model.layer_parameters)

    def __repr__(self) -> str:
        measured = [f"{name} {item.value:.2f}" for name, item in self.perplexity.items()]
        measured += [f"{name} {item.value:.3f}" for name, item in self.tasks.items()]
        measured += [f"KL {self.agreement.divergence:.3f}"] if self.agreement else []
        measured += [f"x {self.draft.speedup:.2f} as draft"] if self.draft else []
        without = f" without {self.without}" if self.without else ""
        return f"<Evaluation of {self.model!r}{without}: {', '.join(measured)}>"

    def _repr_html_(self) -> str:
        rows = [(name, "perplexity", f"{item.value:.3f}") for name, item in self.perplexity.items()]
        rows += [(name, item.metric, f"{item.value:.4f}") for name, item in self.tasks.items()]
        cells = "".join(
            "<tr>" + "".join(f"<td>{html.escape(str(cell))}</td>" for cell in row) + "</tr>" for row in rows
        )
        return f"<table><tr><th>text or task</th><th>metric</th><th>value</th></tr>{cells}</table>"
