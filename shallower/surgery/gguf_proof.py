"""Proof of a pruned .gguf file: it gives the log-probabilities of the unpruned one whose removed layers add nothing to
the stream.

In llama.cpp where xllamacpp is installed: the unpruned file is written a second time, with zero bytes in the tensors by
which the removed layers write into the stream, and both are asked. Else in transformers, by virtual removal.
"""

import importlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from importlib import metadata
from pathlib import Path

import numpy as np

from ..artifacts.gguf import GgufProof
from ..errors import Refusal
from ..runtime.progress import say
from ..storage.gguf import GgufHeader
from ..storage.gguf_writer import Remade, Renamed, write_gguf
from .gguf_rules import KNOWN, NONE, silenced_tensors
from .llama_cpp import PACKAGE, llama_cpp_version, log_probabilities

LENGTHS = (5, 33)  # tokens of the prompts
BEYOND, LONGEST = 40, 1100  # of a sliding window, that a further prompt is longer than it; and at most
TOLERANCE = 1e-5  # of a log-probability


def prove(header: GgufHeader, removed: Sequence[int], written: Path, remade: Mapping[str, Remade] = NONE) -> GgufProof:
    """Proof of a written file.

    Args:
        header: of the unpruned file.
        remade: what a repair has made anew, by the names in the unpruned file.
    Raises:
        Refusal: they differ, or nothing is there to prove an architecture whose rules are not known.
    """
    version = llama_cpp_version()
    prompts = probe_prompts(header)
    if version is not None:
        proof = _by_llama_cpp(header, removed, written, remade, prompts, version)
    elif header.architecture not in KNOWN:
        raise Refusal(
            f"what llama.cpp decides by the numbers of layers in {header.architecture} is not known here: pip install "
            f"{PACKAGE} (extra [export]), with which every file is proven"
        )
    else:
        proof = _by_transformers(header, removed, written, remade, prompts)
    if not proof.difference <= TOLERANCE:
        raise Refusal(
            f"{proof.by} gives other values for the pruned {header.architecture} than for the unpruned one without "
            f"these layers (a log-probability by {proof.difference:.3g}): it counts layers in a way not known here"
        )
    return proof


def vocabulary_size(header: GgufHeader) -> int:
    """Rows of the embedding."""
    rows = [
        tensor.shape[1] for tensor in header.tensors if tensor.name == "token_embd.weight" and len(tensor.shape) == 2
    ]
    if not rows:
        raise Refusal(f"{header.file} has no token embedding: it is no decoder language model")
    return rows[0]


def probe_prompts(header: GgufHeader) -> list[list[int]]:
    """Random tokens, always the same; one prompt is longer than the sliding window, where that is short enough."""
    window, context = header.own("attention.sliding_window"), header.own("context_length")
    most = min(LONGEST, context) if isinstance(context, int) else LONGEST
    lengths = [*LENGTHS]
    if isinstance(window, int) and 0 < window <= most - BEYOND:
        lengths.append(window + BEYOND)
    draw = np.random.default_rng(0)
    return [draw.integers(3, vocabulary_size(header), length).tolist() for length in lengths]


def _by_llama_cpp(
    header: GgufHeader,
    removed: Sequence[int],
    written: Path,
    remade: Mapping[str, Remade],
    prompts: list[list[int]],
    version: str,
) -> GgufProof:
    size = vocabulary_size(header)
    say(f"proving in llama.cpp ({PACKAGE} {version}): both files are loaded")
    with _beside(header, written, silenced_tensors(header, removed, remade)) as neutral:
        wanted = log_probabilities(neutral, prompts, size)
    found = log_probabilities(written, prompts, size)
    difference = _difference(found, wanted)
    return GgufProof(by="llama.cpp", version=version, difference=difference, prompts=[*map(len, prompts)])


def _by_transformers(
    header: GgufHeader,
    removed: Sequence[int],
    written: Path,
    remade: Mapping[str, Remade],
    prompts: list[list[int]],
) -> GgufProof:
    unpacked = importlib.import_module(".gguf_unpacked", __package__)  # loads what the copy alone does not need
    if remade:
        every = [Renamed(tensor.name, tensor, remade=remade.get(tensor.name)) for tensor in header.tensors]
        with _beside(header, written, every) as whole:
            wanted = unpacked.log_probabilities(whole, removed, prompts)
    else:
        wanted = unpacked.log_probabilities(header.file, removed, prompts, keep=True)
    found = unpacked.log_probabilities(written, (), prompts)
    version = metadata.version("transformers")
    difference = _difference(found, wanted)
    return GgufProof(by="transformers", version=version, difference=difference, prompts=[*map(len, prompts)])


@contextmanager
def _beside(header: GgufHeader, written: Path, tensors: Sequence[Renamed]) -> Iterator[Path]:
    """The unpruned file with these tensors, beside the written one for a while."""
    neutral = written.with_suffix(".neutral.gguf")
    try:
        yield write_gguf(header, neutral, tensors, {})
    finally:
        with suppress(FileNotFoundError):
            neutral.unlink()


def _difference(found: np.ndarray, wanted: np.ndarray) -> float:
    """Largest difference; tokens that both rule out are alike."""
    same = (found == wanted) | (np.isneginf(found) & np.isneginf(wanted))
    return float(np.abs(np.where(same, 0.0, found - wanted)).max())
