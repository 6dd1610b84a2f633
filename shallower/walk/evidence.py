"""Evidence that a criterion may look at, one small record per kind; a criterion names its kind in ``EVIDENCE``.

Where the kind depends on the settings, its function ``evidence(settings)`` says which of them.
"""

from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor


@dataclass(frozen=True)
class LayerPlace:
    """Only where a unit is, by its number (``EVIDENCE = "place"``)."""

    index: int


@dataclass(frozen=True)
class Weights:
    """All parameters of a unit (``EVIDENCE = "weights"``)."""

    index: int
    weights: dict[str, Tensor]


@dataclass(frozen=True)
class Gradients:
    """One parameter of a unit and the gradient of one batch's loss (``EVIDENCE = "gradients"``).

    The loss of a batch is its summed NLL over all predicted tokens of the calibration set, so that the batches' losses
    add up to the mean loss, whatever the batches. A criterion of this kind measures each parameter by itself, and
    ``condense`` turns a parameter's total, summed over all batches, into numbers that are added over the unit; so
    weight-sized totals need not outlive their parameter.
    """

    index: int
    name: str
    weight: Tensor
    gradient: Tensor


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
class Flows:
    """The residual stream around a unit and the gradient of one batch's loss where it leaves (``EVIDENCE = "flows"``).

    The loss is scaled as for ``Gradients``, so that sums over tokens and batches are those of the mean loss.
    """

    index: int
    before: Float[Tensor, "batch position feature"]
    after: Float[Tensor, "batch position feature"]
    gradient: Float[Tensor, "batch position feature"]


@dataclass(frozen=True)
class Inputs:
    """What enters the last product of a layer's attention or MLP (``EVIDENCE = "inputs"``).

    ``features(sums, matrix, part)`` of such a criterion turns the totals, one number per feature each, and the
    product's weight, (stream feature, feature), into a score per feature; ``POOL`` says whether a group's is the
    ``sum`` or the ``mean`` of those of its features.
    """

    index: int
    part: str
    features: Float[Tensor, "sample position feature"]


@dataclass(frozen=True)
class Losses:
    """The summed NLL in nats, over ``tokens`` predictions, of the model without one unit (``EVIDENCE = "losses"``)."""

    index: int
    nll: float
    tokens: int
