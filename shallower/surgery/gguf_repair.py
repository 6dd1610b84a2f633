"""GGUF repair: changes of weights that were found on the unpacked model, put back into the form that a .gguf file has.

Which tensor of the file a weight is, and in what form (rows of heads in another order, a norm's gain plus one, the
matrix turned), is found by the numbers: the form of the unchanged tensor that is the unchanged weight. Changed tensors
keep their type where the gguf package can write it, else they become Q8_0.
"""

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from gguf.constants import GGMLQuantizationType
from gguf.quants import dequantize, quantize
from safetensors import safe_open
from torch import Tensor

from ..anatomy.gguf import read_gguf_tensor
from ..anatomy.model import Model
from ..anatomy.patch import Edit, Patch
from ..errors import Refusal
from ..storage.gguf import BLOCKS, GgufHeader, GgufTensor
from ..storage.gguf_writer import Remade
from .gguf_rules import LAYER

WRITABLE = ("F32", "F16", "BF16", "Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1")  # types that the gguf package writes
INSTEAD = ("Q8_0", "F16")  # of others: the first whose blocks divide the rows
ELEMENTS = {label: elements for label, elements, _ in BLOCKS.values()}
CLOSE = 1e-6  # of numbers to which one was added and taken away
Form = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class _Place:
    """Where a weight lies in a file: its tensor, and what turns the weight into the tensor's form."""

    tensor: GgufTensor
    form: Form


@dataclass(frozen=True)
class GgufRepair:
    """Tensors to be made anew, by their names in the file, and how far rounding takes them from what is meant."""

    remade: dict[str, Remade]
    rounding: float


def remade_tensors(header: GgufHeader, model: Model, patch: Patch) -> GgufRepair:
    """The changed tensors of a file.

    Args:
        model: that the file was unpacked to.
        patch: changes of its weights.
    Raises:
        Refusal: a changed weight is in no tensor of the file in a form that is known.
    """
    remade = {}
    rounding = 0.0
    for name, edit in patch.items():
        weight = _unpacked(model, name)
        place = _place(header, model, name, weight)
        kind = _kind(place.tensor)
        value = place.form(edit.of(weight))
        error = float((_decoded(_encoded(value, kind), kind, value.shape) - value).norm() / value.norm())
        rounding = max(rounding, error)
        remade[place.tensor.name] = Remade(kind, _maker(model, name, edit, place, kind))
    return GgufRepair(remade, rounding)


def _maker(model: Model, name: str, edit: Edit, place: _Place, kind: str) -> Callable[[], bytes]:
    """Makes the bytes anew, so that they are not kept."""
    return lambda: _encoded(place.form(edit.of(_unpacked(model, name))), kind)


def _unpacked(model: Model, name: str) -> Tensor:
    """A weight of the unpacked model, read from its file."""
    checkpoint, names = model.checkpoint, model.checkpoint.names
    disk = next((one for one in names.plain if names.memory[one] == name), None)
    if disk is None:
        raise Refusal(f"{name} is not in the unpacked file as it is in memory, so it cannot be put into a .gguf file")
    with safe_open(checkpoint.tensors[disk].file, "pt") as content:
        return content.get_tensor(disk).float()


def _place(header: GgufHeader, model: Model, name: str, weight: Tensor) -> _Place:
    match = re.fullmatch(rf"{re.escape(model.outline.name)}\.(\d+)\..*", name)
    for tensor in header.tensors:
        layer = LAYER.match(tensor.name)
        here = layer is not None and match is not None and layer[1] == match[1]
        if here and tensor.count == weight.numel():
            stored = read_gguf_tensor(header, tensor)
            for form in _forms(header, weight):
                if (turned := form(weight)).shape == stored.shape and torch.allclose(turned, stored, CLOSE, CLOSE):
                    return _Place(tensor, form)
    raise Refusal(
        f"{name} is in no tensor of {header.file.name} in a form that is known: give a folder, and export that"
    )


def _forms(header: GgufHeader, weight: Tensor) -> Iterator[Form]:
    """What a weight may look like in a file: as it is, plus one, turned, or rows of heads in another order."""
    yield lambda value: value
    yield lambda value: value + 1
    if weight.dim() == 2:
        yield lambda value: value.T.contiguous()
    for key in ("attention.head_count", "attention.head_count_kv"):
        heads = header.own(key)
        if isinstance(heads, int) and heads > 0 and weight.shape[0] % (2 * heads) == 0:
            yield _interleaved(heads)


def _interleaved(heads: int) -> Form:
    """Rows of every head, both halves in turn, as llama.cpp rotates them; transformers keeps the halves apart."""

    def form(value: Tensor) -> Tensor:
        halves = value.reshape(heads, 2, value.shape[0] // heads // 2, *value.shape[1:])
        return halves.swapaxes(1, 2).reshape(value.shape).contiguous()

    return form


def _kind(tensor: GgufTensor) -> str:
    if tensor.kind in WRITABLE:
        return tensor.kind
    return next((kind for kind in INSTEAD if tensor.shape[0] % ELEMENTS[kind] == 0), "F16")


def _encoded(value: Tensor, kind: str) -> bytes:
    """A tensor's bytes in a type of ggml."""
    return quantize(np.ascontiguousarray(value.float().numpy()), GGMLQuantizationType[kind]).tobytes()


def _decoded(raw: bytes, kind: str, shape: torch.Size) -> Tensor:
    rows = np.frombuffer(raw, dtype=np.uint8).reshape(*shape[:-1], -1)
    values = dequantize(rows, GGMLQuantizationType[kind])
    return torch.from_numpy(np.ascontiguousarray(values).reshape(tuple(shape)).copy()).float()
