"""Pruning plan: which layers go and which stay (plan.json)."""

import math
from dataclasses import field
from typing import ClassVar, Literal

from ..runtime.provenance import Provenance
from .calibration import CalibrationRecord
from .compensation import HeldOutLoss
from .model import ModelRecord
from .record import SCHEMA, Count, Finite, NonNegative, SettingValues, TypedRecord, check, record
from .removal import Removal, Unit, check_units, listed, parameters_gone


@record
class Candidate(TypedRecord):
    """Depth and width that were tried together; losses are means in nats."""

    layers: list[int]
    """Layers that go."""
    narrowed: str
    """Groups that go from the layers that stay, in words; empty for none."""
    share: Finite
    """Share of the parameters that goes."""
    loss_dense: Finite
    """Loss of the dense model on the calibration samples."""
    loss: Finite
    """Loss without these on the same samples, not repaired."""
    repaired: HeldOutLoss | None
    """Losses on samples that the repair was not fitted on; null where it was not repaired."""
    expected_speedup: NonNegative
    """Times as fast that decoding one sequence should be, by the parameters that a token reads."""


@record
class Plan(TypedRecord):
    """Layers that go and layers that stay, in MODEL's own numbering."""

    LEFT_OUT: ClassVar[tuple[str, ...]] = ("units", "scored", "candidates", "refit")

    removed: list[int | str]
    """What goes: numbers of layers, and names of other units such as `5.mlp`."""
    kept: list[int]
    """Layers that stay, in order."""
    order: list[int]
    """Layers that go, in the order of removal."""
    params_before: Count
    """Parameters of the model as it is."""
    params_after: Count
    """Parameters that are left."""
    selection: str
    """Name of the selection, or `drop` where the layers were given."""
    criterion: str | None
    """Name of the criterion whose scores decided, or null."""
    settings: SettingValues
    """Settings of the criterion and of the selection."""
    keep_first: Count
    """Layers at the start that were protected."""
    keep_last: Count
    """Layers at the end that were protected."""
    iterative: bool
    """Scores made anew after every removal."""
    model: ModelRecord
    """Model that the plan is for."""
    calibration: CalibrationRecord | None
    """Tokens that the choice rests on, or null."""
    trace: list[Finite] = field(default_factory=list)
    """Values by which the layers were chosen, step by step."""
    scores: list[Finite] | None = None
    """Score of each layer, where scores decided."""
    budget: NonNegative | None = None
    """Seconds that a search had, or null."""
    assumed: str = ""
    """Assumptions that a target of memory, speed or quality rests on."""
    bytes_before: Count = 0
    """Bytes of the weights as they are stored."""
    bytes_after: Count = 0
    """Bytes of the weights that are left, stored alike."""
    agreement: Count | None = None
    """Removed layers that both halves of the samples choose too, each by itself; null where they were not asked."""
    seconds: NonNegative = 0.0
    """Seconds of choosing, scoring left out."""
    units: dict[str, Count] = field(default_factory=dict)
    """Units that go, in the order of removal, such as `5.mlp`, with the parameters of each; empty where whole layers
    go. A layer of which nothing is left is one number in `removed`."""
    scored: list[str] = field(default_factory=list)
    """Units that `scores` are of, in order; empty where they are of layers."""
    candidates: list[Candidate] = field(default_factory=list)
    """Depths and widths that were held against each other, where both could go."""
    refit: str | None = None
    """Compensation that repaired what was left before it was scored anew; absent where none did."""
    provenance: Provenance = field(default_factory=Provenance.now)
    """Origin of the file."""
    kind: Literal["plan"] = "plan"
    """Kind of the file."""
    schema: Literal[2] = SCHEMA
    """Version of the form."""

    @check
    def _check(self) -> "Plan":
        model, layers = self.model, self._layers
        if sorted(layers + self.kept) != list(range(model.layers)):
            raise ValueError(f"removed and kept together must name each layer 0 to {model.layers - 1} exactly once")
        if not self.removed or not self.kept:
            raise ValueError("at least one layer must go and one must stay")
        check_units(self.units, layers, model.layers)
        if {*self.removed} != {*listed(self.removal)}:
            raise ValueError("removed and units must name the same parts of layers that stay")
        if self.kept != sorted(self.kept) or sorted(self.order) != sorted(layers):
            raise ValueError("kept must be in order, and order must name the removed layers")
        gone = parameters_gone(self.units, layers, model.layer_parameters)
        if self.params_before != model.parameters or self.params_after != self.params_before - gone:
            raise ValueError("params_before and params_after do not fit the model and the removed layers")
        if self.agreement is not None and self.agreement > self.size:
            raise ValueError("agreement must be a number of the removed layers")
        if self.scores is not None and len(self.scores) != (len(self.scored) or model.layers):
            raise ValueError(f"expected {len(self.scored) or model.layers} scores, found {len(self.scores)}")
        return self

    @property
    def removal(self) -> Removal:
        """What goes."""
        return Removal.told(self._layers, self.units)

    @property
    def _layers(self) -> list[int]:
        """The layers of which nothing is left."""
        return [one for one in self.removed if isinstance(one, int)]

    @property
    def share(self) -> float:
        """The true share of parameters that goes."""
        return 1 - self.params_after / self.params_before

    @property
    def expected_speedup(self) -> float:
        """How many times faster decoding one sequence should be, by the parameters that a token reads."""
        read = self.params_before - self.model.lookup_parameters
        left = read - (self.params_before - self.params_after)
        return read / left if left > 0 else math.inf

    def original(self) -> list[int]:
        """The kept layers in the numbering of the first, dense ancestor."""
        return [self.model.original[index] for index in self.kept]

    def __repr__(self) -> str:
        by = f" by {self.criterion}" if self.criterion else ""
        how = f"({self.selection}{by}), {-self.share:.1%} parameters"
        return f"<Plan: without {self.removal.words} of {self.model.layers} {how}>"

    @property
    def size(self) -> int:
        """How many units or layers go."""
        return sum(max(1, len(Unit.parse(name).groups)) for name in self.units) or len(self.removed)

    @property
    def how_many(self) -> str:
        """How many go, in words."""
        if self.removal.narrows:
            layers = len(self.removal.layers)
            beside = f"{layers} of {self.model.layers} layers and " if layers else ""
            groups = self.size - layers
            return f"{beside}{groups:,} group{'s' * (groups > 1)} of attentions and MLPs"
        return (
            f"{self.size} unit{'s' * (self.size > 1)}" if self.units else f"{self.size} of {self.model.layers} layers"
        )
