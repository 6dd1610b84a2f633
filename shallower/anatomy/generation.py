"""Generation: a batch of prompts gone on with by the model's own ``generate``, padded on the left."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor, nn
from transformers import GenerationConfig, StoppingCriteria, StoppingCriteriaList

from ..errors import UserError
from ..runtime.memory import by_device, total_memory
from ..runtime.progress import say
from .decoding import cache_growth
from .loading import Checkpoint
from .stack import dry_tokens

ALIKE = {torch.float32: 1e-3}  # mean difference of logits in their spread, up to which padding changes nothing
ROUNDED = 0.1  # the same for shorter types; a prompt whose padding is seen is off by about 1
CACHE_SHARE = 8  # the cache of a batch takes at most one part in so many of the memory
PROBE = (3, 9)  # tokens of the prompts by which that is tried


class _Watched(StoppingCriteria):
    """Stops nothing; tells after every step how many tokens there are."""

    def __init__(self, watch: Callable[[int], None]):
        self.watch = watch

    def __call__(self, input_ids: Tensor, scores: Any, **_: Any) -> Tensor:
        self.watch(input_ids.shape[1])
        return torch.zeros(len(input_ids), dtype=torch.bool, device=input_ids.device)


class Generation:
    """Answers of a loaded model; what its files say of sampling or penalties is left aside, but not its end tokens.

    Args:
        tokenizer: names the end token too.
        longest: most tokens of an answer.
        temperature: 0 takes the likeliest token each time; above, tokens are drawn by torch's random state.
    Raises:
        UserError: the model cannot generate.
    """

    def __init__(self, module: nn.Module, tokenizer: Any, *, longest: int, temperature: float = 0.0):
        if not getattr(module, "can_generate", bool)():
            raise UserError(f"{type(module).__name__} generates no text: it cannot answer")
        self.module = module
        self.ends = end_tokens(module, tokenizer)
        self.longest = longest
        self.positions = getattr(module.config.get_text_config(), "max_position_embeddings", None)
        drawn = {"do_sample": True, "temperature": temperature, "top_k": 0, "top_p": 1.0} if temperature else {}
        self._how = plain_options(self.ends) | drawn

    @torch.no_grad()
    def answers(
        self, prompts: Sequence[list[int]], watch: Callable[[int], None] = lambda tokens: None
    ) -> list[list[int]]:
        """Answers' tokens, each with its end token unless it was cut at the longest or where positions end.

        ``watch`` is told after every step how many tokens the longest one has.
        """
        width = max(map(len, prompts))
        most = self.longest if self.positions is None else max(1, min(self.longest, self.positions - width))
        seen = StoppingCriteriaList([_Watched(lambda tokens: watch(tokens - width))])
        output = self._generate(prompts, GenerationConfig(max_new_tokens=most, **self._how), stopping_criteria=seen)
        return [self._until_end(row) for row in output[:, width:].tolist()]

    def _until_end(self, ids: list[int]) -> list[int]:
        stop = next((place for place, token in enumerate(ids) if token in self.ends), len(ids))
        return ids[: stop + 1]

    def _generate(self, prompts: Sequence[list[int]], how: GenerationConfig, **more: Any) -> Any:
        tokens, attended = _padded(prompts, self._how["pad_token_id"])
        device = next(self.module.parameters()).device
        with configured(self.module, how):
            given = {"input_ids": tokens.to(device), "attention_mask": attended.to(device)}
            return self.module.eval().generate(**given, **more)

    @torch.no_grad()
    def takes_padding(self) -> bool:
        """Whether a short prompt gets the same logits beside a longer one as alone; tried on two of them."""
        vocabulary = self.module.get_input_embeddings().weight.shape[0]
        long = dry_tokens(vocabulary, 1, PROBE[1])[0].tolist()
        short = long[-PROBE[0] :]
        how = GenerationConfig(
            max_new_tokens=2, output_logits=True, return_dict_in_generate=True, **self._how | {"do_sample": False}
        )
        how.eos_token_id = None
        alone, beside = (self._generate(prompts, how) for prompts in ([short], [short, long]))
        pairs = [(one[0].float(), other[0].float()) for one, other in zip(alone.logits, beside.logits, strict=True)]
        same = bool(
            alone.sequences[0, PROBE[0]] == beside.sequences[0, PROBE[1]]
        )  # else the second step differs anyway
        limit = ALIKE.get(self.module.dtype, ROUNDED)
        return all(float((one - other).abs().mean() / one.std()) <= limit for one, other in pairs[: 1 + same])


def rows_at_once(
    generation: Generation, checkpoint: Checkpoint, positions: int, device: str, at_once: dict[str, int]
) -> int:
    """Prompts of a batch, of so many positions with their answers: as many as their cache has room for, at least one,
    and one alone where the model does not take padding.

    Args:
        at_once: type of device -> prompts at most.
    """
    if not generation.takes_padding():
        say("this model does not take padding in front of a prompt: it is asked one prompt at a time")
        return 1
    growth = cache_growth(checkpoint, generation.module.dtype)
    most = by_device(at_once, torch.device(device).type)
    room = total_memory(device) // CACHE_SHARE
    return most if not growth else max(1, min(most, room // (growth * positions)))


def plain_options(ends: list[int]) -> dict[str, Any]:
    """Options of ``generate`` without what a model's files say, but for its end tokens."""
    return {"pad_token_id": ends[0] if ends else 0, "eos_token_id": ends or None, "use_cache": True}


def end_tokens(module: nn.Module, tokenizer: Any) -> list[int]:
    """Tokens at which an answer ends: those that the model's files name, and the tokenizer's."""
    named = [module.generation_config.eos_token_id, module.config.get_text_config().eos_token_id]
    ids = [one for item in (*named, tokenizer.eos_token_id) for one in (item if isinstance(item, list) else [item])]
    return list(dict.fromkeys(int(one) for one in ids if one is not None))


def _padded(prompts: Sequence[list[int]], pad: int) -> tuple[Int[Tensor, "row place"], Int[Tensor, "row place"]]:
    """Tokens with padding in front, and ones where there is none."""
    width = max(map(len, prompts))
    tokens = torch.full((len(prompts), width), pad)
    attended = torch.zeros_like(tokens)
    for row, ids in enumerate(prompts):
        tokens[row, width - len(ids) :] = torch.tensor(ids)
        attended[row, width - len(ids) :] = 1
    return tokens, attended


@contextmanager
def configured(module: nn.Module, how: GenerationConfig) -> Iterator[None]:
    """Generate by ``how`` alone while inside."""
    before, module.generation_config = module.generation_config, how
    try:
        yield
    finally:
        module.generation_config = before
