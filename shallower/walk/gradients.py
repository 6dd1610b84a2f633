"""Gradients of weights, one layer at a time.

A walk back through the stack that re-runs each layer with grad.
"""

from collections.abc import Callable

import torch
from jaxtyping import Int
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from ..anatomy.kernels import fast_products
from ..anatomy.model import Model
from ..anatomy.units import Step
from ..artifacts.removal import NOTHING, Removal, Unit
from ..artifacts.units import Units
from ..errors import UserError
from ..runtime import distributed
from ..runtime.memory import total_memory
from ..runtime.progress import Meter, meter
from ..storage.journal import NO_JOURNAL, Journal
from .activations import check_whole_units
from .batching import GRADIENT_BATCHES, STREAM_SHARE, batches, batches_by_half, chunks, part_of, total_predictions
from .evidence import Flows, Gradients
from .group_totals import GroupTotals, Places
from .replay import Recording, Replay, replay_of
from .sums import Halves, Sums
from .unit_totals import Condense, UnitTotals, by_unit, marked, unmarked
from .whole_gradients import trainable, whole_flows, whole_gradients

STREAM = ""  # the name under which a layer's gradients hold the one of its input
Visit = Callable[
    [int, list[Recording], list[Tensor | None], list[Tensor]], list[Sums]
]  # changes the gradients to those of the input
ROOM = 32  # float32 sums of a second half of the samples are held where they take no more than this part of the memory


def gradient_sums(
    model: Model,
    tokens: Int[Tensor, "sample position"],
    measure: Callable[[Gradients], dict],
    condense: Condense,
    *,
    units: Units,
    removal: Removal = NOTHING,
    journal: Journal = NO_JOURNAL,
) -> dict[int, Halves]:
    """Number of a unit -> totals: every parameter measured batch by batch, its sum condensed to numbers, these added
    over the unit.

    Either half of the samples is condensed by itself too, where the memory has room for sums of both.

    Only the layers' inputs are kept from the way up; one layer's gradients exist at a time. Models that cannot be
    replayed get one plain backward through everything instead.
    """
    owners = _owners(model, units, removal)
    return _collected(
        model, tokens, lambda index, first: UnitTotals(owners[index], measure, condense, first), removal, journal
    )


def group_gradient_sums(
    model: Model,
    tokens: Int[Tensor, "sample position"],
    measure: Callable[[Gradients], dict],
    places: Places,
    *,
    single: bool = False,
    units: Units,
    removal: Removal = NOTHING,
    journal: Journal = NO_JOURNAL,
) -> dict[int, Halves]:
    """Number of a part's first group -> numbers of all its groups, added over the weights that go with each.

    Args:
        single: every sample is a batch of its own.
    """
    firsts: dict[int, dict[str, int]] = {}
    for whole, numbers in units.by_part.items():
        firsts.setdefault(whole.layer, {})[whole.part] = numbers[0]

    def totals(index: int, first: int) -> UnitTotals:
        return GroupTotals(firsts.get(index, {}), model.grouped[index].groups, measure, places, first)

    return _collected(model, tokens, totals, removal, journal, single=single)


def _collected(
    model: Model,
    tokens: Int[Tensor, "sample position"],
    collect: Callable[[int, int], UnitTotals],
    removal: Removal,
    journal: Journal,
    *,
    single: bool = False,
) -> dict[int, Halves]:
    """The totals by unit of all layers, each collected on the way back through it."""
    replay = replay_of(model)
    parts, first = _parts(model, tokens, weights=True, single=single)
    if replay is None:
        return whole_gradients(model, tokens, (parts, first), collect, removal)

    def visit(index: int, recordings: list[Recording], entering: list, flowing: list[Tensor]) -> list[Sums]:
        layer = model.layer(index)
        totals = collect(index, first)
        with model.lessened(index, removal):
            for i, recording in enumerate(recordings):
                gradients = _layer_back(replay, layer, recording, index, (entering[i].to(model.device), flowing[i]))
                flowing[i] = gradients.pop(
                    STREAM
                ).contiguous()  # as it comes back from a journal, so that the same kernels run
                entering[i] = None
                totals.add(layer, gradients, i, last=i == len(recordings) - 1)
        return totals.of_layer()

    return by_unit(_reverse(model, tokens, parts, visit, removal, journal))


