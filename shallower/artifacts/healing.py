"""Healing record: how a model was trained further (healing.json)."""

from dataclasses import field
from typing import ClassVar, Literal

from ..runtime.provenance import Provenance
from .model import ModelRecord
from .record import SCHEMA, Count, Finite, NonNegative, Positive, SettingValues, Size, TypedRecord, check, record


@record
class Recipe(TypedRecord):
    """Recipe of a training: how a method is trained unless it is said otherwise."""

    lr: Positive
    """Peak learning rate."""
    betas: tuple[Finite, Finite]
    """Betas of AdamW or Lion."""
    weight_decay: NonNegative
    """Decay of matrices; biases and norms have none."""
    warmup: Count
    """Steps of linear warm-up."""
    schedule: str
    """Shape of the learning rate after the warm-up: `cosine` or `linear`."""
    floor: NonNegative
    """Share of the peak at which it ends."""
    batch_tokens: Size
    """Tokens of the method's own global batch."""
    clip: Positive = 1.0
    """Largest norm of the gradient."""
    optimizer: str = "adamw"
    """Optimiser: `adamw`, `adamw8bit` or `lion`."""


@record
class OwnAnswers(TypedRecord):
    """Answers of the unpruned model, on which the pruned one was trained."""

    teacher: str
    """Unpruned model that answered."""
    fingerprint: str
    """Fingerprint of that model."""
    prompts: Size
    """Prompts that were asked."""
    long: Count
    """Prompts that leave no room for an answer in a sequence, which are left out."""
    answers: Size
    """Answers that were trained on."""
    empty: Count
    """Empty answers, which are left out."""
    cut: Count
    """Answers that were cut at the longest, which then have no end token."""
    tokens: Size
    """Tokens of the answers."""
    longest: Size
    """Longest answer that was allowed, in tokens."""
    temperature: NonNegative
    """Temperature of sampling; 0: the likeliest token each time."""
    seed: int | None
    """Seed of sampling; null without."""
    template: Literal["chat", "alpaca"]
    """Template of the prompts: the tokenizer's chat template, or Alpaca's."""
    hash: str
    """Hash of model, prompts and settings, which is in the name of the file of answers."""


@record
class TrainingData(TypedRecord):
    """Data that was trained on; of a data set that is read on the way, counts are null."""

    LEFT_OUT: ClassVar[tuple[str, ...]] = ("streamed", "answers")

    source: str
    """Names of the files or of the data set."""
    kind: Literal["text", "instructions", "mixed"]
    """Kind of data; `mixed`: text and instructions."""
    streamed: bool | None = field(default=None, kw_only=True)
    """True for a data set that is read on the way."""
    documents: Count | None
    """Documents or examples."""
    dropped: Count
    """Examples without an answer within the cut-off, which are left out."""
    sequences: Size | None
    """Sequences that they were cut into."""
    length: Size
    """Tokens per sequence."""
    tokens: Count | None
    """Tokens in all."""
    loss_tokens: Count | None
    """Tokens that bear a loss."""
    apart: bool
    """Documents of one sequence are kept apart."""
    seed: int
    """Seed of the order."""
    hash: str
    """Hash of every token id; of a data set read on the way, of its name, how it is cut and its first document."""
    answers: OwnAnswers | None = None
    """Answers of the unpruned model, where there are some among the data."""


@record
class TextLoss(TypedRecord):
    """Loss on a text that is not trained on."""

    nll: Finite
    """Mean NLL in nats."""
    value: Positive
    """Perplexity."""
    tokens: Count
    """Predicted tokens."""


