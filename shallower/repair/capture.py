"""Writers of a layer, looked for on a few tokens, and capture of what enters and leaves them while it runs."""

from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager

from torch import Tensor, nn

from ..anatomy.stack import Stack
from ..anatomy.writers import Writer, find_writers
from ..errors import Refusal
from ..walk.replay import Recording, Replay

PROBE = (1, 16)  # samples and positions on which writers are looked for


def probe_of(replay: Replay, tokens: Tensor, device: str) -> Recording:
    """The arguments of all layers for a few tokens."""
    return replay.record(tokens[: PROBE[0], : PROBE[1]].to(device))


def small_part(replay: Replay, probe: Recording, stream: Tensor) -> Tensor:
    """As much of a batch's stream as the probe has."""
    batch, position = replay.axes
    return stream.narrow(batch, 0, PROBE[0]).narrow(position, 0, probe.entering.shape[position])


def writers_of(
    layer: nn.Module, replay: Replay, probe: Recording, index: int, stream: Tensor, *, gains: bool
) -> tuple[Writer, ...]:
    """The writers of a layer whose weights are in memory, found on a few tokens of the stream that enters it.

    Raises:
        Refusal: it has none into which a map folds; names the layer.
    """
    interface = replay.stack.interfaces[index]
    args, kwargs = interface.with_stream(*probe.calls[index], stream)
    try:
        return find_writers(layer, interface, args, kwargs, gains=gains)
    except Refusal as refusal:
        raise Refusal(f"layer {index}: {refusal}") from refusal


def lies_in(writer: Writer, modules: Iterable[str]) -> bool:
    """Whether a writer is one of some modules of its layer, or lies inside one."""
    return any(f"{writer.module}.".startswith(f"{name}.") for name in modules)


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
