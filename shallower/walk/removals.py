"""Removal losses, ``losses(removals)``: the loss of many removals in one walk.

Two removals that are equal so far share one stream.
"""

import hashlib
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ..anatomy.kernels import fast_products, packed_weights
from ..anatomy.model import Model
from ..anatomy.units import Steps, lessened
from ..artifacts.removal import GONE, NOTHING, WHOLE, Removal
from ..errors import UserError
from ..runtime import distributed
from ..runtime.progress import Meter, meter
from ..storage.journal import NO_JOURNAL, Journal
from .batching import batches, batches_by_half, chunks, rounds, total_predictions
from .logits import head_kl, head_logits, head_nll, log_probabilities, token_kl, token_nll
from .replay import Recording, Replay, replay_of

KL_VARIANTS = 16  # variants that are compared with the same block of the dense model's logits before it is made anew
BATCHES_TOGETHER = 16  # batches of a resident model that are walked at once where nothing but losses is asked for
LONG = 2000  # characters of a name in a journal
LossKind = Literal["loss", "kl"]
States = tuple[str, ...]  # the states of the layers of a variant, or of the first of them
COUNTS: States = ("",)  # the name under which totals hold how many predictions they are of
Both = tuple[float, float]  # a sum over all samples, and over those of the first half


@torch.no_grad()
def all_nll(
    model: Model,
    tokens: Int[Tensor, "sample position"],
    removal: Removal = NOTHING,
    label: str = "loss",
    journal: Journal = NO_JOURNAL,
) -> Float[Tensor, "sample predicted"]:
    """NLL in nats of every predicted token, float32 on the CPU, for the model without some units.

    Args:
        tokens: of all processes; each finds the values of its share, and gets all.
        journal: keeps what has been found, after as many samples as are walked at once.
    """
    replay = replay_of(model)
    stays = removal.stays(len(model.stack))
    pieces = [batches(model, piece) for piece in rounds(model, tokens, 1)]
    if not model.layered:  # there a further round costs nothing, and what has been found is kept in between
        pieces = [part[at : at + BATCHES_TOGETHER] for part in pieces for at in range(0, len(part), BATCHES_TOGETHER)]
    pieces += [[]] * (max(distributed.all_gather(len(pieces))) - len(pieces))  # all have as many states to keep
    each = 1 if replay is None else len(stays) + 1
    with journal.part(label, len(pieces), lasting=True) as part, fast_products(model.module):
        state = part.resume()
        losses = state.tensors.get("nll", torch.zeros(tokens.shape[0], tokens.shape[1] - 1))
        past = [len(batch) for piece in pieces[: state.step] for batch in piece]
        start = int(distributed.share(torch.arange(len(tokens)))[0]) + sum(past)
        with meter(label, sum(map(len, pieces)) * each, len(past) * each) as done:
            for step, piece in enumerate(pieces[state.step :], state.step + 1):
                nlls = (
                    _whole(model, piece, removal, done)
                    if replay is None
                    else _layer_by_layer(model, replay, piece, removal, done)
                )
                for nll in nlls:
                    losses[start : start + len(nll)] = nll.cpu()
                    start += len(nll)
                part.keep(step, {"nll": losses}, {}, now=step == len(pieces))
    return distributed.all_sum(losses)  # every other place is zero


def _layer_by_layer(
    model: Model, replay: Replay, part: list[Tensor], removal: Removal, done: Meter
) -> Iterator[Tensor]:
    recordings = [replay.record(batch) for batch in part]
    streams = [recording.entering for recording in recordings]
    parts = model.parts_for(removal)
    for index in removal.stays(len(model.stack)):
        layer = replay.stack.layers[index]
        with packed_weights(layer, len(part)), lessened(model.stack, index, removal, parts):
            for i, recording in enumerate(recordings):
                streams[i] = replay.step(recording, index, streams[i])
                done.add()
    blocks = [
        chunks(model.vocabulary, batch, stream.element_size()) for stream, batch in zip(streams, part, strict=True)
    ]
    with packed_weights(model.module.get_output_embeddings(), sum(map(len, blocks))):
        for stream, batch, places in zip(streams, part, blocks, strict=True):
            nll = torch.empty(batch.shape[0], batch.shape[1] - 1, device=batch.device)
            for block in places:
                nll[block] = head_nll(replay, stream, batch, block)
            done.add()
            yield nll


