"""Perplexity by a stated protocol.

The text is tokenised without special tokens, gets its BOS by the rule, and is cut into segments of ``length`` tokens,
the remainder dropped; the perplexity is exp of the mean NLL over all predicted tokens. With the defaults this is the
protocol of Shortened LLaMA (arXiv 2402.02834): 128-token segments that do not overlap, one BOS before the very first
token. With ``stride`` below ``length`` the segments overlap and only tokens not yet predicted count.
"""

import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Int
from torch import Tensor

from ..anatomy.model import Model
from ..artifacts import Perplexity
from ..artifacts.removal import NOTHING, Removal
from ..data.readers import read_text, shipped_text
from ..data.tokens import bos_rule, check_vocabulary, encode, read_tokens, token_hash
from ..errors import UserError, argument
from ..settings.calibration import Paths, listed_paths
from ..settings.evaluation import PROTOCOLS, Protocol
from ..storage.journal import NO_JOURNAL, Journal
from ..walk.removals import all_nll
from .health import first_broken

LARGEST_NLL = 700.0  # exp of more is not a number any longer


def settled_protocol(protocol: Protocol, model: Model) -> Protocol:
    """The same with its length settled: as given, else the name's, within the positions that the model knows."""
    if protocol.length is not None:
        return protocol
    known = model.checkpoint.positions or PROTOCOLS[protocol.name]
    return replace(protocol, length=min(PROTOCOLS[protocol.name], known))


@dataclass(frozen=True)
class Segments:
    """Tokens to evaluate on: which predictions count, and a description for the artifact."""

    tokens: Int[Tensor, "segment position"]
    counted: Bool[Tensor, "segment predicted"]
    description: dict[str, Any]
    bytes: int | None = None  # of UTF-8 that the counted predictions stand for


def segments_of_text(text: str, tokenizer, protocol: Protocol, name: str) -> Segments:
    """Cut a text by the protocol.

    Raises:
        UserError: the text is shorter than one segment.
    """
    bos = bos_rule(protocol.bos, tokenizer, every=False)
    ids, sizes = _encode(tokenizer, text, protocol.max_tokens)
    if bos == "first":
        ids = [tokenizer.bos_token_id, *ids]
        sizes = None if sizes is None else np.concatenate([[0], sizes])
    body = protocol.length - (bos == "every")
    stride = min(protocol.stride or body, body)
    starts = range(0, len(ids) - body + 1, stride)
    if not starts or body < 1:
        raise UserError(
            f"{name} has {len(ids)} tokens, less than one segment of {protocol.length}: give a longer text or "
            f"lower {argument('length')}"
        )
    tokens = torch.tensor([ids[start : start + body] for start in starts])
    if bos == "every":
        tokens = torch.cat([torch.full((len(tokens), 1), tokenizer.bos_token_id), tokens], dim=1)
    counted = torch.ones(len(tokens), protocol.length - 1, dtype=torch.bool)
    if stride < body:
        counted[1:, : protocol.length - 1 - stride] = False
    description = {"length": protocol.length, "stride": stride, "bos": bos, "hash": token_hash(tokens)}
    if sizes is None:
        return Segments(tokens, counted, description)
    spans = np.stack([sizes[start : start + body] for start in starts])[:, (bos != "every") :]
    return Segments(tokens, counted, description, int(spans[counted.numpy()].sum()))


def _encode(tokenizer, text: str, most: int | None) -> tuple[list[int], np.ndarray | None]:
    """The first tokens of a text, and the bytes of UTF-8 from each to the next, (token,).

    None where the tokenizer cannot tell.
    """
    if not tokenizer.is_fast:
        return encode(tokenizer, text)[:most], None
    encoding = tokenizer(text, add_special_tokens=False, verbose=False, return_offsets_mapping=True)
    before = np.concatenate([[0], np.cumsum([len(character.encode()) for character in text])])
    starts = before[[start for start, _ in encoding.offset_mapping] + [len(text)]]
    return encoding.input_ids[:most], np.diff(starts)[:most]


def segments_of_tokens(tokens: Int[Tensor, "segment position"]) -> Segments:
    """Given tokens exactly as they are: every row a segment."""
    length = tokens.shape[1]
    description = {"length": length, "stride": length, "bos": "as given", "hash": token_hash(tokens)}
    return Segments(tokens, torch.ones(len(tokens), length - 1, dtype=torch.bool), description)


def evaluation_segments(
    model: Model, texts: Paths, tokens: str | Path | None, protocol: Protocol, what: str = "texts"
) -> dict[str, Segments]:
    """Name -> segments of every source; the shipped evaluation text where none is given.

    Args:
        what: the argument that the texts were given by, for messages.
    """
    protocol = settled_protocol(protocol, model)
    named: dict[str, Segments] = {}
    for path in listed_paths(texts):
        if Path(path).stem in named:
            raise UserError(
                f"{argument(what)}: two files are named {Path(path).stem}; their figures would share a name"
            )
        named[Path(path).stem] = segments_of_text(read_text(path, what), model.tokenizer, protocol, str(path))
    if tokens is not None:
        if Path(tokens).stem in named:
            raise UserError(
                f"{argument(what)} and {argument('tokens')}: both are named {Path(tokens).stem}; their figures would "
                "share a name"
            )
        named[Path(tokens).stem] = segments_of_tokens(read_tokens(tokens, model.vocabulary))
    if not named:
        named["shipped"] = segments_of_text(shipped_text("evaluation"), model.tokenizer, protocol, "the shipped text")
    for name, segments in named.items():
        check_vocabulary(segments.tokens, model.vocabulary, f"the tokenizer on {name}")
    return named


def perplexity(
    model: Model,
    segments: Segments,
    *,
    removal: Removal = NOTHING,
    label: str = "perplexity",
    journal: Journal = NO_JOURNAL,
) -> Perplexity:
    """exp of the mean NLL of the counted predictions, with the protocol beside it.

    Args:
        removal: what to leave out virtually.
        journal: keeps how far it has come.
    Raises:
        UserError: the model yields NaN or infinite losses.
    """
    nll = all_nll(model, segments.tokens, removal, label, journal).double()
    sums = (nll * segments.counted).sum(1)
    if not math.isfinite(float(sums.sum())):
        row = segments.tokens[(~nll.isfinite()).any(1)][:1]
        raise UserError(f"the model yields NaN or infinite losses on this text: {first_broken(model, row, removal)}")
    parts = [(round(float(total), 6), int(number)) for total, number in zip(sums, segments.counted.sum(1), strict=True)]
    return replace(figures_of(segments, float(sums.sum())), parts=parts)


def figures_of(segments: Segments, total: float) -> Perplexity:
    """Perplexity record of a text, from the NLL in nats summed over its counted predictions.

    The protocol beside it.
    """
    count = int(segments.counted.sum())
    return Perplexity(
        value=perplexity_of(total / count),
        nll=total / count,
        bits_per_byte=total / math.log(2) / segments.bytes if segments.bytes else None,
        tokens=count,
        segments=len(segments.tokens),
        **segments.description,
    )


def perplexity_of(nll: float) -> float:
    """exp of a mean NLL in nats, or of a difference of two, as large as a number can be."""
    return math.exp(min(nll, LARGEST_NLL))