@record
class TrainingRow(TypedRecord):
    """Figures of one step, as in `metrics.jsonl`; step 0 is before training and has no loss."""

    LEFT_OUT: ClassVar[tuple[str, ...]] = (
        "loss",
        "lr",
        "grad_norm",
        "tokens_per_second",
        "seconds",
        "all_tokens_per_second",
        "terms",
        "eval",
        "eval_unrounded",
    )

    step: Count
    """Number of the step."""
    tokens: Count
    """Tokens trained on so far, repetitions counted."""
    loss: Finite | None = None
    """Mean NLL in nats over the tokens of the batch that bear a loss."""
    lr: NonNegative | None = None
    """Learning rate."""
    grad_norm: NonNegative | None = None
    """Norm of the gradient before it is clipped."""
    tokens_per_second: NonNegative | None = None
    """Tokens per second that bore a loss."""
    seconds: NonNegative | None = None
    """Seconds of training so far."""
    all_tokens_per_second: NonNegative | None = None
    """Tokens per second, those without a loss too."""
    terms: dict[str, Finite] | None = None
    """Means of the terms of a distillation."""
    eval: dict[str, TextLoss] | None = None
    """Loss by text, now and then; in the last row that of the written files."""
    eval_unrounded: dict[str, TextLoss] | None = None
    """Loss by text before the weights were rounded to what the files store."""


@record
class ReloadedModel(TypedRecord):
    """Comparison of the reloaded files with the trained model."""

    logits: str
    """Equality of the logits in words: `bit for bit`, or within which tolerance."""
    difference: NonNegative
    """Largest difference of a logit as a share of the largest."""
    weights: str
    """Equality of the weights in words."""
    dtypes: list[str]
    """Types of numbers that the files store."""


@record
class LossChange(TypedRecord):
    """Training loss, means over the first and the last tenth of the steps, in nats."""

    first: Finite
    """Loss at the start."""
    last: Finite
    """Loss at the end."""


@record
class HealingReport(TypedRecord):
    """Brief report of a healing inside `shallower.json`; the last one's rest is in `healing.json`."""

    LEFT_OUT: ClassVar[tuple[str, ...]] = ("own_answers",)

    method: str
    """Name of the method."""
    settings: SettingValues
    """Settings of the method."""
    source: str
    """Names of the files or of the data set."""
    hash: str
    """Hash of the data."""
    train_tokens: Size
    """Tokens trained on, repetitions counted."""
    steps: Size
    """Steps."""
    loss: LossChange
    """Training loss."""
    reloaded: str
    """Equality of the logits of the reloaded files in words."""
    own_answers: Size | None = None
    """Answers of the unpruned model among the data."""


@record
class Healing(TypedRecord):
    """Training of a model on text, after which it is a plain checkpoint again."""

    method: str
    """Name of the method."""
    settings: SettingValues
    """Settings of the method."""
    recipe: Recipe
    """Recipe that was trained by, fitted to the budget."""
    model: ModelRecord
    """Model that was given."""
    fingerprint: str
    """Fingerprint of the written model."""
    data: TrainingData
    """Data that was trained on."""
    train_tokens: Size
    """Tokens trained on, repetitions counted."""
    steps: Size
    """Steps."""
    batch_tokens: Size
    """Tokens of the global batch."""
    micro_batch: Size
    """Sequences run through the model at once."""
    processes: Size
    """Processes."""
    trained_parameters: Count
    """Parameters that were trained."""
    rows: list[TrainingRow]
    """Figures by step, the first before training."""
    reloaded: ReloadedModel
    """Comparison of the reloaded files with the trained model."""
    seconds: NonNegative
    """Seconds of training, those before an interruption counted."""
    peak_memory_bytes: Count
    """Peak of the memory in bytes."""
    dtype: str
    """Type of numbers of the products."""
    teacher: str | None = None
    """Dense model that taught, of a distillation."""
    control: list[TrainingRow] | None = None
    """Figures of the dense model, trained the same, where it was measured; null where there was none."""
    files: list[str] = field(default_factory=list)
    """Files of the written folder."""
    provenance: Provenance = field(default_factory=Provenance.now)
    """Origin of the file."""
    kind: Literal["healing"] = "healing"
    """Kind of the file."""
    schema: Literal[2] = SCHEMA
    """Version of the form."""

    @check
    def _check(self) -> "Healing":
        for rows in (self.rows, self.control or []):
            steps = [row.step for row in rows]
            if steps != sorted(set(steps)):
                raise ValueError("rows must have rising steps")
        if self.rows and all(row.loss is None for row in self.rows):
            raise ValueError("rows must hold a loss")
        return self

    def __repr__(self) -> str:
        return f"<Healing of {self.model!r} by {self.method}: {self.steps} steps, {self.train_tokens} tokens>"
