"""NLL and KL of a block of logits: the NLL of what came, or the KL divergence from the dense model."""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from .batching import part_of
from .replay import Replay

NLL_ROWS = 16  # positions whose losses are taken at once on a CPU, so that their fp32 logits stay in the cache
KL_ROWS = 128  # the same for divergences on a GPU, where it bounds what exists beside the two blocks of logits


def token_nll(logits: Float[Tensor, "*places vocabulary"], targets: Int[Tensor, "*places"]) -> Float[Tensor, "*places"]:
    """NLL in nats of every target, float32."""
    return log_probabilities(logits).gather(-1, targets.unsqueeze(-1)).squeeze(-1).neg()


def log_probabilities(logits: Float[Tensor, "*places vocabulary"]) -> Float[Tensor, "*places vocabulary"]:
    """In float32, whatever the logits are in."""
    return logits.log_softmax(-1, dtype=torch.float32)


def token_kl(
    dense: Float[Tensor, "*places vocabulary"], logits: Float[Tensor, "*places vocabulary"]
) -> Float[Tensor, "*places"]:
    """KL divergence in nats from the dense model's prediction at every place, float32, never negative.

    Args:
        dense: float32 log-probabilities of the dense model.
        logits: of the other model.
    """
    probabilities = dense.exp()
    terms = probabilities * (dense - log_probabilities(logits))
    return (
        terms.masked_fill_(probabilities == 0, 0.0).sum(-1).clamp_(min=0.0)
    )  # 0 · log 0 is 0; what is below 0 is rounding


def head_logits(replay: Replay, stream: Tensor, block: tuple[slice, slice]) -> Float[Tensor, "rows places vocabulary"]:
    """Logits of one block of predictions from the last stream."""
    return replay.head(part_of(replay.axes, stream, *block))


def head_nll(
    replay: Replay, stream: Tensor, tokens: Int[Tensor, "batch position"], block: tuple[slice, slice]
) -> Tensor:
    """NLL of one block of predictions, (rows, places), from the last stream."""
    rows, places = block
    logits = head_logits(replay, stream, block)
    targets = tokens[rows, places.start + 1 : places.stop + 1]
    if logits.device.type != "cpu":
        return token_nll(logits, targets)
    pieces = zip(logits.flatten(0, 1).split(NLL_ROWS), targets.flatten().split(NLL_ROWS), strict=True)
    return torch.cat([token_nll(*piece) for piece in pieces]).view(targets.shape)


def head_kl(
    replay: Replay, stream: Tensor, dense: Float[Tensor, "rows places vocabulary"], block: tuple[slice, slice]
) -> Tensor:
    """KL divergence at one block of predictions, (rows, places), from the last stream and the dense
    log-probabilities.
    """
    logits = head_logits(replay, stream, block)
    step = NLL_ROWS if logits.device.type == "cpu" else KL_ROWS
    pieces = zip(dense.flatten(0, 1).split(step), logits.flatten(0, 1).split(step), strict=True)
    return torch.cat([token_kl(*piece) for piece in pieces]).view(dense.shape[:2])
