"""Generation records, parts of an evaluation: agreement with another model in what is written, and use as its draft."""

from dataclasses import field
from typing import Literal

from .record import Count, NonNegative, Positive, Size, TypedRecord, check, record


@record
class AgreementItem(TypedRecord):
    """Agreement on one prompt."""

    tokens: Count
    """Tokens of the other model's answer."""
    divergence: NonNegative
    """KL divergence from the other model in nats, summed over these tokens."""
    agreed: Count
    """Tokens of them that the model would write too, given those before."""
    first: bool
    """True where both answers begin with the same token."""
    common: NonNegative
    """Share of the first 32 tokens of both answers up to the first that differs."""
    repeats: bool
    """True where the model's own answer ends in repetition."""
    dense_repeats: bool
    """True where the other model's answer does."""


@record
class Agreement(TypedRecord):
    """Agreement with another model in what both write to the same prompts, their likeliest tokens.

    The divergence and the agreed tokens are taken on the other model's answers, which both read.
    """

    against: str
    """Folder, Hub id or file of the other model."""
    fingerprint: str
    """Fingerprint of the other model."""
    count: Size
    """Prompts."""
    divergence: NonNegative
    """KL divergence of the model from the other one in nats, mean over the tokens of its answers."""
    next_token: NonNegative
    """Share of these tokens that the model would write too, given those before."""
    first_token: NonNegative
    """Share of the prompts whose answers begin with the same token."""
    first_32: NonNegative
    """Share of the first 32 tokens of both answers up to the first that differs, mean over prompts."""
    repetition: NonNegative
    """Share of the model's answers that end in repetition: one passage three times in a row or more, over 12 tokens or
    more."""
    dense_repetition: NonNegative
    """The same share of the other model's answers."""
    longest: Size
    """Tokens at which answers were cut."""
    template: str
    """Form of the prompts: `chat` (the tokenizer's own) or `alpaca`."""
    prompts: str
    """Hash of all tokens that were asked by."""
    items: list[AgreementItem]
    """Agreement by prompt, to resample from."""

    @check
    def _check(self) -> "Agreement":
        if len(self.items) != self.count:
            raise ValueError(f"items must hold {self.count}")
        return self

    @classmethod
    def of(cls, items: list[AgreementItem], **about: object) -> "Agreement":
        """The agreement that some prompts show."""
        tokens = max(1, sum(item.tokens for item in items))

        def mean(name: str) -> float:
            return sum(float(getattr(item, name)) for item in items) / len(items)

        return cls(
            count=len(items),
            divergence=sum(item.divergence for item in items) / tokens,
            next_token=sum(item.agreed for item in items) / tokens,
            first_token=mean("first"),
            first_32=mean("common"),
            repetition=mean("repeats"),
            dense_repetition=mean("dense_repeats"),
            items=items,
            **about,
        )


@record
class Draft(TypedRecord):
    """Use as the draft model of another one in speculative decoding: the draft writes some tokens, the target reads
    them at once and keeps those that it would have written.
    """

    target: str
    """Folder, Hub id or file of the target model."""
    fingerprint: str
    """Fingerprint of the target model."""
    draft_tokens: Size
    """Tokens that the draft writes at a time."""
    prompts: Size
    """Prompts that were answered."""
    tokens: Size
    """Tokens of the answers."""
    passes: Size
    """Forward passes of the target for them."""
    acceptance_length: Positive
    """Tokens per forward pass of the target; 1 without a draft."""
    tokens_per_second: Positive
    """Tokens per second with the draft."""
    plain_tokens_per_second: Positive
    """Tokens per second of the target alone."""
    speedup: Positive
    """Seconds of the target alone divided by those with the draft, median over prompts."""
    identical: Count
    """Answers that are those of the target alone, token by token."""
    tied: Count
    """The others: they part where the target's two likeliest tokens are equal up to rounding."""
    device: str
    """Device that was measured on."""
    threads: Size
    """Threads of the CPU."""
    verified: Literal[True] = field(default=True)
    """True: every answer was held against the target's own."""

    @check
    def _check(self) -> "Draft":
        if self.identical + self.tied != self.prompts:
            raise ValueError("identical and tied must add up to the prompts")
        return self
