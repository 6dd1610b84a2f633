"""Batching of tokens: rounds that share one reading of the weights, batches that run at once, blocks of logits."""

from jaxtyping import Int
from torch import Tensor

from ..anatomy.model import Model
from ..runtime import distributed
from ..runtime.memory import total_memory

LOGIT_ROWS = (
    128  # positions whose fp32 logits exist at once on a CPU: enough for a fast product, few enough for the cache
)
BLOCK_LOGIT_BYTES = 64 << 20  # and never more logits than this
LOGIT_GPU = 8  # a GPU takes so many times more
STREAM_SHARE = 8  # all streams of a round take at most this part of the memory
GRADIENT_BATCHES = 4  # batches that run with gradients are so many times larger, since each adds weight-sized sums


def batches(model: Model, tokens: Int[Tensor, "sample position"], limit: int | None = None) -> list[Tensor]:
    """The samples in order, in even batches of at most ``limit`` tokens (at least one sample each), on the device."""
    rows = max(1, (limit or model.batch_tokens) // tokens.shape[1])
    return [part.to(model.device) for part in tokens.tensor_split(-(-len(tokens) // rows))]


def batches_by_half(
    model: Model, tokens: Int[Tensor, "sample position"], limit: int | None = None
) -> tuple[list[Tensor], int]:
    """``batches`` of which none holds samples of both halves, and how many of them are of the first half.

    Where some process has one sample only, none keeps halves apart, and all batches are of the first.
    """
    if not all(distributed.all_gather(len(tokens) > 1)):
        whole = batches(model, tokens, limit)
        return whole, len(whole)
    parts = [batches(model, half, limit) for half in tokens.tensor_split(2) if len(half)]
    return [batch for part in parts for batch in part], len(parts[0])


def rounds(model: Model, tokens: Int[Tensor, "sample position"], streams: int) -> list[Tensor]:
    """The samples of all processes in rounds, each so small that so many streams per sample fit in memory together."""
    budget = total_memory(model.device) // STREAM_SHARE
    share = -(
        -len(tokens) // distributed.size()
    )  # the largest part that a process has: all go the same number of rounds
    rows = max(1, budget // (streams * tokens.shape[1] * model.stream_bytes))
    return list(distributed.share(tokens).tensor_split(min(-(-share // rows), len(tokens) // distributed.size())))


def total_predictions(tokens: Int[Tensor, "sample position"]) -> int:
    """Number of predicted tokens: all but the first of each sample."""
    return tokens.shape[0] * (tokens.shape[1] - 1)


def chunks(vocabulary: int, tokens: Int[Tensor, "batch position"], itemsize: int = 4) -> list[tuple[slice, slice]]:
    """Blocks (samples, predicting positions) whose logits, of ``itemsize`` bytes each, are few enough to exist
    together.
    """
    count, predicted = tokens.shape[0], tokens.shape[1] - 1
    most = BLOCK_LOGIT_BYTES // (4 * vocabulary)
    most = max(1, min(LOGIT_ROWS * 4 // itemsize, most) if tokens.device.type == "cpu" else LOGIT_GPU * most)
    width = min(predicted, most)
    rows = max(1, most // width)
    return [
        (slice(row, min(row + rows, count)), slice(place, min(place + width, predicted)))
        for row in range(0, count, rows)
        for place in range(0, predicted, width)
    ]


def part_of(axes: tuple[int, int], stream: Tensor, rows: slice, places: slice) -> Tensor:
    """A block of samples and positions of the stream; ``axes`` are those of batch and position in its layout."""
    batch, position = axes
    part = stream.narrow(batch, rows.start, rows.stop - rows.start)
    return part.narrow(position, places.start, places.stop - places.start)
