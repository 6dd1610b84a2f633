"""GGUF repair: changes of weights of the unpacked model, put back into the form that a .gguf file has.

Which tensor of the file a weight is, and in what form (rows of heads in another order, a norm's gain plus one, the
matrix turned), is found by the numbers: the form of the unchanged tensor that is the unchanged weight; where several
are, the gguf package's table of names decides. Changed tensors keep their type where the gguf package can write it,
else they become Q8_0.
"""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from gguf.constants import MODEL_ARCH_NAMES, GGMLQuantizationType
from gguf.quants import dequantize, quantize
from gguf.tensor_mapping import get_tensor_name_map
from torch import Tensor

from ..anatomy.gguf import read_gguf_tensor
from ..anatomy.model import Model
from ..anatomy.patch import Patch
from ..errors import Refusal
from ..storage.gguf import BLOCKS, GgufHeader, GgufTensor
from ..storage.gguf_writer import Remade
from .gguf_rules import LAYER, layer_count

WRITABLE = ("F32", "F16", "BF16", "Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1")  # types that the gguf package writes
INSTEAD = ("Q8_0", "F16")  # of others: the first whose blocks divide the rows
ELEMENTS = {label: elements for label, elements, _ in BLOCKS.values()}
LEAST = 1e-30
CLOSE = 1e-6  # of numbers to which one was added and taken away
Form = Callable[[Tensor], Tensor]
Changes = Mapping[str, Callable[[Tensor], Tensor]]  # name in memory -> what the weight becomes


@dataclass(frozen=True)
class _Place:
    """Where a weight lies in a file: its tensor, and what turns the weight into the tensor's form."""

    tensor: GgufTensor
    form: Form


@dataclass(frozen=True)
class GgufRepair:
    """Tensors to be made anew, by their names in the file, and how far rounding takes each from what is meant, by its
    name in memory, numbered as in the file.
    """

    remade: dict[str, Remade]
    roundings: dict[str, float]

    @property
    def rounding(self) -> float:
        """The largest."""
        return max(self.roundings.values(), default=0.0)


def remade_tensors(header: GgufHeader, model: Model, patch: Patch) -> GgufRepair:
    """The tensors of a file that a patch changes (see ``remade_by``)."""
    return remade_by(header, model, {name: edit.of for name, edit in patch.items()})


def remade_by(header: GgufHeader, model: Model, changes: Changes, kind: str | None = None) -> GgufRepair:
    """The changed tensors of a file.

    Args:
        model: that the file was unpacked to.
        changes: of its weights, by their names in memory, numbered as in the file.
        kind: type that they are written in, where rows divide into its blocks; None: their own.
    Raises:
        Refusal: a changed weight is in no tensor of the file in a form that is known.
    """
    remade, roundings = {}, {}
    for name, change in changes.items():
        weight = _unpacked(model, name)
        for place in _places(header, model, name, weight):
            stored = _kind(place.tensor, kind)
            value = place.form(change(weight))
            if not bool(value.isfinite().all()):
                raise Refusal(f"{name} holds numbers that are not finite")
            error = (_decoded(_encoded(value, stored), stored, value.shape) - value).norm()
            roundings[name] = max(roundings.get(name, 0.0), float(error / value.norm().clamp_min(LEAST)))
            remade[place.tensor.name] = Remade(stored, _maker(model, name, change, place, stored))
    return GgufRepair(remade, roundings)


def _maker(model: Model, name: str, change: Form, place: _Place, kind: str) -> Callable[[], bytes]:
    """Makes the bytes anew, so that they are not kept."""
    return lambda: _encoded(place.form(change(_unpacked(model, name))), kind)


def _unpacked(model: Model, name: str) -> Tensor:
    """A weight of the unpacked model, read from its file."""
    disk = model.checkpoint.names.stored.get(name)
    if disk is None:
        raise Refusal(f"{name} is not in the unpacked file as it is in memory, so it cannot be put into a .gguf file")
    return model.checkpoint.tensor(disk).float()


def _places(header: GgufHeader, model: Model, name: str, weight: Tensor) -> list[_Place]:
    """Where a weight lies: one tensor of its layer, or all that an embedding is, which may be the head too."""
    match = re.fullmatch(rf"{re.escape(model.outline.name)}\.(\d+)\..*", name)
    found = []
    for tensor in header.tensors:
        layer = LAYER.match(tensor.name)
        here = match[1] if match else None
        if (layer[1] if layer else None) == here and tensor.count == weight.numel():
            stored = read_gguf_tensor(header, tensor)
            forms = (form for form in _forms(header, weight) if _same(form(weight), stored))
            found += [_Place(tensor, form) for form in forms][:1]
    if not found:
        raise Refusal(
            f"{name} is in no tensor of {header.file.name} in a form that is known: give a folder, and export that"
        )
    tied = match is None and _is_tied(model, name)
    return found if tied or len(found) == 1 else [_named(header, name, found)]


def _is_tied(model: Model, name: str) -> bool:
    """Whether a weight outside the layers is the embedding of a model whose head is the same weight."""
    embedding = model.checkpoint.shapes.get_input_embeddings().weight
    return model.tied and model.checkpoint.shapes.get_parameter(name) is embedding


def _same(one: Tensor, other: Tensor) -> bool:
    return one.shape == other.shape and torch.allclose(one, other, CLOSE, CLOSE)


def _named(header: GgufHeader, name: str, found: Sequence[_Place]) -> _Place:
    """The one of several tensors with the same numbers that the gguf package's table of names says.

    Raises:
        Refusal: it says none.
    """
    arch = next((arch for arch, label in MODEL_ARCH_NAMES.items() if label == header.architecture), None)
    table = get_tensor_name_map(arch, layer_count(header)) if arch is not None else None
    said = table.get_name(name, try_suffixes=(".weight", ".bias")) if table is not None else None
    place = next((one for one in found if one.tensor.name == said), None)
    if place is None:
        names = ", ".join(one.tensor.name for one in found)
        raise Refusal(f"{name} may be any of {names} by its numbers: give a folder, and export that")
    return place


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


def _kind(tensor: GgufTensor, wanted: str | None) -> str:
    """The type that a changed tensor is written in; vectors keep theirs."""
    kind = wanted if wanted is not None and len(tensor.shape) > 1 else tensor.kind
    if kind in WRITABLE and tensor.shape[0] % ELEMENTS[kind] == 0:
        return kind
    return next((kind for kind in INSTEAD if tensor.shape[0] % ELEMENTS[kind] == 0), "F16")


def _encoded(value: Tensor, kind: str) -> bytes:
    """A tensor's bytes in a type of ggml."""
    return quantize(np.ascontiguousarray(value.float().numpy()), GGMLQuantizationType[kind]).tobytes()


def _decoded(raw: bytes, kind: str, shape: torch.Size) -> Tensor:
    rows = np.frombuffer(raw, dtype=np.uint8).reshape(*shape[:-1], -1)
    values = dequantize(rows, GGMLQuantizationType[kind])
    return torch.from_numpy(np.ascontiguousarray(values).reshape(tuple(shape)).copy()).float()
