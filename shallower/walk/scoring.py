"""Layer scoring: give criteria the evidence they ask for, as many of them in one walk as look at the same, and read
their scores.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any, NamedTuple

from jaxtyping import Int
from torch import Tensor

from ..anatomy.model import Model
from ..artifacts.removal import NOTHING, Removal
from ..artifacts.units import WIDTH, Units
from ..errors import UserError, argument
from ..runtime.progress import track
from ..storage.journal import NO_JOURNAL, Journal
from .activations import StreamTap, stream_sums
from .evidence import LayerPlace, Losses, Weights
from .gradients import flow_sums, gradient_sums
from .removals import LossWalk
from .sums import Halves, Sums

DATA = ("streams", "gradients", "flows", "losses", "inputs")  # kinds of evidence that need calibration tokens
PLAIN = ("weights", "gradients", "flows", "inputs")  # kinds that weights which are packed numbers cannot give


@dataclass(frozen=True)
class Asked:
    """A criterion with its settings: its functions take the evidence alone, its kind of evidence is settled."""

    criterion: ModuleType
    settings: Any = None

    @property
    def name(self) -> str:
        return self.criterion.__name__.rpartition(".")[2]

    @property
    def kind(self) -> str:
        evidence = getattr(self.criterion, "evidence", None)
        return evidence(self.settings) if evidence else self.criterion.EVIDENCE

    def own(self, function: Callable) -> Callable:
        return function if self.settings is None else lambda evidence: function(evidence, self.settings)

    @property
    def measure(self) -> Callable:
        return self.own(self.criterion.measure)

    @property
    def condense(self) -> Callable:
        return self.own(self.criterion.condense)

    @property
    def score(self) -> Callable:
        return self.own(self.criterion.score)


@dataclass(frozen=True)
class Gathered:
    """Scores by number of the unit (those that were left out are absent) and, where the criterion has them, of all
    windows.

    ``halves`` and ``halves_windows`` are the same from either half of the samples; empty where they were not kept
    apart.
    """

    scores: dict[int, float]
    windows: list[list[float]] | None = None
    halves: list[dict[int, float]] = field(default_factory=list)
    halves_windows: list[list[list[float]]] = field(default_factory=list)


def gather(
    criteria: Sequence[Asked],
    model: Model,
    tokens: Int[Tensor, "sample position"] | None,
    *,
    units: Units | None = None,
    removal: Removal = NOTHING,
    journal: Journal = NO_JOURNAL,
    by_group: "Callable[[Sequence[Asked], Walked], Iterator[Gathered]] | None" = None,
) -> list[Gathered]:
    """Scores of the units that stay by each criterion, from one walk for all that look at the same kind of evidence.

    Args:
        units: what is scored; by default every layer.
        by_group: instead, what scores groups of parts.
    Raises:
        UserError: a score is not finite; names the unit.
    """
    units = units or model.units()
    for one in criteria:
        if one.kind in PLAIN:
            model.check_plain(one.name)
    collect = {
        "streams": _streams,
        "gradients": _gradients,
        "flows": _flows,
        "losses": _of_losses,
        "weights": _of_weights,
        "place": _of_places,
        "inputs": _refused,
    }
    results: dict[int, Gathered] = {}
    for kind in dict.fromkeys(one.kind for one in criteria):
        places = [place for place, one in enumerate(criteria) if one.kind == kind]
        group = [criteria[place] for place in places]
        how = by_group or collect[kind]
        results |= zip(places, how(group, Walked(model, tokens, units, removal, journal)), strict=True)
    for place, one in enumerate(criteria):
        for index, value in results[place].scores.items():
            if not math.isfinite(value):
                raise UserError(
                    f"the {one.name} score of {units.word} {units.name(index)} is {value}: are the weights whole, and "
                    "does the dtype suffice?"
                )
    return [results[place] for place in range(len(criteria))]


class Walked(NamedTuple):
    """What is scored: the units of a model that stay, on which tokens, and where what was found is kept."""

    model: Model
    tokens: Int[Tensor, "sample position"] | None
    units: Units
    removal: Removal
    journal: Journal

    @property
    def stays(self) -> list[int]:
        """Numbers of the units that are scored."""
        return self.units.stays(self.removal)

    @property
    def how(self) -> dict[str, Any]:
        """The options of a walk."""
        return {"units": self.units, "removal": self.removal, "journal": self.journal}


def _from_totals(one: Asked, totals: dict[int, Halves]) -> Gathered:
    """Scores from totals by layer."""
    scores = {index: one.score(totals[index].total) for index in sorted(totals)}
    parts = min((len(halves.parts) for halves in totals.values()), default=0)
    halves = [{index: one.score(totals[index].parts[half]) for index in sorted(totals)} for half in range(parts)]
    return Gathered(scores, halves=halves)


def _streams(group: Sequence[Asked], walked: Walked) -> Iterator[Gathered]:
    taps = [
        StreamTap(one.measure, _spans(one, walked), getattr(one.criterion, "POSITIONS", "all") == "last")
        for one in group
    ]
    sums = stream_sums(walked.model, walked.tokens, taps, **walked.how)
    for one, tap, totals in zip(group, taps, sums, strict=True):
        result = _from_totals(one, {start: halves for (start, end), halves in totals.items() if end == start + 1})
        if not tap.spans:
            yield result
            continue
        layers = len(walked.units)
        whole = {span: halves.total for span, halves in totals.items()}
        apart = [{span: halves.parts[half] for span, halves in totals.items()} for half in range(len(result.halves))]
        windows = [_windows(part, one.score, layers) for part in (whole, *apart)]
        yield Gathered(result.scores, windows[0], result.halves, windows[1:])


def _spans(one: Asked, walked: Walked) -> bool:
    return getattr(one.criterion, "SPANS", False) and not walked.removal and walked.units.whole


def _windows(totals: dict, score: Callable, layers: int) -> list[list[float]]:
    return [[score(totals[start, start + size]) for start in range(layers - size + 1)] for size in range(1, layers)]


class Joint:
    """The measurements of several criteria as one, their names told apart by the criterion's number."""

    def __init__(self, group: Sequence[Asked]):
        self.group = group

    def measure(self, evidence: Any) -> dict:
        return {
            f"{place}/{name}": value
            for place, one in enumerate(self.group)
            for name, value in one.measure(evidence).items()
        }

    def condense(self, sums: Sums) -> dict:
        parts = [(place, one.condense(self.part(sums, place))) for place, one in enumerate(self.group)]
        return {f"{place}/{name}": value for place, numbers in parts for name, value in numbers.items()}

    @staticmethod
    def part(sums: Sums, place: int) -> Sums:
        """What is of one of the criteria."""
        mark = f"{place}/"
        return Sums({name.removeprefix(mark): value for name, value in sums.items() if name.startswith(mark)})

    def scores_of(self, totals: dict[int, Halves]) -> Iterator[Gathered]:
        for place, one in enumerate(self.group):
            own = {
                index: Halves(self.part(halves.total, place), tuple(self.part(half, place) for half in halves.parts))
                for index, halves in totals.items()
            }
            yield _from_totals(one, own)


