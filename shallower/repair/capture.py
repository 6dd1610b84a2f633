"""Capture of what enters and leaves a layer's writers while it runs."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from torch import Tensor, nn

from ..anatomy.stack import Stack
from ..anatomy.writers import Writer


def features_of(given: Tensor, stack: Stack) -> Tensor:
    """What enters a writer, one row per token, in the order of ``Stack.tokens_first``.

    Some layers flatten it themselves.
    """
    return given if given.dim() < 3 else given.movedim((stack.batch_axis, stack.position_axis), (0, 1)).flatten(0, 1)


@contextmanager
def capture(layer: nn.Module, writers: tuple[Writer, ...]) -> Iterator[list[tuple[Tensor, Tensor]]]:
    """What enters and leaves each writer's module during one call of the layer."""
    seen: list = [None] * len(writers)

    def see(place: int, args: tuple, kwargs: dict, output) -> None:
        values = output if isinstance(output, (tuple, list)) else (output,)
        given = next((value for value in (*args, *kwargs.values()) if isinstance(value, Tensor)), None)
        seen[place] = (given, next(value for value in values if isinstance(value, Tensor)))

    with ExitStack() as hooks:
        for place, writer in enumerate(writers):
            module = layer.get_submodule(writer.module)
            hook = module.register_forward_hook(lambda _, a, k, o, place=place: see(place, a, k, o), with_kwargs=True)
            hooks.callback(hook.remove)
        yield seen
