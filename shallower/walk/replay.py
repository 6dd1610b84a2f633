"""Replay: walk the layers by hand with the arguments that the model itself would give them.

One dry pass records each layer's arguments (masks and rotary tables differ by layer in many families) without running
the layers; then any layer can be run on any stream, and the norm and the head on any part of the last stream.
"""

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from ..anatomy.forwards import replaced_forwards
from ..anatomy.kernels import fast_products
from ..anatomy.model import Model
from ..anatomy.stack import Stack, dry_tokens, sound_tokens
from ..anatomy.units import Step, Steps, without
from ..artifacts.removal import NOTHING, Removal, Unit
from ..errors import Refusal
from ..runtime.progress import say

# Of the largest logit. A wrong walk is off by about 1; fewer rows may run another kernel, which rounds otherwise.
REPLAY_CLOSE = {torch.float32: 1e-3, torch.bfloat16: 3e-2, torch.float16: 4e-3}


class _Stopped(Exception):
    """Ends the dry pass in front of the norm and the head."""


@dataclass(frozen=True)
class Recording:
    """The stream that enters layer 0 and each layer's arguments, for one shape of input."""

    entering: Tensor
    calls: tuple[tuple[tuple, dict], ...]


class Replay:
    """Runs single layers of a loaded model."""

    def __init__(self, module: nn.Module, stack: Stack):
        self.module = module
        self.stack = stack

    @property
    def axes(self) -> tuple[int, int]:
        """The axes of batch and position in the stream."""
        return self.stack.batch_axis, self.stack.position_axis

    @torch.no_grad()
    def record(self, tokens: Int[Tensor, "batch position"]) -> Recording:
        """Embed the tokens and note what every layer would be given; no layer is run."""
        calls: list[tuple[tuple, dict]] = []
        last = len(self.stack) - 1

        def note(index: int) -> Callable:
            interface = self.stack.interfaces[index]

            def forward(*args, **kwargs):
                calls.append((args, kwargs))
                if index == last:
                    raise _Stopped
                return interface.output(interface.stream_in(args, kwargs), args, kwargs)

            return forward

        noting = replaced_forwards((layer, note(index)) for index, layer in enumerate(self.stack.layers))
        with noting, contextlib.suppress(_Stopped):
            self.module(input_ids=tokens, use_cache=False)
        return Recording(self.stack.interfaces[0].stream_in(*calls[0]), tuple(calls))

    def step(self, recording: Recording, index: int, stream: Tensor) -> Tensor:
        """The stream after one layer; the one before stays as it is, since others may share it.

        Raises:
            RuntimeError: the layer writes into its input (found out on the first few tokens, by ``faithful``).
        """
        interface = self.stack.interfaces[index]
        args, kwargs = interface.with_stream(*recording.calls[index], stream)
        version = stream._version
        after = interface.stream_out(self.stack.layers[index](*args, **kwargs))
        if stream._version != version:
            raise RuntimeError(f"layer {index} writes into its input")
        return after

    def behind_units(
        self, steps: Steps, step: Step, state: str, recording: Recording, before: Tensor, after: Tensor
    ) -> Iterator[tuple[Unit, Tensor]]:
        """The stream behind each unit of a step: behind the step, or, of parts that read the same stream, behind each
        of them alone.

        Args:
            before, after: the streams around the step in that state.
        """
        units = steps.units_of(step, state)
        if len(units) == 1:
            yield units[0], after
            return
        for unit in units:
            with torch.no_grad(), steps.alone(self.stack, unit):
                alone = self.step(recording, step.layer, before)
            yield unit, alone

    def head(self, stream: Tensor) -> Float[Tensor, "batch position vocabulary"]:
        """Logits of (a part of) the stream after the last layer; each position stands for itself."""
        shape = (stream.shape[self.stack.batch_axis], stream.shape[self.stack.position_axis])
        tokens = torch.zeros(shape, dtype=torch.long, device=stream.device)
        last = len(self.stack) - 1

        def stub(index: int) -> Callable:
            interface = self.stack.interfaces[index]

            def forward(*args, **kwargs):
                out = stream if index == last else interface.stream_in(args, kwargs)
                return interface.output(out, args, kwargs)

            return forward

        with replaced_forwards((layer, stub(index)) for index, layer in enumerate(self.stack.layers)):
            return self.module(input_ids=tokens, use_cache=False).logits

    @torch.no_grad()
    def forward(self, tokens: Int[Tensor, "batch position"], removal: Removal = NOTHING) -> Tensor:
        """The stream after the last layer, walked by hand without some units."""
        recording = self.record(tokens)
        stream = recording.entering
        for index in removal.stays(len(self.stack)):
            stream = self.step(recording, index, stream)
        return stream

    @torch.no_grad()
    def faithful(self) -> bool:
        """Whether replay equals the plain forward and removal by replay equals removal inside the forward.

        It does not for models with weights or state across layers or operations between them; those are run whole
        instead.
        """
        own_weights = [{id(parameter) for parameter in layer.parameters()} for layer in self.stack.layers]
        if sum(map(len, own_weights)) > len(set().union(*own_weights)):
            return False  # a weight that serves several layers has its gradient from all of them
        tokens = sound_tokens(self.module, dry_tokens(self.module.get_input_embeddings().weight.shape[0]))
        some = Removal.of_layers((0, len(self.stack) // 2))
        try:
            return all(self._agrees(tokens, removal) for removal in (NOTHING, some))
        except (
            Refusal,
            RuntimeError,
            KeyError,
            TypeError,
            AttributeError,
            IndexError,
            ValueError,
        ):  # or that removal is illegal
            return False

    def _agrees(self, tokens: Tensor, removal: Removal) -> bool:
        with without(self.stack, removal):
            plain = self.module(input_ids=tokens, use_cache=False).logits.float()
        stream = self.forward(tokens, removal)
        half = tokens.shape[1] // 2
        parts = [
            stream.narrow(self.stack.position_axis, start, size)
            for start, size in ((0, half), (half, tokens.shape[1] - half))
        ]
        replayed = torch.cat([self.head(part) for part in parts], dim=1).float()
        return replayed.shape == plain.shape and bool(
            (plain - replayed).abs().max() <= REPLAY_CLOSE.get(stream.dtype, 1e-3) * plain.abs().max()
        )


def replay_of(model: Model) -> Replay | None:
    """The model's replay, or None where only whole forwards are faithful; found out once per model."""
    if "replay" not in model.__dict__:
        replay = Replay(model.module, model.stack)
        with model.dry(), fast_products(model.module):
            model.__dict__["replay"] = replay if replay.faithful() else None
        if model.__dict__["replay"] is None:
            say(
                f"{model.checkpoint.source}: its layers hand on more than the stream, so it is run whole each "
                "time, which is slower"
            )
    return model.__dict__["replay"]