def _gradients(group: Sequence[Asked], walked: Walked) -> Iterator[Gathered]:
    joint = Joint(group)
    yield from joint.scores_of(gradient_sums(walked.model, walked.tokens, joint.measure, joint.condense, **walked.how))


def _flows(group: Sequence[Asked], walked: Walked) -> Iterator[Gathered]:
    joint = Joint(group)
    yield from joint.scores_of(flow_sums(walked.model, walked.tokens, joint.measure, **walked.how))


def _of_losses(group: Sequence[Asked], walked: Walked) -> Iterator[Gathered]:
    walk = LossWalk(walked.model, walked.tokens, walked.journal)
    both, count = walk.halves([walked.removal.plus(walked.units.listing[number].unit) for number in walked.stays])
    counts = (walk.predictions, count, walk.predictions - count)
    for one in group:
        totals = {}
        for number, (whole, first) in zip(walked.stays, both.tolist(), strict=True):
            nlls = (whole, first, whole - first)
            sums = [
                Sums.of(one.measure(Losses(number, nll, tokens)))
                for nll, tokens in zip(nlls, counts, strict=True)
                if tokens
            ]
            totals[number] = Halves(sums[0], tuple(sums[1:]) if len(sums) == 3 else ())
        yield _from_totals(one, totals)


def _of_weights(group: Sequence[Asked], walked: Walked) -> Iterator[Gathered]:
    joint = Joint(group)
    totals = {}
    for number in track(walked.stays, "weights", len(walked.stays)):
        unit = walked.units.listing[number].unit
        own = walked.model.parts[unit.layer].parts[unit.part].parameters if unit.part else None
        weights = {
            name: parameter.detach()
            for name, parameter in walked.model.layer(unit.layer).named_parameters()
            if own is None or name in own
        }
        totals[number] = Halves(Sums.of(joint.measure(Weights(number, weights))))
    yield from joint.scores_of(totals)


def _refused(group: Sequence[Asked], walked: Walked) -> Iterator[Gathered]:
    raise UserError(
        f"scores groups of parts: give {argument('units', WIDTH)}, or choose another criterion", criterion=group[0].name
    )


def _of_places(group: Sequence[Asked], walked: Walked) -> Iterator[Gathered]:
    joint = Joint(group)
    yield from joint.scores_of({number: Halves(Sums.of(joint.measure(LayerPlace(number)))) for number in walked.stays})
