"""Lean embedding and head: those of a layered model at a wider dtype than they are stored in, without holding either
at that width.

For the few tokens of a proof: of the embedding only the rows of these tokens take memory, and the head is multiplied a
block of rows at a time. Widening is exact, so the results are those of the whole matrices in the wider dtype.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from ..storage.index import TensorEntry
from .loading import FLOATS, Checkpoint

LEAN_ROWS = 2048  # of the head that are widened at once


@dataclass(frozen=True)
class LeanEnds:
    """What is put in place of the two large matrices outside the layers.

    Attributes:
        skipped: their names in the files, which are not read as a whole.
        install: puts them into the model.
    """

    skipped: frozenset[str]
    install: Callable[[], None]


def lean_ends(checkpoint: Checkpoint, skeleton: nn.Module, tokens: Tensor) -> LeanEnds | None:
    """The two ends for these tokens only, or None where they cannot be told apart in the files or need no widening.

    Args:
        skeleton: the model with parameters on the meta device, in the dtype to compute in.
    """
    embedding, head = skeleton.get_input_embeddings(), skeleton.get_output_embeddings()
    if type(head) is not nn.Linear or head.bias is not None or getattr(embedding, "weight", None) is None:
        return None
    names = {id(parameter): name for name, parameter in skeleton.named_parameters(remove_duplicate=False)}
    disk = {memory: name for name, memory in checkpoint.names.memory.items() if name in checkpoint.names.plain}
    first, last = (disk.get(names.get(id(end.weight), "")) for end in (embedding, head))
    tied = head.weight is embedding.weight
    first, last = (first or last, last or first) if tied else (first, last)
    if first is None or last is None:
        return None
    rows, whole = checkpoint.tensors[first], checkpoint.tensors[last]
    kind = skeleton.dtype
    narrow = all(entry.dtype in FLOATS and FLOATS[entry.dtype].itemsize < kind.itemsize for entry in (rows, whole))
    if not narrow or rows.shape != tuple(embedding.weight.shape) or whole.shape != tuple(head.weight.shape):
        return None

    def install() -> None:
        embedding.weight = nn.Parameter(_some_rows(rows, tokens, kind), requires_grad=False)
        head.weight = nn.Parameter(
            torch.zeros((), dtype=kind).expand(whole.shape), requires_grad=False
        )  # takes no memory
        head.forward = lambda stream: torch.cat([linear(stream, part) for part in _blocks(whole, kind)], dim=-1)

    return LeanEnds(frozenset({first, last}), install)


def _some_rows(entry: TensorEntry, tokens: Tensor, dtype: torch.dtype) -> Tensor:
    """The matrix with zeros but for the rows of these tokens; memory that is never touched is never taken."""
    matrix = torch.from_numpy(
        np.zeros(entry.shape, dtype={2: np.float16, 4: np.float32, 8: np.float64}[dtype.itemsize])
    )
    size = entry.bytes // entry.shape[0]
    with entry.file.open("rb") as stream:
        for row in tokens.unique().tolist():
            stream.seek(entry.start + row * size)
            matrix[row] = torch.frombuffer(bytearray(stream.read(size)), dtype=FLOATS[entry.dtype]).to(dtype)
    return matrix


def _blocks(entry: TensorEntry, dtype: torch.dtype):
    """The matrix's rows in the wider dtype, a block at a time, read anew each time."""
    size = entry.bytes // entry.shape[0]
    with entry.file.open("rb") as stream:
        stream.seek(entry.start)
        for start in range(0, entry.shape[0], LEAN_ROWS):
            count = min(LEAN_ROWS, entry.shape[0] - start)
            raw = torch.frombuffer(bytearray(stream.read(count * size)), dtype=FLOATS[entry.dtype])
            yield raw.view(count, *entry.shape[1:]).to(dtype)
