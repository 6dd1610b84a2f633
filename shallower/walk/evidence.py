"""What a criterion may look at, one small record per kind; a criterion names its kind in ``EVIDENCE``."""

from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor


@dataclass(frozen=True)
class Place:
    """Only where a layer is (``EVIDENCE = "place"``)."""

    index: int


@dataclass(frozen=True)
class Weights:
    """All parameters of a layer (``EVIDENCE = "weights"``)."""

    index: int
    weights: dict[str, Tensor]


@dataclass(frozen=True)
class Gradients:
    """A layer's parameters and the gradients of one batch's loss (``EVIDENCE = "gradients"``).

    The loss of a batch is its summed NLL over all predicted tokens of the calibration set, so that the batches' losses
    add up to the mean loss, whatever the batches.
    """

    index: int
    weights: dict[str, Tensor]
    gradients: dict[str, Tensor]


@dataclass(frozen=True)
class Streams:
    """The residual stream before layer ``start`` and after layer ``end`` - 1 (``EVIDENCE = "streams"``).

    A criterion with ``SPANS = True`` is shown every span of layers, otherwise each layer alone; with
    ``POSITIONS = "last"`` only the last position of each sample is kept.
    """

    start: int
    end: int
    before: Float[Tensor, "batch position feature"]
    after: Float[Tensor, "batch position feature"]


@dataclass(frozen=True)
class Losses:
    """The summed NLL in nats, over ``tokens`` predictions, of the model without one layer (``EVIDENCE = "losses"``)."""

    index: int
    nll: float
    tokens: int
