"""Quantisation record: how a model was rounded to few bits, and what that costs (quantised.json)."""

from dataclasses import field
from typing import Literal

from ..runtime.provenance import Provenance
from .calibration import CalibrationRecord
from .model import ModelRecord
from .record import SCHEMA, NonNegative, Positive, Size, TypedRecord, check, record


@record
class QuantisationProof(TypedRecord):
    """Comparison of the written files, loaded with plain weights, with the unquantised model, on held-out samples."""

    by: str
    """What loaded the files, with its versions."""
    dtype: str
    """Type of numbers that both were computed in."""
    tokens: Size
    """Held-out tokens."""
    divergence: NonNegative
    """KL divergence from the unquantised model in nats per token."""
    perplexity_before: Positive
    """Perplexity of the unquantised model."""
    perplexity_after: Positive
    """Perplexity of the written files."""
    same_next: NonNegative
    """Share of the tokens behind which both have the same likeliest token."""

    @property
    def ratio(self) -> float:
        """How many times the perplexity is that of the unquantised model."""
        return self.perplexity_after / self.perplexity_before


@record
class QuantisationReport(TypedRecord):
    """Quantisation in short, as it stands in `shallower.json`."""

    method: str
    """Method."""
    bits: Size
    """Bits of a weight."""
    group_size: Size
    """Inputs that share a scale."""
    source: str
    """Names of the calibration texts."""
    hash: str
    """Hash of the calibration tokens."""
    divergence: NonNegative
    """KL divergence from the unquantised model in nats per token, on held-out samples."""
    ratio: Positive
    """Perplexity as a multiple of the unquantised model's, on the same."""
    weight_bytes_before: Size
    """Bytes of the unquantised weights."""


@record
class Quantised(TypedRecord):
    """Quantised model."""

    model: ModelRecord
    """Model that was quantised."""
    method: str
    """Method."""
    bits: Size
    """Bits of a weight, symmetric around zero."""
    group_size: Size
    """Inputs that share a scale."""
    group_size_chosen: bool
    """True where the group size was not given: the largest that divides all input widths."""
    projections: Size
    """Weights that were quantised: all linear projections of the layers."""
    left: list[str]
    """Linear projections outside the layers, which stay as they were, such as the head."""
    dtype: str
    """Type of numbers of all other weights, and of the scales."""
    calibration: CalibrationRecord
    """Tokens of the calibration text, those that were held out too."""
    fitted_tokens: Size
    """Tokens that the method saw; the others were held out."""
    weight_bytes_before: Size
    """Bytes of the weights before."""
    weight_bytes: Size
    """Bytes of the written weights."""
    proof: QuantisationProof
    """What the written files give."""
    environment: dict[str, str]
    """Versions in the environment that quantised."""
    fingerprint: str
    """Fingerprint of the written model."""
    seconds: NonNegative
    """Seconds of quantising, the environment's start and the writing included."""
    proof_seconds: NonNegative
    """Seconds of the comparison."""
    left_behind: list[str] = field(default_factory=list)
    """Side files that were not carried over."""
    files: list[str] = field(default_factory=list)
    """Files of the written folder."""
    provenance: Provenance = field(default_factory=Provenance.now)
    """Origin of the file."""
    kind: Literal["quantised"] = "quantised"
    """Kind of the file."""
    schema: Literal[2] = SCHEMA
    """Version of the form."""

    @check
    def _check(self) -> "Quantised":
        if not 0 < self.fitted_tokens < self.calibration.samples * self.calibration.length:
            raise ValueError("fitted_tokens do not fit the calibration")
        return self

    def report(self) -> QuantisationReport:
        """The same in short."""
        return QuantisationReport(
            method=self.method,
            bits=self.bits,
            group_size=self.group_size,
            source=self.calibration.source,
            hash=self.calibration.hash,
            divergence=self.proof.divergence,
            ratio=self.proof.ratio,
            weight_bytes_before=self.weight_bytes_before,
        )

    def __repr__(self) -> str:
        said = f"KL {self.proof.divergence:.3g} nats per token, perplexity x {self.proof.ratio:.3g}"
        return f"<Quantised {self.model!r} by {self.method} to {self.bits} bits: {said}>"
