"""Units that can be removed, and the model without some of them, virtually."""

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext

from torch import nn

from ...artifacts.removal import PARTS, Removal, Unit
from ...artifacts.units import SUBLAYER, WIDTH, SizedUnit
from ...errors import Refusal
from ..stack import Stack
from .grouping import groups_of
from .layer import skipped
from .part import LayerParts, lessened_layer, parts_of, silent
from .steps import Step, Steps

__all__ = ["LayerParts", "Step", "Steps", "groups_of", "lessened", "parts_of", "silent", "units_listing", "without"]


def lessened(stack: Stack, index: int, removal: Removal, parts: Sequence[LayerParts]) -> AbstractContextManager[None]:
    """Let a layer that stays do without the parts and groups that it loses while inside.

    Raises:
        Refusal: it has no such part, or no such groups.
    """
    if not removal.lessens(index):
        return nullcontext()
    return lessened_layer(stack, index, parts[index], removal.parts(index), removal.groups(index))


@contextmanager
def without(stack: Stack, removal: Removal, parts: Sequence[LayerParts] = ()) -> Iterator[None]:
    """Virtual removal: run the model without some units; nothing is copied, and all is back afterwards.

    Args:
        parts: of every layer, where parts are removed.
    Raises:
        Refusal: another layer looks for what a removed one should have left.
    """
    with ExitStack() as changes:
        changes.enter_context(skipped(stack, removal.layers))
        for index in range(len(stack)) if parts else ():
            changes.enter_context(lessened(stack, index, removal, parts))
        try:
            yield
        except (LookupError, AttributeError, TypeError, ValueError) as error:
            if not removal:
                raise
            reason = f"another layer needs what they leave behind ({type(error).__name__}: {error})"
            what = "layers " if removal.kind == "layer" else ""
            named = ", ".join(map(str, removal.units))
            raise Refusal(f"the model does not run without {what}{named}: {reason}") from error


def units_listing(layers: Sequence[nn.Module], parts: Sequence[LayerParts], kind: str) -> tuple[SizedUnit, ...]:
    """Every unit of a kind of parts, with the parameters that go with it, layer by layer.

    Args:
        layers: with or without weights.
        kind: a part, ``sublayer`` for both, or ``width`` for the groups of both.
    """
    listing = []
    for index, (layer, own) in enumerate(zip(layers, parts, strict=True)):
        sizes = {name: parameter.numel() for name, parameter in layer.named_parameters()}
        if kind == WIDTH:
            for name, groups in own.groups.items():
                each = groups.parameters({name: tuple(parameter.shape) for name, parameter in layer.named_parameters()})
                listing += [SizedUnit(Unit(index, name, (group,)), each) for group in range(groups.count)]
            continue
        if len(own.parts) == 1:  # without it nothing is left
            listing += [SizedUnit(Unit(index), sum(sizes.values()))] if kind in (*own.parts, SUBLAYER) else []
            continue
        listing += [
            SizedUnit(Unit(index, name), sum(sizes[one] for one in own.parts[name].parameters))
            for name in (own.order or PARTS)
            if kind in (name, SUBLAYER) and name in own.parts
        ]
    return tuple(listing)
