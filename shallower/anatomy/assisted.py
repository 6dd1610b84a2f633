"""Assisted generation: greedy answers of a model alone and with a draft model, timed, its forward passes counted."""

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import NamedTuple

import torch
from torch import nn
from transformers import GenerationConfig

from .generation import configured, end_tokens, plain_options
from .model import Model


class TimedAnswer(NamedTuple):
    """An answer, the seconds that it took, and the forward passes of the model for it."""

    seconds: float
    ids: list[int]
    passes: int


class AssistedGeneration:
    """Answers of a model to one prompt at a time, the likeliest token each time, by transformers' ``generate``.

    Args:
        target: the model that answers.
        draft: the module that writes ahead; what it lacks virtually, it lacks while this is used.
        longest: most tokens of an answer.
        draft_tokens: how many the draft writes at a time.
    """

    def __init__(self, target: Model, draft: nn.Module, *, longest: int, draft_tokens: int):
        how = plain_options(end_tokens(target.module, target.tokenizer))
        self.target = target
        self.draft = draft
        self._how = GenerationConfig(max_new_tokens=longest, **how)
        constant = {"num_assistant_tokens_schedule": "constant", "assistant_confidence_threshold": 0.0}
        self._ahead = GenerationConfig(num_assistant_tokens=draft_tokens, **constant, **how)

    def both(self, asked: Sequence[int], *, draft_first: bool) -> tuple[TimedAnswer, TimedAnswer]:
        """The answer alone and with the draft."""
        found = {assisted: self._answer(asked, assisted) for assisted in (draft_first, not draft_first)}
        return found[False], found[True]

    @torch.no_grad()
    def _answer(self, asked: Sequence[int], assisted: bool) -> TimedAnswer:
        module = self.target.module
        tokens = torch.tensor([asked], device=self.target.device)
        ahead = configured(self.draft, self._ahead) if assisted else nullcontext()
        options = {"assistant_model": self.draft} if assisted else {}
        with _counted(module) as count, configured(module, self._how), ahead:
            started = time.perf_counter()
            output = module.generate(input_ids=tokens, attention_mask=torch.ones_like(tokens), **options)
            ids = output[0, len(asked) :].tolist()  # waits for a GPU
            return TimedAnswer(time.perf_counter() - started, ids, count[0])


@contextmanager
def _counted(module: nn.Module) -> Iterator[list[int]]:
    """Forward passes of a module while inside, the count in a list."""
    count = [0]

    def counting(*_: object) -> None:
        count[0] += 1

    handle = module.register_forward_pre_hook(counting)
    try:
        yield count
    finally:
        handle.remove()
