"""Trained weights by their names on disk.

What a training changed put into the source's files, everything else as it was.
"""

from collections.abc import Callable, Iterator
from dataclasses import replace

import torch
from torch import Tensor, nn
from transformers.core_model_loading import revert_weight_conversion

from ..errors import UserError
from ..storage.index import TensorEntry
from ..storage.writer import Content, stored_content
from .loading import FLOATS, Checkpoint, quiet
from .patch import Edit, Patch
from .quantised import quantisation_method


def trained_contents(
    checkpoint: Checkpoint, module: nn.Module
) -> tuple[dict[str, Content], dict[str, Callable[[], Tensor]]]:
    """(name on disk -> what to write, name -> the tensor that is meant to lie there).

    Every tensor keeps its name, its place in the order and the dtype that it had; what the model has no place for is
    copied byte for byte, and is not among the second.

    Args:
        module: the trained model, its weights as they were trained (in float32).
    Raises:
        UserError: a trained weight has no counterpart in the files.
    """
    state = {name: value for name, value in module.state_dict().items() if isinstance(value, Tensor)}
    names = checkpoint.names
    reverted = None
    contents: dict[str, Content] = {}
    meant: dict[str, Callable[[], Tensor]] = {}
    for disk, entry in checkpoint.tensors.items():
        memory = names.memory[disk]
        if entry.dtype not in FLOATS:
            contents[disk] = stored_content(entry)
            continue
        if disk in names.plain:
            value = state.get(memory)
        else:  # one of several that the model keeps as one, or the other way round
            if reverted is None:
                with quiet():
                    reverted = dict(revert_weight_conversion(module, dict(state)))
            value = reverted.get(disk)
            if value is None and memory in state:
                raise UserError(
                    f"{checkpoint.source}: what was trained cannot be put back into {disk}: save the model "
                    "anew by transformers first"
                )
        if value is None:
            contents[disk] = stored_content(entry)
        elif tuple(value.shape) != entry.shape:
            raise UserError(
                f"{checkpoint.source}: {disk} was trained as {list(value.shape)} and is stored as {list(entry.shape)}"
            )
        else:
            meant[disk] = _rounding(value, FLOATS[entry.dtype])
            contents[disk] = Content(entry.dtype, entry.shape, entry.bytes, _pieces(meant[disk]))
    return contents, meant


def stored_parts(checkpoint: Checkpoint, module: nn.Module, patch: Patch) -> dict[str, Edit]:
    """Name on disk -> what a weight that is ``set`` becomes there, of those that the files hold in another form (the
    experts of a pile, say).

    Args:
        module: the model, with or without weights.
    """
    apart = {name for disk, name in checkpoint.names.memory.items() if disk not in checkpoint.names.plain}
    parts: dict[str, Edit] = {}
    for name, edit in patch.items():
        if edit.kind == "set" and name in apart:
            with quiet():
                reverted = revert_weight_conversion(module, {name: edit.value})
            parts |= {
                disk: replace(edit, value=value) for disk, value in reverted.items() if disk in checkpoint.tensors
            }
    return parts


def kept_as_they_were(checkpoint: Checkpoint, meant: dict[str, Callable[[], Tensor]]) -> list[str]:
    """Names of stored floating tensors for which the model has no place, and which no training can change."""
    return [name for name, entry in checkpoint.tensors.items() if name not in meant and entry.dtype in FLOATS]


def stored_dtypes(tensors: dict[str, TensorEntry]) -> list[str]:
    """What the floating tensors are stored in, the one that holds most first; in torch's spelling."""
    sizes: dict[str, int] = {}
    for entry in tensors.values():
        if entry.dtype in FLOATS:
            name = str(FLOATS[entry.dtype]).removeprefix("torch.")
            sizes[name] = sizes.get(name, 0) + entry.count
    return sorted(sizes, key=lambda name: -sizes[name])


def storage_of_weights(checkpoint: Checkpoint) -> str:
    """How the weights are stored, for people: the method of packed ones, and the dtypes of the others."""
    kinds = stored_dtypes(checkpoint.tensors) or ["float32"]
    method = f"{quantisation_method(checkpoint.quantised)}, " if checkpoint.quantised is not None else ""
    return method + " and ".join(kinds)


def _rounding(value: Tensor, dtype: torch.dtype) -> Callable[[], Tensor]:
    return lambda: value.detach().to("cpu", dtype).contiguous()


def _pieces(make: Callable[[], Tensor]) -> Callable[[], Iterator[bytes]]:
    def pieces() -> Iterator[bytes]:
        yield make().reshape(-1).view(torch.uint8).numpy().tobytes()

    return pieces
