"""Layer forwards, replaced for a while."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

from torch import nn


@contextmanager
def replaced_forwards(layers: Iterable[tuple[nn.Module, Callable]]) -> Iterator[None]:
    """Give each layer another forward while inside; hooks of the layers still run."""
    originals = []
    try:
        for layer, forward in layers:
            originals.append((layer, layer.__dict__.get("forward")))
            layer.forward = forward
        yield
    finally:
        for layer, before in reversed(originals):
            if before is None:
                del layer.forward
            else:
                layer.forward = before


@contextmanager
def plain_forwards(module: nn.Module) -> Iterator[None]:
    """Let a model's modules run as they were built while inside, without replaced forwards."""
    replaced = [(one, one.__dict__.pop("forward")) for one in module.modules() if "forward" in one.__dict__]
    try:
        yield
    finally:
        for one, forward in replaced:
            one.forward = forward
