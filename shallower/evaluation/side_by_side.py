"""ShownAnswer by side: the unpruned model and a pruned one within it answer a prompt in turns, token by token.

Both are one module in memory: a pruned model is what is left out of it, and weights that stand in for its own. What
either writes is then read by the other, which says how likely it finds every token.
"""

import inspect
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import log_softmax

from ..anatomy.decoding import Decoder
from ..anatomy.generation import ALIKE, ROUNDED
from ..anatomy.model import Model
from ..anatomy.patch import Patch
from ..anatomy.stack import dry_tokens
from ..artifacts import NOTHING, Removal
from ..errors import UserError
from .analytic import synchronize

PROBE = 8  # tokens on which a cache is tried
LIKELY = 0.1  # probability from which a token that is not the likeliest counts as likely


@dataclass(frozen=True, eq=False)
class Variant:
    """A pruned model within the unpruned one.

    Attributes:
        removal: what is left out.
        weights: name of a parameter in the unpruned model -> what stands in its place.
    """

    removal: Removal = NOTHING
    weights: dict[str, Tensor] = field(default_factory=dict, repr=False)

    @contextmanager
    def within(self, model: Model) -> Iterator[None]:
        """Let the model run as this variant while inside; nothing is copied."""
        module = model.module
        parameters = {name: module.get_parameter(name) for name in self.weights}
        before = {name: parameter.data for name, parameter in parameters.items()}
        with ExitStack() as changes:
            if self.removal:
                changes.enter_context(model.without(self.removal))
            try:
                for name, parameter in parameters.items():
                    parameter.data = self.weights[name]
                yield
            finally:
                for name, parameter in parameters.items():
                    parameter.data = before[name]

    @property
    def bytes(self) -> int:
        """Bytes of the weights that stand in for others."""
        return sum(weight.nbytes for weight in self.weights.values())


DENSE = Variant()


def of_patch(model: Model, removal: Removal, patch: Patch) -> Variant:
    """The variant that a removal and a repair of what is left make, its weights computed once."""
    parameters = {name: model.module.get_parameter(name).data for name in patch}
    return Variant(removal, {name: patch[name].of(data) for name, data in parameters.items()})


class Answerer:
    """One of two that answer: a step at a time, its own time taken.

    Args:
        prompt: tokens that are asked.
        ends: tokens at which an answer ends.
        keeps: whether a cache keeps what was read (see ``keeps_cache``), asked before the first step; else all is read
            again for every token.
    Attributes:
        tokens: of the answer so far.
        seconds: of each, the first with the reading of the prompt.
    """

    def __init__(
        self,
        model: Model,
        variant: Variant,
        prompt: list[int],
        ends: list[int],
        keeps: Callable[[Variant], bool] = lambda _: True,
    ):
        self.model, self.variant, self.prompt, self.ends, self.keeps = model, variant, prompt, ends, keeps
        self.decoder = Decoder(model.module)
        self.tokens: list[int] = []
        self.seconds: list[float] = []

    @cached_property
    def cached(self) -> bool:
        """Whether what was read is kept."""
        return self.keeps(self.variant)

    @property
    def ended(self) -> bool:
        """Whether the last token says so."""
        return bool(self.tokens) and self.tokens[-1] in self.ends

    @property
    def rate(self) -> float | None:
        """Tokens per second behind the first one."""
        return (len(self.seconds) - 1) / sum(self.seconds[1:]) if len(self.seconds) > 1 else None

    @torch.no_grad()
    def step(self) -> None:
        """Write one more token, the likeliest.

        Raises:
            UserError: the model yields NaN.
        """
        device = self.model.device
        _ = self.cached
        with self.variant.within(self.model):
            synchronize(device)
            started = time.perf_counter()
            logits = self._logits()
            token = int(logits.argmax(-1))
            synchronize(device)
            self.seconds.append(time.perf_counter() - started)
        if not bool(logits.isfinite().all()):
            raise UserError("the model yields NaN or infinite values on this prompt")
        self.tokens.append(token)

    def _logits(self) -> Tensor:
        device = self.model.device
        if self.tokens and self.cached:
            return self.decoder.step(torch.tensor([self.tokens[-1:]], device=device))
        whole = torch.tensor([[*self.prompt, *self.tokens]], device=device)
        return self.decoder.prefill(whole) if self.cached else last_logits(self.model, whole, 1)


def in_turns(answerers: list[Answerer], longest: int) -> Iterator[None]:
    """Steps of all answerers that have not ended, one after the other; yields after every step."""
    for _ in range(longest):
        running = [answerer for answerer in answerers if not answerer.ended]
        if not running:
            return
        for answerer in running:
            answerer.step()
            yield


@torch.no_grad()
def keeps_cache(model: Model, variant: Variant) -> bool:
    """Whether decoding with a cache gives what reading everything again gives: some count what they have read in a
    layer that is left out.
    """
    tokens = dry_tokens(model.vocabulary, 1, PROBE).to(model.device)
    with variant.within(model):
        whole = model.module(input_ids=tokens).logits[:, -1].float()
        decoder = Decoder(model.module)
        try:
            decoder.prefill(tokens[:, :-1])
            stepped = decoder.step(tokens[:, -1:]).float()
        except (UserError, RuntimeError, ValueError, IndexError):
            return False
    return bool((stepped - whole).abs().mean() <= alike(model.module.dtype) * whole.std())


def alike(dtype: torch.dtype) -> float:
    """Mean difference of logits in their spread, up to which they are the same but for rounding."""
    return ALIKE.get(dtype, ROUNDED)


def last_logits(model: Model, tokens: Tensor, count: int) -> Tensor:
    """Logits behind the last so many tokens, (token, vocabulary); of no others where the forward can leave them out."""
    known = inspect.signature(model.module.forward).parameters
    last = {"logits_to_keep": count} if "logits_to_keep" in known else {}
    return model.module(input_ids=tokens, **last).logits[0, -count:]


class Opinion(NamedTuple):
    """What a model thinks of a token that another one wrote."""

    probability: float
    likeliest: int
    """The token that it would have written."""
    likely: bool
    """Whether it finds the token likely, though another one likelier."""


@torch.no_grad()
def opinions(model: Model, variant: Variant, prompt: list[int], answer: list[int]) -> list[Opinion]:
    """How likely a model finds every token of an answer that another one wrote.

    Raises:
        UserError: it yields NaN.
    """
    if not answer:
        return []
    tokens = torch.tensor([[*prompt, *answer]], device=model.device)
    with variant.within(model):
        logits = last_logits(model, tokens[:, :-1], len(answer)).float()
    if not bool(logits.isfinite().all()):
        raise UserError("the model yields NaN or infinite values on this answer")
    chances = log_softmax(logits, -1)
    own = chances.gather(-1, tokens[0, -len(answer) :, None])[:, 0].exp().tolist()
    best = chances.argmax(-1).tolist()
    return [Opinion(chance, first, chance >= LIKELY) for chance, first in zip(own, best, strict=True)]