def flow_sums(
    model: Model,
    tokens: Int[Tensor, "sample position"],
    measure: Callable[[Flows], dict],
    *,
    units: Units,
    removal: Removal = NOTHING,
    journal: Journal = NO_JOURNAL,
) -> dict[int, Halves]:
    """Number of a unit -> totals of a measurement of the stream around it and the loss's gradient behind it.

    No weight gets a gradient.
    """
    replay = replay_of(model)
    stack = model.stack
    if replay is None:
        check_whole_units(model, units)
        return whole_flows(model, tokens, _parts(model, tokens), measure, removal)
    parts, first = _parts(model, tokens)
    steps = model.steps_for(units, removal)
    by_layer: dict[int, list[tuple[Step, str]]] = {}
    for step, state in steps.running(removal):
        by_layer.setdefault(step.layer, []).append((step, state))

    def visit(index: int, recordings: list[Recording], entering: list, flowing: list[Tensor]) -> list[Sums]:
        model.layer(index)  # has its weights in memory from here on
        totals: dict[int, list[Sums]] = {}

        def see(half: bool, unit: Unit, *streams: Tensor) -> None:
            number = units.numbers.get(unit)
            if number is not None:
                streams = (stack.tokens_first(stream.detach()) for stream in streams)
                totals.setdefault(number, [Sums(), Sums()])[half] += Sums.of(measure(Flows(number, *streams)))

        for i, recording in enumerate(recordings):
            streams = [entering[i].to(model.device).detach().requires_grad_()]
            for step, state in by_layer[index]:
                with torch.enable_grad(), steps.silenced(stack, step, state):
                    streams.append(replay.step(recording, index, streams[-1]))
            for (step, state), before, after in zip(
                reversed(by_layer[index]), streams[-2::-1], streams[:0:-1], strict=True
            ):
                gradient = flowing[i]
                flowing[i] = torch.autograd.grad(after, before, gradient)[0].contiguous()
                for unit, behind in replay.behind_units(steps, step, state, recording, before, after):
                    see(i >= first, unit, before, behind, gradient)
            entering[i] = None
        return marked({number: [half.all_sum() for half in halves if half] for number, halves in totals.items()})

    return {
        number: Halves.of(halves)
        for number, halves in unmarked(_reverse(model, tokens, parts, visit, removal, journal)).items()
    }


def _owners(model: Model, units: Units, removal: Removal) -> dict[int, dict[str, int]]:
    """Layer -> name of a parameter within it -> number of the unit that it goes with."""
    owners: dict[int, dict[str, int]] = {index: {} for index in range(len(model.stack))}
    for number in units.stays(removal):
        unit = units.listing[number].unit
        names = dict(model.stack.layers[unit.layer].named_parameters())
        own = names if not unit.part else model.parts[unit.layer].parts[unit.part].parameters
        owners[unit.layer] |= dict.fromkeys(own, number)
    return owners


def _reverse(
    model: Model,
    tokens: Int[Tensor, "sample position"],
    parts: list[Tensor],
    visit: Visit,
    removal: Removal,
    journal: Journal,
) -> dict[int, list[Sums]]:
    """Up through the layers that stay, then back from the loss to the first, visiting each."""
    replay = replay_of(model)
    scale = 1 / total_predictions(tokens)
    stays = removal.stays(len(model.stack))
    with journal.part("gradients", len(stays)) as part, fast_products(model.module):
        state = part.resume()
        totals = {int(index): [Sums.of(numbers) for numbers in several] for index, several in state.notes.items()}
        back = list(reversed(stays))[len(totals) :]
        recordings = [replay.record(batch) for batch in parts]
        with meter(
            "gradients", 4 * len(stays), 4 * len(totals)
        ) as done:  # a layer costs a forward and about three on the way back
            if totals:
                inputs = _way_up(model, recordings, stays[: max(0, len(back) - 1)], removal, done)
                flowing = [state.tensors[f"flowing/{i}"].to(model.device) for i in range(len(parts))]
            else:
                inputs = _way_up(model, recordings, stays, removal, done)
                tops = [top.to(model.device) for top in inputs.pop()]
                flowing = [
                    _top(replay, model.vocabulary, top, batch, scale) for top, batch in zip(tops, parts, strict=True)
                ]
                del tops
            model.release()
            for index in back:
                totals[index] = visit(index, recordings, inputs.pop(), flowing)
                done.add(3, f"layer {index}")
                part.keep(
                    len(totals), {f"flowing/{i}": gradient for i, gradient in enumerate(flowing)}, _numbers(totals)
                )
    return dict(sorted(totals.items()))


