"""Perplexity by a stated protocol.

The text is tokenised without special tokens, gets its BOS by the rule, and is cut into segments of ``length`` tokens,
the remainder dropped; the perplexity is exp of the mean NLL over all predicted tokens. With the defaults this is the
protocol of Shortened LLaMA (arXiv 2402.02834): 128-token segments that do not overlap, one BOS before the very first
token. With ``stride`` below ``length`` the segments overlap and only tokens not yet predicted count.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from ..anatomy.model import Model
from ..calibration import bos_rule, check_numbers, check_vocabulary, encode, read_text, read_tokens, shipped_text, token_hash
from ..errors import UserError
from ..walk.losses import all_nll


@dataclass(frozen=True)
class Protocol:
    """How a text is cut; ``stride`` None means ``length``; ``max_tokens`` None means the whole text."""

    length: int = 128
    stride: int | None = None
    bos: str = "auto"
    max_tokens: int | None = None

    def __post_init__(self) -> None:
        check_numbers(samples=1, length=self.length, bos=self.bos)
        if self.stride is not None and not 1 <= self.stride <= self.length:
            raise UserError(f"--stride {self.stride}: between 1 and --length ({self.length})")
        if self.max_tokens is not None and self.max_tokens < self.length:
            raise UserError(f"--max-tokens {self.max_tokens}: at least --length ({self.length}) is needed")


@dataclass(frozen=True)
class Segments:
    """Tokens to evaluate on: which predictions count, and a description for the artifact."""

    tokens: Int[Tensor, "segment position"]
    counted: Bool[Tensor, "segment predicted"]
    description: dict[str, Any]


def segments_of_text(text: str, tokenizer, protocol: Protocol, name: str) -> Segments:
    """Cut a text by the protocol.

    Raises:
        UserError: the text is shorter than one segment.
    """
    bos = bos_rule(protocol.bos, tokenizer, every=False)
    ids = encode(tokenizer, text)
    if protocol.max_tokens:
        ids = ids[: protocol.max_tokens]
    if bos == "first":
        ids = [tokenizer.bos_token_id, *ids]
    body = protocol.length - (bos == "every")
    stride = min(protocol.stride or body, body)
    starts = range(0, len(ids) - body + 1, stride)
    if not starts or body < 1:
        raise UserError(f"{name} has {len(ids)} tokens, less than one segment of {protocol.length}: give a longer text or lower --length")
    tokens = torch.tensor([ids[start : start + body] for start in starts])
    if bos == "every":
        tokens = torch.cat([torch.full((len(tokens), 1), tokenizer.bos_token_id), tokens], dim=1)
    counted = torch.ones(len(tokens), protocol.length - 1, dtype=torch.bool)
    if stride < body:
        counted[1:, : protocol.length - 1 - stride] = False
    described = {"length": protocol.length, "stride": stride, "bos": bos}
    return Segments(tokens, counted, described | {"hash": token_hash(tokens)})


def segments_of_tokens(tokens: Int[Tensor, "segment position"]) -> Segments:
    """Given tokens exactly as they are: every row a segment."""
    length = tokens.shape[1]
    described = {"length": length, "stride": length, "bos": "as given", "hash": token_hash(tokens)}
    return Segments(tokens, torch.ones(len(tokens), length - 1, dtype=torch.bool), described)


def evaluation_segments(model: Model, texts: Sequence[str | Path], tokens: str | Path | None, protocol: Protocol) -> dict[str, Segments]:
    """Name -> segments of every source; the shipped evaluation text where none is given."""
    named: dict[str, Segments] = {}
    for path in texts:
        if Path(path).stem in named:
            raise UserError(f"--text: two files are named {Path(path).stem}; their figures would share a name")
        named[Path(path).stem] = segments_of_text(read_text(path), model.tokenizer, protocol, str(path))
    if tokens is not None:
        if Path(tokens).stem in named:
            raise UserError(f"--text and --tokens: both are named {Path(tokens).stem}; their figures would share a name")
        named[Path(tokens).stem] = segments_of_tokens(read_tokens(tokens, model.vocabulary))
    if not named:
        named["shipped"] = segments_of_text(shipped_text("evaluation"), model.tokenizer, protocol, "the shipped text")
    for name, segments in named.items():
        check_vocabulary(segments.tokens, model.vocabulary, f"the tokenizer on {name}")
    return named


def perplexity(model: Model, segments: Segments, *, removed: Iterable[int] = (), label: str = "perplexity") -> dict[str, Any]:
    """exp of the mean NLL of the counted predictions, with the protocol beside it.

    Args:
        removed: layers to leave out virtually.
    Raises:
        UserError: the model yields NaN or infinite losses.
    """
    nll = all_nll(model, segments.tokens, removed, label)
    count = int(segments.counted.sum())
    mean = float(nll[segments.counted].double().sum()) / count
    if not math.isfinite(mean):
        raise UserError("the model yields NaN or infinite losses on this text: are its weights whole, and does the dtype suffice?")
    return {"value": math.exp(min(mean, 700.0)), "nll": mean, "tokens": count, "segments": len(segments.tokens), **segments.description}