def _whole(
    model: Model, part: list[Tensor], removal: Removal, done: Meter, objective: LossKind = "loss"
) -> Iterator[Tensor]:
    def values(piece: Tensor) -> Tensor:
        if objective == "loss":
            return token_nll(_logits(model, piece, removal), piece[:, 1:])
        return token_kl(log_probabilities(_logits(model, piece)), _logits(model, piece, removal))

    for batch in part:
        rows = max(1, chunks(model.vocabulary, batch)[0][0].stop)
        yield torch.cat([values(piece) for piece in batch.split(rows)])
        done.add()


def _logits(model: Model, tokens: Tensor, removal: Removal = NOTHING) -> Tensor:
    with model.without(removal):
        return model.module(input_ids=tokens, use_cache=False).logits[:, :-1]


@dataclass
class _Round:
    """Samples that are walked together.

    Their tokens, the arguments of the layers, and one stream for each prefix of removals.
    """

    replay: Replay
    steps: Steps
    tokens: Tensor
    limit: int
    recordings: dict[tuple[int, int, int], Recording] = field(default_factory=dict)

    def recording(self, start: int, stop: int, copies: int) -> Recording:
        """The arguments for some of the samples, several times over."""
        key = (start, stop, copies)
        if key not in self.recordings:
            self.recordings[key] = self.replay.record(self.tokens[start:stop].repeat(copies, 1))
        return self.recordings[key]

    def run(self, place: int, state: str, streams: list[Tensor]) -> list[Tensor]:
        """One step in some state on every stream, in even batches.

        Small rounds run several streams at once, large ones are cut.
        """
        if not streams:
            return []
        step = self.steps.steps[place]
        with self.steps.silenced(self.replay.stack, step, state):
            return self._layer(step.layer, streams)

    def _layer(self, index: int, streams: list[Tensor]) -> list[Tensor]:
        axis = self.replay.axes[0]
        rows = len(self.tokens)
        count = len(streams)
        layer = self.replay.stack.layers[index]
        fits = max(1, self.limit // self.tokens.shape[1])
        if fits < 2 * rows:
            cuts = [(int(cut[0]), int(cut[-1]) + 1) for cut in torch.arange(rows).tensor_split(-(-rows // fits))]
            with packed_weights(layer, count * len(cuts)):
                return [self._run_cut(index, stream, axis, cuts) for stream in streams]
        after: list[Tensor] = []
        groups = torch.arange(count).tensor_split(-(-count // (fits // rows)))
        with packed_weights(layer, len(groups)):
            for places in groups:
                together = torch.cat([streams[place] for place in places], dim=axis)
                out = self.replay.step(self.recording(0, rows, len(places)), index, together)
                after += [
                    piece.clone() for piece in out.split(rows, dim=axis)
                ]  # a view would keep its neighbours alive
        return after

    def _run_cut(self, index: int, stream: Tensor, axis: int, cuts: list[tuple[int, int]]) -> Tensor:
        pieces = [self.replay.step(self.recording(a, b, 1), index, stream.narrow(axis, a, b - a)) for a, b in cuts]
        return pieces[0] if len(pieces) == 1 else torch.cat(pieces, dim=axis)

    def values(
        self, streams: dict[States, Tensor], keys: list[States], block: tuple[slice, slice], objective: LossKind
    ) -> list[Both]:
        """The objective summed over a block of predictions for each of some streams that have left the last layer.

        With each sum that of its samples which are of the first half of the round.
        """
        first = max(0, min(block[0].stop, -(-len(self.tokens) // 2)) - block[0].start)
        if objective == "loss":
            losses = (head_nll(self.replay, streams[key], self.tokens, block) for key in keys)
        else:
            dense = log_probabilities(head_logits(self.replay, streams[(WHOLE,) * len(keys[0])], block))
            losses = (head_kl(self.replay, streams[key], dense, block) for key in keys)
        wide = (values.double() for values in losses)
        return [(float(values.sum()), float(values[:first].sum())) for values in wide]


@dataclass(frozen=True)
class _Walk:
    """What one call asks for: its name, how many of the lowest values count (0: all), and the values of what."""

    label: str
    which: str
    bounded: int
    objective: LossKind


class LossWalk:
    """``losses(removals)`` over a fixed set of tokens.

    Args:
        model: the model.
        tokens: calibration tokens of all processes.
        journal: where finished calls and the streams of the current one are kept.
        steps: removals -> the steps of their walk; by default the model's own.
    """

    def __init__(
        self,
        model: Model,
        tokens: Int[Tensor, "sample position"],
        journal: Journal = NO_JOURNAL,
        steps: Callable[[Sequence[Removal]], Steps] | None = None,
    ):
        self.model = model
        self.steps_of = steps or (lambda removals: model.steps(*removals))
        self.tokens = tokens
        self.journal = journal
        self.predictions = total_predictions(tokens)

    def __call__(
        self,
        removals: Sequence[Removal],
        label: str = "loss of every removal",
        *,
        bounded: int = 0,
        objective: LossKind = "loss",
    ) -> Float[Tensor, "variant"]:
        """Summed NLL in nats of each variant, the model without the units of one removal.

        ``halves`` gives the sums over the first half of the samples beside.

        All leave-one-out variants of N layers cost N(N+1)/2 layer forwards and one reading of the weights.

        Args:
            bounded: only so many of the lowest values are wanted (True: one): a variant that exceeds them so far is
                dropped, its value is inf; 0 wants all.
            objective: ``loss`` is the NLL; ``kl`` the divergence from the dense model's predictions, summed over the
                same places, for which the dense stream is walked along.
        """
        return self.halves(removals, label, bounded=bounded, objective=objective)[0][:, 0]

    def halves(
        self,
        removals: Sequence[Removal],
        label: str = "loss of every removal",
        *,
        bounded: int = 0,
        objective: LossKind = "loss",
    ) -> tuple[Float[Tensor, "variant 2"], int]:
        """The same and, in a second column, the sums over the samples of the first half.

        And how many predictions those hold.
        """
        steps = self.steps_of(removals)
        keys = [steps.states(removal) for removal in removals]
        which = hashlib.sha256(repr((objective, int(bounded), [*map(_text, keys)])).encode()).hexdigest()[:16]
        walk = _Walk(label, which, bounded if distributed.size() == 1 else 0, objective)
        variants = dict(zip(keys, removals, strict=True))
        sums = self.journal.memo(f"losses {which}", lambda: self._walk(variants, steps, walk))
        both = torch.tensor([sums[_text(key)] for key in keys], dtype=torch.float64)
        both = both.nan_to_num(math.inf, math.inf) if bounded else both  # a broken one is beyond any bound
        total = both[:, 0]
        if total.isnan().any() or (total.isinf().any() and not bounded) or total.isinf().all():
            raise UserError("the loss is NaN or infinite: are the weights whole, and does the dtype suffice?")
        return both, int(sums[_text(COUNTS)][1])

    @torch.no_grad()
    def _walk(self, variants: dict[States, Removal], steps: Steps, walk: _Walk) -> dict[str, list[float]]:
        replay = replay_of(self.model)
        order = sorted(variants)
        with fast_products(self.model.module):
            if replay is None:
                totals = self._variants({key: variants[key] for key in order}, walk)
            else:
                totals = self._shared_streams(replay, steps, order, walk)
        total = distributed.all_sum(torch.tensor([totals[key] for key in (*order, COUNTS)], dtype=torch.float64))
        return dict(zip(map(_text, (*order, COUNTS)), total.tolist(), strict=True))  # of all samples, of the first half

    def _variants(self, variants: dict[States, Removal], walk: _Walk) -> dict[States, Both]:
        """Every variant by whole forwards; for divergences each time beside the dense one."""
        with self.journal.part(walk.label, len(variants), walk.which) as part:
            state = part.resume()
            totals: dict[States, Both] = _by_key(state.notes.get("found", {}), variants)
            with meter(walk.label, len(variants), len(totals)) as done:
                for key, removal in [*variants.items()][len(totals) :]:
                    parts, first = batches_by_half(self.model, distributed.share(self.tokens))
                    values = [
                        float(v.double().sum())
                        for v in _whole(self.model, parts, removal, Meter("", 0), walk.objective)
                    ]
                    totals[key] = sum(values), sum(values[:first])
                    part.keep(len(totals), {}, {"found": _by_text(totals)})
                    done.add()
        parts, first = batches_by_half(self.model, distributed.share(self.tokens))
        return totals | {COUNTS: (sum(map(total_predictions, parts)), sum(map(total_predictions, parts[:first])))}

    def _shared_streams(self, replay: Replay, steps: Steps, order: list[States], walk: _Walk) -> dict[States, Both]:
        depth = len(order[0])
        total = dict.fromkeys(order, (0.0, 0.0))
        keys = set(order) | ({(WHOLE,) * depth} if walk.objective == "kl" else set())
        pieces = rounds(self.model, self.tokens, len(keys) + 2)
        prefixes = [{key[:k] for key in keys} for k in range(depth + 1)]
        runs = [sum(key[-1] != GONE for key in level) for level in prefixes[1:]]  # of each layer
        forwards = sum(runs)
        head = max(
            1,
            round(
                self.model.vocabulary * self.model.stack.width * depth / max(1, sum(self.model.record.layer_parameters))
            ),
        )
        with self.journal.part(walk.label, len(pieces) * (depth + 1), walk.which) as part:
            state = part.resume()
            total |= _by_key(state.notes.get("total", {}), order)
            first, level = divmod(state.step, depth + 1)
            past = first * (forwards + head * len(order)) + sum(runs[:level])
            with meter(walk.label, len(pieces) * (forwards + head * len(order)), past) as done:
                for number in range(first, len(pieces)):
                    work = _Round(replay, steps, pieces[number].to(self.model.device), self.model.batch_tokens)
                    streams = {(): work.recording(0, len(work.tokens), 1).entering}
                    if number == first and level:
                        known = {_text(key): key for key in prefixes[level]}
                        streams = {known[text]: one.to(self.model.device) for text, one in state.tensors.items()}
                    state.tensors = {}
                    base = number * (depth + 1)
                    for k in range(level if number == first else 0, depth):
                        streams = _step(work, k, streams, prefixes[k + 1])
                        done.add(runs[k], f"layer {steps.steps[k].layer + 1}, {len(streams)} variants")
                        part.keep(base + k + 1, _by_text(streams), {"total": _by_text(total)})
                    bounded = walk.bounded if number == len(pieces) - 1 else 0
                    now = replace(walk, bounded=bounded)
                    with packed_weights(self.model.module.get_output_embeddings(), len(order)):
                        total = self._heads(work, streams, total, now, lambda new, note: done.add(head * new, note))
                    part.keep(base + depth + 1, {}, {"total": _by_text(total)})
        each = self.tokens.shape[1] - 1
        return total | {COUNTS: (each * sum(map(len, pieces)), each * sum(-(-len(piece) // 2) for piece in pieces))}

    def _heads(
        self, work: _Round, streams: dict, total: dict, walk: _Walk, advance: Callable[[int, str], None]
    ) -> dict[States, Both]:
        """The totals with this round's values added, the most promising variants first where only the lowest count."""
        size = (
            next(iter(streams.values())).element_size() if walk.objective == "loss" else 4
        )  # log-probabilities are float32
        blocks = chunks(self.model.vocabulary, work.tokens, size)

        def add_block(values: dict[States, Both], block: tuple[slice, slice]) -> dict[States, Both]:
            keys = list(values)
            more = work.values(streams, keys, block, walk.objective)
            return {
                key: (values[key][0] + whole, values[key][1] + first)
                for key, (whole, first) in zip(keys, more, strict=True)
            }

        first_totals = add_block(total, blocks[0])
        keys = sorted(first_totals, key=lambda key: first_totals[key][0]) if walk.bounded else list(first_totals)
        step = 1 if walk.objective == "loss" else KL_VARIANTS
        limit = math.inf
        results = {}
        for place in range(0, len(keys), step):
            group = {key: first_totals[key] for key in keys[place : place + step]}
            for block in blocks[1:]:
                alive = {key: both for key, both in group.items() if both[0] <= limit}  # exact: values only grow
                group |= add_block(alive, block) if alive else {}
            results |= {key: both if both[0] <= limit else (math.inf, math.inf) for key, both in group.items()}
            if 0 < walk.bounded <= len(results):
                limit = sorted(whole for whole, _ in results.values())[walk.bounded - 1]
            advance(len(group), f"logits of variant {len(results)} of {len(total)}")
        return results


def _step(work: _Round, place: int, streams: dict[States, Tensor], prefixes: set[States]) -> dict[States, Tensor]:
    """Every stream that some variant still needs after this step, by the states of the steps so far."""
    after: dict[States, Tensor] = {}
    for state in {key[-1] for key in prefixes}:
        keys = [key for key in streams if (*key, state) in prefixes]
        entering = [streams[key] for key in keys]
        leaving = entering if state == GONE else work.run(place, state, entering)
        after |= {(*key, state): stream for key, stream in zip(keys, leaving, strict=True)}
    return dict(sorted(after.items()))


def _text(key: States) -> str:
    """A key as the journal holds it: a digest where it names many groups, of which whole stacks have megabytes."""
    text = ".".join(key)
    return text if len(text) <= LONG else hashlib.sha256(text.encode()).hexdigest()


def _by_text(values: dict[States, Any]) -> dict[str, Any]:
    return {_text(key): value for key, value in values.items()}


def _by_key(values: dict[str, Any], keys: Iterable[States]) -> dict[States, Both]:
    known = {_text(key): key for key in keys}
    return {known[text]: tuple(both) for text, both in values.items()}
