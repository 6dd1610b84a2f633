"""Proof of an exported .gguf file: llama.cpp gives of it what transformers gives of the model; of a copy, its weights
are the model's.
"""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float

from ..anatomy.model import Model
from ..artifacts.exported import ExportProof
from ..errors import Refusal
from ..storage.gguf import GgufHeader, read_gguf
from ..surgery.gguf_changes import check_same
from ..surgery.gguf_proof import probe_prompts, vocabulary_size
from ..surgery.gguf_rules import layer_count
from ..surgery.gguf_unpacked import unpacked
from ..surgery.llama_cpp import PACKAGE, Judged, judged, llama_cpp_version

TEXTS = (
    "The ship left at 7:45, didn't it?",
    "def add(a, b):\n\treturn a + b  # 12345",
    "Überraschung in 北京: naïve!",
)
EXACT = 1e-4  # of an f32 file: relative difference
CLOSE = 0.05  # of other types: KL divergence in nats
Rows = Float[np.ndarray, "prompt token"]


def proof_of_conversion(model: Model, file: Path, *, exact: bool) -> ExportProof:
    """Proof of a converted file: the same log-probabilities, and the same tokens of texts.

    Args:
        exact: nothing in it is rounded.
    Raises:
        Refusal: llama.cpp gives other ones.
    """
    header = read_gguf(file)
    prompts = probe_prompts(header)
    judge = _judge(file, header, prompts)
    _check_tokens(model, judge.tokens)
    proof = _held(judge.values, _wanted(model, prompts), prompts)
    if not (proof.difference <= EXACT if exact else proof.divergence <= CLOSE):
        raise Refusal(
            f"llama.cpp gives other values for the file than transformers for the model (difference "
            f"{proof.difference:.3g}, KL {proof.divergence:.3g} nats): it computes {header.architecture} with "
            f"{layer_count(header)} layers otherwise, or the converter has left something out"
        )
    return proof


def proof_of_copy(model: Model, file: Path, roundings: Mapping[str, float]) -> ExportProof:
    """Proof of a copied file: what it is unpacked to has the model's weights, but for the rounding that is told.

    That llama.cpp computes it as the file that it was copied from was proven before. How far it is from transformers
    is told: it rounds activations, which costs a model more the worse it is.

    Args:
        roundings: by the name of each weight that was stored anew, its relative error; all others have to be equal.
    Raises:
        Refusal: a weight is another one.
    """
    header = read_gguf(file)
    prompts = probe_prompts(header)
    meant = _wanted(model, prompts)
    model.unload()
    with unpacked(file) as written:
        check_same(written, model, roundings)
        wanted = _wanted(written, prompts)
    judge = _judge(file, header, prompts)
    held = _held(judge.values, wanted, prompts)
    same = bool((judge.values[:, : meant.shape[1]].argmax(-1) == meant.argmax(-1)).all())
    return ExportProof(**{**vars(held), "same_next": same, "rounded": _divergence(meant, wanted)})


def rounding_cost(model: Model, file: Path) -> float:
    """KL divergence in nats of a file of few bits from the model, in llama.cpp, the largest of the prompts."""
    header = read_gguf(file)
    prompts = probe_prompts(header)
    meant = _wanted(model, prompts)
    return _divergence(meant, _judge(file, header, prompts).values[:, : meant.shape[1]])


def _judge(file: Path, header: GgufHeader, prompts: list[list[int]]) -> Judged:
    return judged(file, prompts, vocabulary_size(header), exact=True, texts=TEXTS)


@torch.no_grad()
def _wanted(model: Model, prompts: list[list[int]]) -> Rows:
    """Log-probabilities behind prompts in transformers."""
    logits = [model.module(torch.tensor([prompt])).logits[0, -1] for prompt in prompts]
    return torch.stack(logits).double().log_softmax(-1).numpy()


def _held(found: Rows, wanted: Rows, prompts: list[list[int]]) -> ExportProof:
    """llama.cpp's values against transformers'."""
    found = found[:, : wanted.shape[1]]
    return ExportProof(
        by=f"llama.cpp ({PACKAGE} {llama_cpp_version()})",
        difference=float(np.abs(found - wanted).max() / np.abs(wanted).max()),
        divergence=_divergence(wanted, found),
        same_next=bool((found.argmax(-1) == wanted.argmax(-1)).all()),
        prompts=[*map(len, prompts)],
    )


def _check_tokens(model: Model, found: list[list[int]]) -> None:
    """Raise a Refusal unless llama.cpp makes the same tokens of texts as the model's own tokenizer."""
    for text, tokens in zip(TEXTS, found, strict=True):
        own = model.tokenizer(text, add_special_tokens=False).input_ids
        if own != tokens:
            raise Refusal(
                f"the tokenizer that the converter has written makes other tokens of {text!r} ({tokens[:6]}) than the "
                f"model's own ({own[:6]}): the file would be wrong"
            )


def _divergence(wanted: Rows, found: Rows) -> float:
    """KL divergence in nats, the largest of the prompts."""
    return float((np.exp(wanted) * (wanted - found)).sum(-1).max().clip(0))
