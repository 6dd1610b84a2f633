"""Virtual removal: a removed layer hands the stream on untouched; nothing is copied, and all is back afterwards."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

from torch import nn

from ..errors import Refusal
from .stack import Stack


@contextmanager
def replaced_forwards(layers: Iterable[tuple[nn.Module, Callable]]) -> Iterator[None]:
    """Give each layer another forward while inside; hooks of the layers still run."""
    changed = []
    try:
        for layer, forward in layers:
            changed.append((layer, layer.__dict__.get("forward")))
            layer.forward = forward
        yield
    finally:
        for layer, before in reversed(changed):
            if before is None:
                del layer.forward
            else:
                layer.forward = before


@contextmanager
def bypass(stack: Stack, removed: Iterable[int]) -> Iterator[None]:
    """Run the model without the removed layers (0-based indices).

    Raises:
        Refusal: another layer looks for what a removed one should have left.
    """
    removed = sorted(set(removed))

    def skip(index: int) -> Callable:
        interface = stack.interfaces[index]
        return lambda *args, **kwargs: interface.output(interface.stream_in(args, kwargs), args, kwargs)

    with replaced_forwards((stack.layers[index], skip(index)) for index in removed):
        try:
            yield
        except (LookupError, AttributeError, TypeError, ValueError) as error:
            if not removed:
                raise
            reason = f"another layer needs what they leave behind ({type(error).__name__}: {error})"
            raise Refusal(f"the model does not run without layers {', '.join(map(str, removed))}: {reason}") from error
