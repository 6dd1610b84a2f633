"""Pruned model record (shallower.json): its plan and what was proven."""

from dataclasses import field
from typing import ClassVar, Literal

from ..runtime.provenance import Provenance
from .compensation import RepairReport
from .healing import HealingReport
from .plan import Plan
from .quantised import QuantisationReport
from .record import SCHEMA, Count, NonNegative, Size, TypedRecord, check, either, record


@record
class Proof(TypedRecord):
    """Proof of the written files: reloaded, they are the dense model without the removed layers."""

    logits: str
    """Equality of the logits in words: `bit for bit`, or within which tolerance."""
    logits_difference: NonNegative
    """Largest difference of a logit as a share of the largest."""
    cached_difference: NonNegative
    """Largest difference between cached and uncached decoding as a share of the largest logit."""
    cached_difference_unpruned: NonNegative
    """Largest difference between cached and uncached decoding of the dense model, the control."""
    cached_tolerance: NonNegative
    """Tolerance that both were held to."""
    missing_keys: Count
    """Weights that the files lack."""
    unexpected_keys: Count
    """Weights that the config does not know, none but those that the dense model ignores too."""
    dtype: str
    """Type of numbers that the logits were computed in."""
    tokens: tuple[Size, Size]
    """Rows and positions of the probe."""
    layered: bool
    """One layer in memory at a time."""
    changed_weights: Count
    """Weights that a repair changed."""


@record
class Unverified(TypedRecord):
    """Absence of a proof."""

    skipped: str
    """Reason why nothing was proven."""


Verified = either(Proof, "proof", Unverified, "skipped")


@record
class Pruned(TypedRecord):
    """Written model: the plan, and what was proven about the files."""

    LEFT_OUT: ClassVar[tuple[str, ...]] = (
        "format",
        "zeros",
        "cache_bytes_per_token_before",
        "cache_bytes_per_token",
        "quantised",
    )

    plan: Plan
    """Plan that was followed, as in `plan.json`."""
    verified: Verified
    """Proof of the files, of before they were trained further or quantised."""
    original: list[Count]
    """Layers that stay, in the numbering of the first, dense ancestor."""
    fingerprint: str
    """Fingerprint of the written model."""
    config_changes: list[str]
    """Changes of the config in words."""
    compensation: RepairReport | None = None
    """Repair of what is left, or null."""
    provenance: Provenance = field(default_factory=Provenance.now)
    """Origin of the file."""
    healing: list[HealingReport] = field(default_factory=list)
    """Trainings since, in order."""
    left_behind: list[str] = field(default_factory=list)
    """Side files of the dense model that were not carried over."""
    files: list[str] = field(default_factory=list)
    """Files of the written folder."""
    weight_bytes: Count = 0
    """Bytes of the written weights."""
    format: Literal["plain", "host", "custom", "deci"] | None = None
    """Form of the files: the family's own class, another plain class that holds it, code beside the weights, or DeciLM;
    null in older files."""
    zeros: Count | None = None
    """Parameters of zeros that the form asks for, beyond those that the plan counts; null for none."""
    cache_bytes_per_token_before: Count | None = None
    """Bytes that the cache of the dense model grows by per token; null where whole layers go, or it cannot be told."""
    cache_bytes_per_token: Count | None = None
    """Bytes that the cache of the written model grows by per token."""
    quantised: QuantisationReport | None = None
    """Quantisation since, after everything else."""
    kind: Literal["pruned"] = "pruned"
    """Kind of the file."""
    schema: Literal[2] = SCHEMA
    """Version of the form."""

    @check
    def _check(self) -> "Pruned":
        if self.original != self.plan.original():
            raise ValueError("original does not fit the plan")
        return self

    @property
    def proof(self) -> Proof | None:
        """What was proven; None where that was skipped."""
        return self.verified if isinstance(self.verified, Proof) else None

    def __repr__(self) -> str:
        said = f"proven: logits equal {self.proof.logits}" if self.proof else f"not verified: {self.verified.skipped}"
        return f"<Pruned: {self.plan!r}, {said}>"