def _parts(
    model: Model, tokens: Int[Tensor, "sample position"], *, weights: bool = False, single: bool = False
) -> tuple[list[Tensor], int]:
    """The batches of this process, and how many of them are of the first half of its samples.

    All where halves are not kept apart.

    Args:
        weights: sums as large as weights are held, of one layer and half.
        single: every sample is a batch of its own.
    """
    share = distributed.share(tokens)
    limit = tokens.shape[1] if single else GRADIENT_BATCHES * model.batch_tokens
    plain = batches(model, share, limit)
    largest = max(model.record.layer_parameters)
    apart = not weights or len(plain) > 1 or 8 * largest <= total_memory(model.device) // ROOM
    if not all(distributed.all_gather(apart and len(share) > 1)):
        return plain, len(plain)
    return batches_by_half(model, share, limit)


def _numbers(totals: dict[int, list[Sums]]) -> dict:
    return {
        str(index): [{name: value.tolist() for name, value in sums.items()} for sums in several]
        for index, several in totals.items()
    }


@torch.no_grad()
def _way_up(
    model: Model, recordings: list[Recording], through: list[int], removal: Removal, done: Meter
) -> list[list[Tensor]]:
    """The streams of all batches in front of each of these layers and, last, after them."""
    replay = replay_of(model)
    streams = [recording.entering for recording in recordings]
    store = _away if _large(streams, len(through)) else list
    inputs = [store(streams)]
    for index in through:
        with model.lessened(index, removal):
            streams = [
                replay.step(recording, index, stream) for recording, stream in zip(recordings, streams, strict=True)
            ]
        inputs.append(store(streams))
        done.add()
    return inputs


def _large(streams: list[Tensor], places: int) -> bool:
    """Whether the streams at so many places would take too much of a GPU's memory."""
    device = str(streams[0].device) if streams else "cpu"
    return (
        device.startswith("cuda")
        and sum(stream.nbytes for stream in streams) * places > total_memory(device) // STREAM_SHARE
    )


def _away(streams: list[Tensor]) -> list[Tensor]:
    """The streams in the machine's own memory."""
    return [stream.cpu() for stream in streams]


def _top(replay: Replay, vocabulary: int, stream: Tensor, tokens: Tensor, scale: float) -> Tensor:
    """Gradient of the scaled loss with respect to the last stream, the logits made in blocks."""
    gradient = torch.zeros_like(stream)
    for rows, places in chunks(vocabulary, tokens):
        part = part_of(replay.axes, stream, rows, places).detach().clone().requires_grad_()
        with torch.enable_grad():
            logits = replay.head(part).flatten(0, 1).float()
            targets = tokens[rows, places.start + 1 : places.stop + 1].flatten()
            loss = cross_entropy(logits, targets, reduction="sum") * scale
        if not torch.isfinite(loss):
            raise UserError("the loss is NaN or infinite: are the weights whole, and does the dtype suffice?")
        part_of(replay.axes, gradient, rows, places).copy_(torch.autograd.grad(loss, part)[0])
    return gradient


def _layer_back(
    replay: Replay, layer: nn.Module, recording: Recording, index: int, ends: tuple[Tensor, Tensor]
) -> dict[str, Tensor | None]:
    """Gradients of a layer's parameters by name and, as STREAM, of its input, from its input and the gradient of its
    output.
    """
    entering, flowing = ends
    weights = dict(layer.named_parameters())
    entering = entering.detach().requires_grad_()
    with trainable(weights.values()), torch.enable_grad():
        leaving = replay.step(recording, index, entering)
        gradients = torch.autograd.grad(leaving, [entering, *weights.values()], flowing, allow_unused=True)
    return dict(zip((STREAM, *weights), gradients, strict=True))
