"""Scores of layers by one criterion (scores.json)."""

import html
from dataclasses import field
from typing import ClassVar, Literal

from ..runtime.provenance import Provenance
from .calibration import CalibrationRecord
from .model import ModelRecord
from .record import SCHEMA, Count, Finite, NonNegative, SettingValues, TypedRecord, check, record
from .removal import Unit, units_of
from .units import Units

HTML_ROWS = 1000  # a page holds no more


@record
class Scores(TypedRecord):
    """Scores of all layers by one criterion; the lowest is removed first."""

    LEFT_OUT: ClassVar[tuple[str, ...]] = ("units",)

    criterion: str
    """Name of the criterion."""
    settings: SettingValues
    """Settings of the criterion."""
    scores: list[Finite]
    """Score of each layer; lower goes first."""
    model: ModelRecord
    """Model that was scored."""
    calibration: CalibrationRecord | None
    """Tokens that the criterion looked at; null where it looks at none."""
    seconds: NonNegative
    """Seconds of scoring, loading left out."""
    peak_memory_bytes: Count
    """Peak of the memory in bytes."""
    dtype: str
    """Type of numbers that was computed in."""
    windows: list[list[Finite]] | None = None
    """Scores of runs of neighbours: `windows[n-1][s]` is that of the n layers from s on, where the criterion has it."""
    halves: list[list[Finite]] = field(default_factory=list)
    """Scores from either half of the samples alone, where they could be told apart."""
    halves_windows: list[list[list[Finite]]] = field(default_factory=list)
    """Scores of runs of neighbours from either half."""
    units: dict[str, Count] = field(default_factory=dict)
    """Units that the scores are of, in order, such as `5.mlp`, with the parameters of each; empty for whole layers."""
    provenance: Provenance = field(default_factory=Provenance.now)
    """Origin of the file."""
    kind: Literal["scores"] = "scores"
    """Kind of the file."""
    schema: Literal[2] = SCHEMA
    """Version of the form."""

    @check
    def _check(self) -> "Scores":
        layers = sum(max(1, len(unit.groups)) for unit in units_of(self.units, self.model.layers)) or self.model.layers
        if self.units and (self.windows or self.halves_windows):
            raise ValueError("windows are of whole layers")
        if len(self.scores) != layers:
            raise ValueError(f"expected {layers} finite scores, found {len(self.scores)}")
        if any(len(half) != layers for half in self.halves):
            raise ValueError(f"halves must hold {layers} scores each")
        for spans in (self.windows, *self.halves_windows):
            if spans and [len(row) for row in spans] != list(range(layers, 1, -1)):
                raise ValueError(f"windows must hold {layers - 1} lists, from {layers} entries down to 2")
        return self

    @property
    def word(self) -> str:
        """What the scores are of, one of them: ``layer`` or ``unit``."""
        return "group" if self.narrow else "unit" if self.units else "layer"

    @property
    def kind_of_units(self) -> str:
        """The kind of units that were scored, such as ``layer`` or ``width``."""
        return Units.named(self.units, self.model.layer_parameters).kind

    @property
    def narrow(self) -> bool:
        """Whether groups of parts were scored."""
        return any(":" in name for name in self.units)

    @property
    def names(self) -> list[str]:
        """What each score is of: the number of a layer, or the name of a unit."""
        if not self.units:
            return [str(index) for index in range(self.model.layers)]
        return [str(single) for name in self.units for single in Unit.parse(name).singles()]

    @property
    def ranks(self) -> list[int]:
        """By layer: 1 for the one that goes first."""
        ranks = [0] * len(self.scores)
        for rank, index in enumerate(sorted(range(len(self.scores)), key=self.scores.__getitem__), 1):
            ranks[index] = rank
        return ranks

    def __repr__(self) -> str:
        first = sorted(range(len(self.scores)), key=self.scores.__getitem__)[:6]
        names = self.names
        named = ", ".join(names[place] for place in first)
        return f"<Scores by {self.criterion} of {self.model!r}; first to go: {named}>"

    def _repr_html_(self) -> str:
        rows = [*zip(self.names, self.scores, self.ranks, strict=True)][:HTML_ROWS]
        cells = "".join(f"<tr><td>{index}</td><td>{value:.6g}</td><td>{rank}</td></tr>" for index, value, rank in rows)
        head = f"<tr><th>{self.word}</th><th>{html.escape(self.criterion)}</th><th>rank (1 goes first)</th></tr>"
        return f"<table>{head}{cells}</table>"
