"""Whole layers as units of removal: a removed one hands the stream on untouched."""

from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager

from ..forwards import replaced_forwards
from ..stack import Stack


def skipped(stack: Stack, layers: Iterable[int]) -> AbstractContextManager[None]:
    """Let some layers hand the stream on as it is while inside."""

    def skip(index: int) -> Callable:
        interface = stack.interfaces[index]
        return lambda *args, **kwargs: interface.output(interface.stream_in(args, kwargs), args, kwargs)

    return replaced_forwards((stack.layers[index], skip(index)) for index in layers)
