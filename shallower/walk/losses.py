"""losses(masks): the loss of many removals in one walk; two removals that are equal so far share one stream."""

from collections.abc import Iterable

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import cross_entropy

from ..anatomy.bypass import bypass
from ..anatomy.model import Model
from ..errors import UserError
from ..progress import track
from .replay import Recording, Replay

LOGIT_BYTES = 64 << 20  # logits of large vocabularies exist only for so much at a time
BATCH_TOKENS = 4096


def replay_of(model: Model) -> Replay | None:
    """The model's replay, or None where only whole forwards are faithful; found out once per model."""
    if "replay" not in model.__dict__:
        replay = Replay(model.module, model.stack)
        model.__dict__["replay"] = replay if replay.faithful() else None
    return model.__dict__["replay"]


def batches(tokens: Int[Tensor, "sample position"], device: str, limit: int = BATCH_TOKENS) -> list[Tensor]:
    """The samples in order, in batches of at most ``limit`` tokens (at least one sample each), on the device."""
    rows = max(1, limit // tokens.shape[1])
    return [part.to(device) for part in tokens.split(rows)]


def total_predictions(tokens: Int[Tensor, "sample position"]) -> int:
    """Number of predicted tokens: all but the first of each sample."""
    return tokens.shape[0] * (tokens.shape[1] - 1)


@torch.no_grad()
def token_nll(model: Model, tokens: Int[Tensor, "batch position"], removed: Iterable[int] = ()) -> Float[Tensor, "batch predicted"]:
    """NLL in nats of every predicted token, float32, for the model without the removed layers."""
    replay, removed = replay_of(model), frozenset(removed)
    if replay is not None:
        return head_nll(replay, replay.forward(tokens, removed), tokens)
    with bypass(model.stack, removed):
        size = _rows(1 << 62, tokens.shape[1], model.vocabulary)
        return torch.cat([_nll(model.module(input_ids=part, use_cache=False).logits[:, :-1], part[:, 1:]) for part in tokens.split(size)])


def head_nll(replay: Replay, stream: Tensor, tokens: Int[Tensor, "batch position"]) -> Float[Tensor, "batch predicted"]:
    """NLL of every predicted token from the last stream, the logits made in chunks."""
    nll = torch.empty(tokens.shape[0], tokens.shape[1] - 1, device=tokens.device)
    for rows, places in chunks(replay, tokens):
        nll[rows, places] = _nll(replay.head(part_of(replay, stream, rows, places)), tokens[rows, places.start + 1 : places.stop + 1])
    return nll


def part_of(replay: Replay, stream: Tensor, rows: slice, places: slice) -> Tensor:
    """A block of samples and positions of the stream, whatever its layout."""
    stack = replay.stack
    part = stream.narrow(stack.batch_axis, rows.start, rows.stop - rows.start)
    return part.narrow(stack.position_axis, places.start, places.stop - places.start)


def chunks(replay: Replay, tokens: Int[Tensor, "batch position"]) -> list[tuple[slice, slice]]:
    """Blocks (samples, predicting positions) whose logits stay within LOGIT_BYTES."""
    count, predicted = tokens.shape[0], tokens.shape[1] - 1
    vocabulary = replay.module.get_input_embeddings().weight.shape[0]
    width = max(1, min(predicted, LOGIT_BYTES // (4 * vocabulary)))
    rows = _rows(count, width, vocabulary)
    return [
        (slice(row, min(row + rows, count)), slice(place, min(place + width, predicted)))
        for row in range(0, count, rows)
        for place in range(0, predicted, width)
    ]


def _rows(count: int, length: int, vocabulary: int) -> int:
    return max(1, min(count, LOGIT_BYTES // (4 * vocabulary * length)))


def _nll(logits: Tensor, targets: Tensor) -> Tensor:
    return cross_entropy(logits.flatten(0, 1).float(), targets.flatten(), reduction="none").view(targets.shape)


class LossWalk:
    """``losses(masks)`` over a fixed set of tokens.

    Args:
        model: the model.
        tokens: calibration tokens.
    """

    def __init__(self, model: Model, tokens: Int[Tensor, "sample position"]):
        self.model = model
        self.batches = batches(tokens, model.device)
        self.predictions = total_predictions(tokens)

    def __call__(self, masks: Tensor, label: str = "losses") -> Float[Tensor, "variant"]:
        """Summed NLL in nats of each variant; ``masks[variant, layer]`` is true where the layer is removed.

        All leave-one-out variants of N layers cost N(N+1)/2 layer forwards.
        """
        total = torch.zeros(len(masks), dtype=torch.float64)
        replay = replay_of(self.model)
        for batch in self.batches:
            total += self._shared(replay, batch, masks, label) if replay is not None else self._whole(batch, masks, label)
        if not torch.isfinite(total).all():
            raise UserError("the loss is NaN or infinite: are the weights whole, and does the dtype suffice?")
        return total

    def _whole(self, batch: Tensor, masks: Tensor, label: str) -> Tensor:
        variants = track(masks, label, len(masks))
        return torch.stack([token_nll(self.model, batch, mask.nonzero().flatten().tolist()).double().sum().cpu() for mask in variants])

    @torch.no_grad()
    def _shared(self, replay: Replay, batch: Tensor, masks: Tensor, label: str) -> Tensor:
        recording = replay.record(batch)
        streams: dict[bytes, Tensor] = {b"": recording.entering}
        keys = [bytes(mask.to(torch.uint8).tolist()) for mask in masks]
        depth = masks.shape[1]
        for index in track(range(depth), label, depth):
            streams = self._layer(replay, recording, index, streams, keys)
        losses = {key: head_nll(replay, stream, batch).double().sum().cpu() for key, stream in streams.items()}
        return torch.stack([losses[key] for key in keys])

    @staticmethod
    def _layer(replay: Replay, recording: Recording, index: int, streams: dict, keys: list[bytes]) -> dict[bytes, Tensor]:
        """Every stream that some variant still needs after this layer, by the removals so far."""
        wanted = {key[: index + 1] for key in keys}
        after = {}
        for prefix, stream in streams.items():
            if prefix + b"\1" in wanted:
                after[prefix + b"\1"] = stream
            if prefix + b"\0" in wanted:
                after[prefix + b"\0"] = replay.step(recording, index, stream)
        return after
