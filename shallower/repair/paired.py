"""Paired walk: the dense and the pruned model side by side on the same tokens, a layer at a time, correctable
on the way.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from ..anatomy.kernels import fast_products, packed_weights
from ..anatomy.model import Model
from ..anatomy.patch import Edit, Patch, patched
from ..anatomy.units import silent
from ..anatomy.writers import Writer
from ..artifacts.removal import Removal
from ..errors import Refusal, UserError
from ..runtime import distributed
from ..runtime.progress import Meter, meter
from ..storage.journal import NO_JOURNAL, JournalPart
from ..walk.batching import batches
from ..walk.inputs import entering
from ..walk.replay import replay_of
from .batch import PairedBatch
from .capture import capture, lies_in, probe_of, small_part, writers_of
from .state import RepairState
from .writer_fit import fitted_features, rows_of


class PairedWalk:
    """Iterating yields a ``LayerStep`` at every retained layer, in order; one reading of the weights.

    What is taken and noted at a layer is kept with the streams: a walk that was killed begins behind the last layer
    that was kept, with the notes and changes of all layers before it.

    Args:
        model: the dense model.
        tokens: all tokens, of which each process takes its share; the streams of both models stay in memory together.
        removal: what the pruned model lacks.
        middles: keep, per layer, the dense stream between its writers.
        gains: where a norm stands behind a writer, its gain will do (see ``find_writers``).
        state: what has been found so far; it tells where to begin.
        part: of a journal, which keeps it.
    Raises:
        UserError: the model cannot be walked layer by layer.
    """

    def __init__(
        self,
        model: Model,
        tokens: Int[Tensor, "sample position"],
        removal: Removal,
        *,
        middles: bool = False,
        gains: bool = False,
        state: RepairState | None = None,
        part: JournalPart | None = None,
    ):
        self.model = model
        self.removal = removal
        self.middles = middles
        self.gains = gains
        self.state = state or RepairState()
        self.part = part or NO_JOURNAL.part("", 0)
        replay = replay_of(model)
        if replay is None:
            raise UserError(
                f"{model.checkpoint.source}: its layers hand more than the stream to each other, so nothing "
                "can be compensated"
            )
        self.replay = replay
        self.recordings = [replay.record(batch) for batch in batches(model, distributed.share(tokens))]
        self.probe = probe_of(replay, tokens, model.device)
        entering = {f"dense/{i}": recording.entering for i, recording in enumerate(self.recordings)}
        streams = {name: stream.to(model.device) for name, stream in self.state.streams.items()} or entering
        self.state.streams = {}
        self.dense = [streams[f"dense/{i}"] for i in range(len(entering))]
        self.pruned = [streams.get(f"pruned/{i}", stream) for i, stream in enumerate(self.dense)]
        self.known: dict[int, tuple[Writer, ...]] = {}
        self.meter = Meter("", 0)

    def __iter__(self) -> Iterator["LayerStep"]:
        layers = len(self.model.stack)
        index = self.state.step
        with (
            torch.no_grad(),
            fast_products(self.model.module),
            meter("both models side by side", layers, index) as done,
        ):
            while index < layers and self.removal.gone(index):  # removed ones in front of all retained ones
                self._dense(index)
                index += 1
                done.add()
            self.meter = done
            while index < layers:
                following = next((i for i in range(index + 1, layers) if not self.removal.gone(i)), layers)
                entering = self.dense
                middles = self._dense(index, middles=self.middles and not self.removal.parts(index))
                same = self.dense
                for beyond in range(index + 1, following):
                    self._dense(beyond)
                first, wanted = self._behind_first(following)
                gap = following - index - 1 + self._ends_with_gap(index) + first
                step = LayerStep(self, index, gap, entering, (same, wanted), middles)
                yield step
                self.pruned = step.leaving()
                self.state.spill(self.part, index, step.patch)
                done.add(following - index, f"layer {following} of {layers}")
                index = following
                self.state.keep(self.part, index, self._streams(), now=step.dear)

    @property
    def patch(self) -> Patch:
        """All changes that have been taken."""
        return self.state.patch

    @property
    def notes(self) -> list[dict[str, Any]]:
        """What has been noted, of layer after layer."""
        return self.state.notes

    def sums(self, note: dict[str, Any], name: str) -> Tensor:
        """A tensor that was noted with it."""
        return self.state.tensors[f"{note['layer']}/{name}"]

    def _streams(self) -> dict[str, Tensor]:
        streams = {f"dense/{i}": stream for i, stream in enumerate(self.dense)}
        pairs = enumerate(zip(self.dense, self.pruned, strict=True))
        return streams | {f"pruned/{i}": pruned for i, (dense, pruned) in pairs if pruned is not dense}

    def _dense(self, index: int, *, middles: bool = False) -> list[list[Tensor]]:
        """Take the dense streams through a layer.

        With ``middles``, the streams behind each writer but the last, per batch.
        """
        layer = self.model.layer(index)
        middle_streams = []
        writers = self.writers(index)[:-1] if middles else ()
        streams = []
        with packed_weights(layer, len(self.recordings)):
            for recording, stream in zip(self.recordings, self.dense, strict=True):
                with capture(layer, writers) as seen:
                    streams.append(self.replay.step(recording, index, stream))
                between = []
                place = stream
                for writer, (_, output) in zip(writers, seen, strict=True):
                    place = place + writer.scale * output.view(place.shape)
                    between.append(place)
                middle_streams.append(between)
        self.dense = streams
        return middle_streams

    def _ends_with_gap(self, index: int) -> bool:
        """Whether a layer loses what it writes last; where its parts read the same stream, whatever it loses."""
        lost = self.removal.parts(index)
        order = self.model.parts[index].order if lost else ()
        return order[-1] in lost if order else bool(lost)

    def _behind_first(self, index: int) -> tuple[bool, list[Tensor]]:
        """(whether a layer loses the part that it begins with, the dense streams behind that part, else in front)."""
        lost = self.removal.parts(index) if index < len(self.model.stack) else ()
        order = self.model.parts[index].order if lost else ()
        if not order or order[0] not in lost:
            return False, self.dense
        layer = self.model.layer(index)
        rest = [part for name, part in self.model.parts[index].parts.items() if name != order[0]]
        with silent(layer, rest, self.model.stack.width), packed_weights(layer, len(self.recordings)):
            pairs = zip(self.recordings, self.dense, strict=True)
            return True, [self.replay.step(recording, index, stream) for recording, stream in pairs]

    def probe_call(self, index: int) -> Callable[[], Tensor]:
        """The layer, as it stays, on a few tokens of the pruned stream that enters it."""

        def call() -> Tensor:
            with self.model.lessened(index, self.removal):
                return self.replay.step(self.probe, index, self.small(index))

        return call

    def writers(self, index: int) -> tuple[Writer, ...]:
        """The writers of what stays of the layer, in order.

        Raises:
            Refusal: it has none into which a map folds; names the layer.
        """
        if index not in self.known:
            layer = self.model.layer(index)
            found = writers_of(layer, self.replay, self.probe, index, self.small(index), gains=self.gains)
            lost = [one for name in self.removal.parts(index) for one in self.model.parts[index].parts[name].modules]
            stays = [one for one in found if not lies_in(one, lost)]
            if not stays:
                raise Refusal(f"layer {index}: no map folds into what stays of it")
            self.known[index] = tuple(stays)
        return self.known[index]

    def small(self, index: int) -> Tensor:
        """A few tokens of the stream that enters the layer, of the first process, so that all find the same."""
        return distributed.from_first(small_part(self.replay, self.probe, self.pruned[0]))


class LayerStep:
    """A retained layer of a paired walk.

    Attributes:
        index: the layer.
        gap: how many removed layers and parts of layers follow what it writes last.
        dear: whether what was found at it took long, so that it is kept at once.
    """

    def __init__(
        self,
        walk: PairedWalk,
        index: int,
        gap: int,
        entering: list[Tensor],
        targets: tuple[list[Tensor], list[Tensor]],
        middles: list[list[Tensor]],
    ):
        self.walk = walk
        self.index = index
        self.gap = gap
        self.entering = entering
        self.same, self.wanted = targets
        self.middles = middles
        self.after: list[Tensor] | None = None
        self.patch: Patch = {}
        self.dear = False

    @property
    def touched(self) -> bool:
        """Whether the streams differ in front of the layer, or a gap follows it."""
        lessened = self.gap > 0 or self.walk.removal.lessens(self.index)
        return lessened or any(one is not other for one, other in zip(self.entering, self.walk.pruned, strict=True))

    def writers(self) -> tuple[Writer, ...]:
        return self.walk.writers(self.index)

    def mean_inputs(self) -> dict[str, Tensor]:
        """Part -> mean over the tokens of what enters its last product in the dense model, of parts that lose groups.

        Raises:
            Refusal: it is a product of experts.
        """
        walk = self.walk
        every = walk.model.grouped[self.index].groups
        groups = {name: every[name] for name in walk.removal.groups(self.index)}
        if experts := [name for name, one in groups.items() if not one.product]:
            raise Refusal(f"layer {self.index}: its {experts[0]} ends in a product of experts, which takes no bias")
        layer = walk.model.layer(self.index)
        sums: dict[str, Tensor] = {}
        count = 0
        with packed_weights(layer, len(walk.recordings)):
            for recording, stream in zip(walk.recordings, self.entering, strict=True):
                with entering(layer, groups) as seen:
                    walk.replay.step(recording, self.index, stream)
                for name, given in seen.items():
                    total = given.flatten(0, -2).double().sum(dim=0)
                    sums[name] = sums[name] + total if name in sums else total
                count += stream.numel() // stream.shape[-1]
        everywhere = float(distributed.all_sum(torch.tensor(count, dtype=torch.float64)))
        return {name: distributed.all_sum(total) / everywhere for name, total in sums.items()}

    def batches(self, *writers: Writer) -> Iterator[PairedBatch]:
        """The batches as they pass the layer with the changes taken so far.

        Args:
            writers: the layer's writers up to and with the one to look at, in order, or that one alone; none for
                streams only.
        """
        walk = self.walk
        after = []
        last = not writers or len(writers) > len(self.middles[0])
        layer = walk.model.layer(self.index)
        rows = partial(rows_of, walk.model.stack)
        with self.applied(), packed_weights(layer, len(walk.recordings)):
            for i, (recording, stream) in enumerate(zip(walk.recordings, walk.pruned, strict=True)):
                with capture(layer, writers) as seen:
                    leaving = walk.replay.step(recording, self.index, stream)
                after.append(leaving)
                outputs = [
                    writer.scale * output.view(stream.shape) for writer, (_, output) in zip(writers, seen, strict=True)
                ]
                reached = leaving if last else stream + sum(outputs)
                target = self.wanted[i] if last else self.middles[i][len(writers) - 1]
                yield PairedBatch(
                    *(rows(one) for one in (leaving, self.same[i], self.wanted[i])),
                    output=rows(outputs[-1]) if writers else None,
                    features=fitted_features(walk.model.stack, layer, writers[-1], seen[-1][0], stream.shape)
                    if writers
                    else None,
                    reached=rows(reached),
                    target=rows(target),
                )
        self.after = after

    def take(self, patch: Patch, loss: float | None = None, *, dear: bool = False) -> None:
        """Change the layer: what follows sees the stream that the changed layer makes.

        Args:
            loss: of the pruned model with this change, on held-out tokens, where it is known.
            dear: whether it took long to find, so that the walk is kept at once.
        """
        self.dear |= dear
        self.patch = self.patch | patch
        self.after = None
        self.walk.state.patch |= patch
        self.walk.state.loss = self.walk.state.loss if loss is None else loss

    def note(self, sums: dict[str, Tensor] | None = None, **facts: Any) -> None:
        """Keep what is to be known of the layer behind the walk.

        Args:
            sums: tensors that go with it, by name.
            facts: what JSON can hold.
        """
        self.walk.notes.append({"layer": self.index} | facts)
        self.walk.state.tensors |= {f"{self.index}/{name}": tensor for name, tensor in (sums or {}).items()}

    def progress(self, share: float) -> None:
        """Show that so much of the work at the layer is done."""
        self.walk.meter.show(f"layer {self.index}, {share:.0%}")

    def name(self, parameter: str) -> str:
        """A parameter's full name in the model."""
        return f"{self.walk.model.stack.name}.{self.index}.{parameter}"

    def weights(self, writer: Writer) -> list[tuple[str, int]]:
        """(full name, axis) of the weights into which a map of the writer's output folds."""
        return [(self.name(name), axis) for name, axis in writer.weights]

    def bias(self, writer: Writer) -> str | None:
        """Full name of the bias of a writer that is one plain product, or None."""
        module = self.walk.model.layer(self.index).get_submodule(writer.module)
        bias = getattr(module, "bias", None) if writer.features else None
        return self.name(f"{writer.module}.bias") if isinstance(bias, Tensor) else None

    def whole_writers(self) -> tuple[Writer, ...]:
        """The layer's writers, checked to be all that it adds to the stream.

        Raises:
            Refusal: without them it still adds something.
        """
        writers = self.writers()
        names = [name for writer in writers for name, _ in self.weights(writer)]
        off = {name: Edit("scale", torch.tensor(0.0)) for name in names}
        call = self.walk.probe_call(self.index)
        with patched(self.walk.model.module, off):
            after = call()
        moved = float((after - self.walk.small(self.index)).norm())
        if moved > 1e-2 * float(after.norm()):
            raise Refusal(
                f"layer {self.index}: not all that it adds to the stream comes from weights that can be told apart"
            )
        return writers

    def leaving(self) -> list[Tensor]:
        """The pruned streams behind the layer."""
        if not self.touched:
            return self.same
        if self.after is None:
            for _ in self.batches():
                pass
        return self.after

    @contextmanager
    def applied(self) -> Iterator[None]:
        """The layer as it stays, with the changes so far, while inside."""
        model = self.walk.model
        with patched(model.module, self.patch), model.lessened(self.index, self.walk.removal):
            model.layer(self.index)
            yield
