"""Whole layers as units of removal: a removed one hands the stream on untouched; nothing is copied, and all is back
afterwards.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from ...artifacts import ModelRecord
from ...artifacts.removal import Removal, Unit
from ...errors import Refusal
from ..forwards import replaced_forwards
from ..stack import Stack


def units(record: ModelRecord) -> dict[Unit, int]:
    """Every layer, with the parameters that go with it."""
    return {Unit(index): size for index, size in enumerate(record.layer_parameters)}


@contextmanager
def without(stack: Stack, removal: Removal) -> Iterator[None]:
    """Run the model without the removed layers.

    Raises:
        Refusal: another layer looks for what a removed one should have left.
    """

    def skip(index: int) -> Callable:
        interface = stack.interfaces[index]
        return lambda *args, **kwargs: interface.output(interface.stream_in(args, kwargs), args, kwargs)

    with replaced_forwards((stack.layers[index], skip(index)) for index in removal.layers):
        try:
            yield
        except (LookupError, AttributeError, TypeError, ValueError) as error:
            if not removal:
                raise
            reason = f"another layer needs what they leave behind ({type(error).__name__}: {error})"
            layers = ", ".join(map(str, removal.layers))
            raise Refusal(f"the model does not run without layers {layers}: {reason}") from error
