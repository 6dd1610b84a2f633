"""Group scoring: give criteria the evidence of groups of parts, and read their scores."""

from collections.abc import Callable, Iterator, Sequence

from torch import Tensor

from ..anatomy.units.group import Groups
from ..errors import UserError
from ..runtime.progress import track
from .evidence import LayerPlace
from .gradients import group_gradient_sums
from .group_totals import group_sums
from .inputs import input_sums
from .scoring import Asked, Gathered, Joint, Walked
from .sums import Halves, Sums

KINDS = ("place", "weights", "gradients", "inputs")


def group_scores(group: Sequence[Asked], walked: Walked) -> Iterator[Gathered]:
    """Scores of groups by criteria that look at one kind of evidence.

    Raises:
        UserError: it says nothing of groups.
    """
    kind = group[0].kind
    if kind not in KINDS:
        raise UserError(
            f"scores layers and parts of layers; with {walked.units.kind} go criteria of weights, gradients or inputs: "
            "magnitude, taylor, gradient (norm=l1 or l2), wanda, flap, activation, random",
            criterion=group[0].name,
        )
    if kind == "place":
        for one in group:
            stays = walked.stays
            yield Gathered({number: one.score(Sums.of(one.measure(LayerPlace(number)))) for number in stays})
        return
    totals = {"weights": _of_weights, "gradients": _of_gradients, "inputs": _of_inputs}[kind](group, walked)
    for place in range(len(group)):
        yield _spread(walked, totals, f"{place}/importance")


def _spread(walked: Walked, totals: dict[int, Halves], name: str) -> Gathered:
    """Scores by number of the group, from those of parts by the number of their first."""

    def scores(part: Callable[[Halves], Sums]) -> dict[int, float]:
        every = {first: part(halves)[name].tolist() for first, halves in totals.items()}
        return {first + place: value for first, values in every.items() for place, value in enumerate(values)}

    stays = {*walked.stays}
    halves = min((len(one.parts) for one in totals.values()), default=0)
    several = [
        scores(lambda one: one.total),
        *(scores(lambda one, half=half: one.parts[half]) for half in range(halves)),
    ]
    kept = [{number: value for number, value in one.items() if number in stays} for one in several]
    return Gathered(kept[0], halves=kept[1:])


def _places(group: Sequence[Asked]) -> Callable[[Sums, tuple[int, ...]], dict[str, Tensor]]:
    """The importance of a weight's places by every criterion, told apart by the criterion's number."""

    def places(sums: Sums, others: tuple[int, ...]) -> dict[str, Tensor]:
        found = {}
        for place, one in enumerate(group):
            own = Joint.part(sums, place)
            arguments = (own, others) if one.settings is None else (own, others, one.settings)
            found |= {f"{place}/{name}": value for name, value in one.criterion.places(*arguments).items()}
        return found

    return places


def _of_gradients(group: Sequence[Asked], walked: Walked) -> dict[int, Halves]:
    single = any(getattr(one.criterion, "single_samples", lambda _: False)(one.settings) for one in group)
    return group_gradient_sums(
        walked.model,
        walked.tokens,
        Joint(group).measure,
        _places(group),
        single=single,
        **walked.how,
    )


def _of_weights(group: Sequence[Asked], walked: Walked) -> dict[int, Halves]:
    model, places = walked.model, _places(group)
    totals: dict[int, Halves] = {}
    of_layers: dict[int, list[tuple[str, int]]] = {}
    for whole, numbers in walked.units.by_part.items():
        of_layers.setdefault(whole.layer, []).append((whole.part, numbers[0]))
    for index, parts in track(of_layers.items(), "weights", len(of_layers)):
        layer = model.layer(index)
        for part, first in parts:
            groups = model.grouped[index].groups[part]
            total = Sums()
            for name in groups.slices:
                weight = layer.get_parameter(name).detach()
                sums = Sums({f"{place}/weight": weight for place in range(len(group))})
                total += group_sums(sums, groups, name, places)
            totals[first] = Halves(total)
    return totals


def _of_inputs(group: Sequence[Asked], walked: Walked) -> dict[int, Halves]:
    def score(sums: Sums, matrix: Tensor, part: str, groups: Groups) -> dict[str, Tensor]:
        found = {}
        for place, one in enumerate(group):
            arguments = (Joint.part(sums, place), matrix, part)
            values = one.criterion.features(*arguments, *([] if one.settings is None else [one.settings]))
            found[f"{place}/importance"] = _pooled(values, groups, one.criterion.POOL)
        return found

    return input_sums(walked.model, walked.tokens, Joint(group).measure, score, **walked.how)


def _pooled(values: Tensor, groups: Groups, how: str) -> Tensor:
    """Scores by group from those by feature; of experts, which lie side by side, over all."""
    values = values.view(-1, groups.count, groups.size)
    return values.mean(dim=-1).mean(dim=0) if how == "mean" else values.sum(dim=-1).sum(dim=0)
