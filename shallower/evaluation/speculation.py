"""Speculative decoding with a model as the draft of another one: how many tokens the target accepts, and how much
faster it is.

The draft writes a few tokens, the target reads them in one pass and keeps those that it would have written itself, and
one of its own behind them. What is written is the target's own answer, which is checked for every prompt.
Source: speculative decoding (arXiv 2211.17192), through transformers' assisted generation, greedy.
"""

from statistics import median

import torch

from ..anatomy.assisted import AssistedGeneration
from ..anatomy.kernels import fast_products
from ..anatomy.model import Model
from ..artifacts import Draft
from ..data.prompts import Prompts
from ..errors import UserError
from ..runtime.progress import meter
from ..runtime.provenance import device_name
from .agreement import Side

TIED = {torch.float32: 1e-3}  # of the spread of logits, up to which two of them are one but for rounding
TIED_ROUNDED = 0.05  # the same for shorter types


def check_vocabularies(draft: Model, target: Model) -> None:
    """Raise a UserError unless both models name the same tokens by the same numbers."""
    ours, theirs = (one.tokenizer.get_vocab() for one in (draft, target))
    if draft.vocabulary != target.vocabulary or ours != theirs:
        differing = sum(theirs.get(token) != number for token, number in ours.items())
        raise UserError(
            f"{draft.checkpoint.source} has another vocabulary ({draft.vocabulary} tokens, {differing} of them other "
            f"than in {target.checkpoint.source}, which has {target.vocabulary}): a draft must be of the same family",
            as_draft_of=target.checkpoint.source,
        )


def speculate(draft: Side, target: Model, prompts: Prompts, *, longest: int, draft_tokens: int) -> Draft:
    """Answer prompts by the target alone and with a draft, in turns, and hold the answers against each other.

    Args:
        draft: the model that writes ahead.
        longest: most tokens of an answer.
        draft_tokens: how many it writes at a time.
    Raises:
        UserError: a model cannot be used in this way, or an answer is another one.
    """
    runs = AssistedGeneration(target, draft.model.module, longest=longest, draft_tokens=draft_tokens)
    took: list[tuple[float, float]] = []
    tokens = passes = identical = 0
    with meter("as a draft", len(prompts.items)) as done, fast_products(target.module), draft.alone():
        runs.both(prompts.items[0].ids, draft_first=False)  # the first one warms up
        for place, prompt in enumerate(prompts.items):
            alone, ahead = runs.both(prompt.ids, draft_first=bool(place % 2))
            took.append((alone.seconds, ahead.seconds))
            tokens += len(ahead.ids)
            passes += ahead.passes
            identical += ahead.ids == alone.ids
            if ahead.ids != alone.ids:
                _check_tied(target, prompt.ids, ahead.ids, alone.ids)
            done.add()
    return Draft(
        target=target.record.source,
        fingerprint=target.record.fingerprint,
        draft_tokens=draft_tokens,
        prompts=len(took),
        tokens=tokens,
        passes=passes,
        acceptance_length=tokens / passes,
        tokens_per_second=tokens / sum(pair[1] for pair in took),
        plain_tokens_per_second=tokens / sum(pair[0] for pair in took),
        speedup=median(alone / with_draft for alone, with_draft in took),
        identical=identical,
        tied=len(took) - identical,
        device=device_name(target.device),
        threads=torch.get_num_threads(),
    )


@torch.no_grad()
def _check_tied(target: Model, asked: list[int], own: list[int], plain: list[int]) -> None:
    """Raise a UserError unless two answers part where the target's likeliest tokens are equal up to rounding."""
    place = next((n for n, pair in enumerate(zip(own, plain, strict=False)) if pair[0] != pair[1]), None)
    if place is not None:
        tokens = torch.tensor([[*asked, *plain[:place]]], device=target.device)
        logits = target.module(input_ids=tokens).logits[0, -1].float()
        gap = float((logits[plain[place]] - logits[own[place]]).abs() / logits.std())
        if gap <= TIED.get(target.module.dtype, TIED_ROUNDED):
            return
    raise UserError(
        f"with this draft {target.checkpoint.source} writes another answer than alone, so its cache cannot go back "
        "over tokens that are not accepted: it cannot be decoded in this way",
        as_draft_of=target.checkpoint.source,
    )
