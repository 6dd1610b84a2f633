"""Pruned .gguf files: written by copying, some tensors made anew, and proven before they are called so."""

import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..artifacts.gguf import GgufProof
from ..storage.gguf import SUFFIX, GgufHeader
from ..storage.gguf_writer import GgufValue, Remade, Renamed, write_gguf
from .gguf_proof import prove
from .gguf_rules import kept_tensors, marks, metadata_without, original_layers

LONGEST = 120  # letters of a value that is told


@dataclass(frozen=True)
class WrittenGguf:
    """What was written.

    Attributes:
        original: numbers of the layers that stay, in the first model.
        changes: metadata that changed, in words.
        seconds: of writing, the proof left out.
    """

    tensors: list[Renamed]
    original: list[int]
    changes: list[str]
    proof: GgufProof | None
    seconds: float


def write_without(
    header: GgufHeader, removed: Sequence[int], out: Path, remade: Mapping[str, Remade], *, verify: bool
) -> WrittenGguf:
    """Write a file without some layers of another one; where none goes, there is nothing to be proven.

    Args:
        remade: tensors that are made anew, by their names in the other file.
    Raises:
        Refusal: llama.cpp would get the result wrong, or the proof fails; nothing is left at ``out``.
    """
    every = original_layers(header)
    kept = [index for index in range(len(every)) if index not in {*removed}]
    original = [every[index] for index in kept]
    tensors = kept_tensors(header, kept, remade)
    changes = metadata_without(header, removed) if removed else {}
    proof = _proof(header, removed, out, tensors, changes, remade) if removed and verify else None
    said = f"{proof.by} {proof.version}, largest difference {proof.difference:.3g}" if proof else "none"
    changes |= marks(removed, original, said)
    started = time.monotonic()
    write_gguf(header, out, tensors, changes)
    seconds = time.monotonic() - started
    told = [f"{key} = {_shortened(value.value)}" for key, value in changes.items()]
    return WrittenGguf(tensors, original, told, proof, seconds)


def _proof(
    header: GgufHeader,
    removed: Sequence[int],
    out: Path,
    tensors: list[Renamed],
    changes: dict[str, GgufValue],
    remade: Mapping[str, Remade],
) -> GgufProof:
    """Proof of the file, which lies beside its place until then."""
    unproven = out.with_name(f".{out.stem}.{os.getpid()}.unproven{SUFFIX}")
    try:
        return prove(header, removed, write_gguf(header, unproven, tensors, changes), remade)
    finally:
        unproven.unlink(missing_ok=True)


def _shortened(value: Any) -> str:
    text = str(value)
    return text if len(text) <= LONGEST else f"{text[: LONGEST - 3]}..."
