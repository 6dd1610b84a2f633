"""Inputs of last products: what enters the last product of every attention and MLP, layer by layer for all samples."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

import torch
from jaxtyping import Int
from torch import Tensor, nn

from ..anatomy.kernels import fast_products, packed_weights
from ..anatomy.model import Model
from ..anatomy.units.group import Groups
from ..artifacts.removal import NOTHING, Removal, Unit
from ..artifacts.units import Units
from ..errors import Refusal
from ..runtime.progress import meter
from ..storage.journal import NO_JOURNAL, Journal
from .batching import batches_by_half, rounds
from .evidence import Inputs
from .expert_inputs import entering_experts, expert_matrix
from .replay import Recording, replay_of
from .sums import Halves, Sums
from .unit_totals import by_unit, marked


@torch.no_grad()
def input_sums(
    model: Model,
    tokens: Int[Tensor, "sample position"],
    measure: Callable[[Inputs], dict],
    score: Callable[[Sums, Tensor, str, Groups], dict],
    *,
    units: Units,
    removal: Removal = NOTHING,
    journal: Journal = NO_JOURNAL,
) -> dict[int, Halves]:
    """Number of a part's first group -> numbers of all its groups: what enters its last product measured batch by
    batch, the totals scored as soon as the layer has been passed.

    Args:
        measure: ``Inputs`` -> named totals, one number per feature each.
        score: (those totals, the product's matrix as (stream feature, feature), the part, its groups) -> numbers per
            group.
    Raises:
        Refusal: the model cannot be walked layer by layer, or experts are multiplied in a way that is not known.
    """
    replay = replay_of(model)
    if replay is None:
        raise Refusal(
            f"{model.checkpoint.source}: its layers hand more than the stream to each other, so what enters their "
            "products cannot be seen: choose magnitude"
        )
    firsts = {whole: numbers[0] for whole, numbers in units.by_part.items() if not removal.gone(whole.layer)}
    experts = not all(model.grouped[whole.layer].groups[whole.part].product for whole in firsts)
    pieces = rounds(model, tokens, 2)
    stays = removal.stays(len(model.stack))
    with journal.part("inputs", len(stays)) as part, fast_products(model.module):
        state = part.resume()
        totals = {int(index): [Sums.of(numbers) for numbers in several] for index, several in state.notes.items()}
        parts, first = _all_batches(model, pieces, 1 if experts else None)
        recordings = [replay.record(batch) for batch in parts]
        streams = [recording.entering for recording in recordings]
        if totals:
            streams = [state.tensors[f"stream/{i}"].to(model.device) for i in range(len(parts))]
        with meter("inputs", len(stays), len(totals)) as done:
            for index in stays[len(totals) :]:
                groups = {name: one for name, one in model.grouped[index].groups.items() if Unit(index, name) in firsts}
                with model.lessened(index, removal):
                    halves = _through_layer(model, index, groups, measure, (recordings, streams, first))
                layer = model.layer(index)
                numbers = {
                    firsts[Unit(index, name)]: [
                        Sums.of(score(sums, _matrix(layer, groups[name]), name, groups[name]))
                        for sums in _with_whole(several)
                    ]
                    for name, several in halves.items()
                }
                totals[index] = marked(numbers)
                done.add(1, f"layer {index + 1} of {len(model.stack)}")
                notes = {
                    str(one): [{name: value.tolist() for name, value in each.items()} for each in several]
                    for one, several in totals.items()
                }
                part.keep(len(totals), {f"stream/{i}": stream for i, stream in enumerate(streams)}, notes)
    return by_unit(totals)


def _through_layer(
    model: Model,
    index: int,
    groups: dict[str, Groups],
    measure: Callable[[Inputs], dict],
    batched: tuple[list[Recording], list[Tensor], int],
) -> dict[str, list[Sums]]:
    """Take all streams through a layer; part -> totals over the first half of the samples and, where halves are kept
    apart, over the second.
    """
    recordings, streams, first = batched
    replay, layer = replay_of(model), model.layer(index)
    sums: dict[str, list[Sums]] = {name: [Sums(), Sums()] for name in groups}
    plain = {name: one for name, one in groups.items() if one.product}
    experts = {name: one for name, one in groups.items() if not one.product}
    with packed_weights(layer, len(recordings)):
        for i, recording in enumerate(recordings):
            rows, places = (streams[i].shape[axis] for axis in replay.axes)
            with entering(layer, plain) as seen, entering_experts(layer, experts) as sent:
                streams[i] = replay.step(recording, index, streams[i])
            for name, given in seen.items():
                features = given.reshape(rows, places, -1) if replay.axes == (0, 1) else _first(given, rows)
                sums[name][i >= first] += Sums.of(measure(Inputs(index, name, features)))
            for name, given in sent.items():
                measured = [measure(Inputs(index, name, features)) for features in given.chunks(places)]
                sums[name][i >= first] += Sums.of(_side_by_side(measured))
    return {name: [half.all_sum() for half in halves if half] for name, halves in sums.items()}


def _matrix(layer: nn.Module, groups: Groups) -> Tensor:
    return groups.matrix(layer) if groups.product else expert_matrix(layer, groups)


def _with_whole(halves: list[Sums]) -> list[Sums]:
    """The totals over all samples and, where there are two halves, over each."""
    return [Halves.of(halves).total, *halves] if len(halves) > 1 else halves


@contextmanager
def entering(layer: nn.Module, groups: dict[str, Groups]) -> Iterator[dict[str, Tensor]]:
    """What enters the last product of each part during one call of the layer."""
    seen: dict[str, Tensor] = {}
    with ExitStack() as hooks:
        for name, one in groups.items():
            module = layer.get_submodule(one.module)
            hook = module.register_forward_hook(lambda _, args, __, name=name: seen.update({name: args[0]}))
            hooks.callback(hook.remove)
        yield seen


def _side_by_side(measured: list[dict]) -> dict:
    """Totals over the same tokens of features that lie side by side."""
    vectors = {name for name, value in measured[0].items() if isinstance(value, Tensor) and value.dim()}
    return measured[0] | {name: torch.cat([one[name] for one in measured]) for name in vectors}


def _all_batches(model: Model, pieces: list[Tensor], limit: int | None) -> tuple[list[Tensor], int]:
    """The batches of all rounds; halves are kept apart where one round holds everything.

    Args:
        limit: tokens of a batch, which has one sample at least; None for as many as run well.
    """
    if len(pieces) == 1:
        return batches_by_half(model, pieces[0], limit)
    every = [batch for piece in pieces for batch in batches_by_half(model, piece, limit)[0]]
    return every, len(every)


def _first(given: Tensor, rows: int) -> Tensor:
    """(sample, position, feature) of what lies with the positions in front."""
    return given.reshape(-1, rows, given.shape[-1]).transpose(0, 1)
