"""Agreement of a config with its weight files, found from names and shapes alone, before anything is built at full
size.

A config may say anything: thousands of layers, tables of terabytes. What it describes is bounded by what the files
hold: a model is built without memory and given up as soon as it has many times more parameters than there are tensors;
then its tables, the depth of its lists of layers, the names and the shapes of its weights are compared with the files.
"""

import re
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedConfig

from ..errors import UserError
from ..storage.index import TensorEntry, same_bytes
from .names import NUMBER, Names

SPARE, TIMES = 2048, 8  # parameters that a model may have beyond so many times the tensors on disk
TABLES = (
    4 << 30
)  # bytes of tables made by a constructor (masks, rotary angles) that are accepted whatever the files hold
DEEPEST = (
    4  # times the numbers in the files that a depth may be: some count attention and MLP, or halves of a layer, apart
)
ANNOUNCED = re.compile(r"nextn|mtp|draft")  # fields that announce prediction layers behind the stack
PACKED = ("I8", "U8", "I32", "U32", "F8_E4M3", "F8_E5M2", "F6_E2M3", "F6_E3M2", "F4")  # as no weight is stored plainly
DEPTHS = ("num_hidden_layers", "n_layer", "n_layers", "num_layers", "num_decoder_layers", "decoder_layers")


class _TooManyError(Exception):
    """More parameters than the files can hold."""


@contextmanager
def bounded(tensors: int) -> Iterator[None]:
    """Give up building a model inside when it has many times more parameters than there are tensors in the files."""
    limit = SPARE + TIMES * tensors
    before = nn.Module.register_parameter
    count = 0

    def register(module: nn.Module, name: str, parameter: nn.Parameter | None) -> None:
        nonlocal count
        count += parameter is not None
        if count > limit:
            raise _TooManyError
        before(module, name, parameter)

    nn.Module.register_parameter = register
    try:
        yield
    finally:
        nn.Module.register_parameter = before


def check_depth(source: str, config: PreTrainedConfig, tensors: dict[str, TensorEntry]) -> None:
    """Raise a UserError if the config speaks of far more layers than anything in the files is numbered."""
    most = max(
        (int(match[0]) + 1 for name in tensors for match in NUMBER.finditer(name) if len(match[0]) < 8), default=0
    )
    text = config.get_text_config()
    for key in DEPTHS:
        depth = getattr(text, key, None)
        if isinstance(depth, int) and depth > DEEPEST * max(most, 1) and tensors:
            raise UserError(
                f"{source}: its config says {key} {depth}, its files number nothing beyond {most - 1}: mend one of them"
            )


def check_buildable(source: str, build: Callable[[], nn.Module], tensors: dict[str, TensorEntry]) -> nn.Module | None:
    """The model with everything on the meta device, or None where it cannot be built like that.

    Raises:
        UserError: the config describes far more than the files hold.
    """
    try:
        with bounded(len(tensors)), torch.device("meta"):
            model = build()
    except _TooManyError as error:
        raise UserError(
            f"{source}: its config describes more than {SPARE + TIMES * len(tensors)} weights, its files hold "
            f"{len(tensors)}: "
            "mend one of them"
        ) from error
    except Exception:  # constructors look at values, which the meta device has not; building it for real will tell
        return None
    file_bytes = sum(entry.bytes for entry in tensors.values())
    size = sum(buffer.numel() * buffer.element_size() for buffer in model.buffers())
    if size > max(TABLES, file_bytes):
        largest = max(model.named_buffers(), key=lambda item: item[1].numel())
        raise UserError(
            f"{source}: its config asks for tables of {size / 1e9:.0f} GB ({largest[0]}: {list(largest[1].shape)}) "
            f"beside {file_bytes / 1e9:.2f} GB of weights: mend its config.json"
        )
    return model


def check_files(source: str, model: nn.Module, names: Names, tensors: dict[str, TensorEntry], *, plain: bool) -> None:
    """Raise a UserError if the files hold another model than the config describes.

    Args:
        model: built from the config, its tensors on the meta device.
        names: where each tensor of the files goes.
        plain: the weights are not quantised, so that shapes and names must agree.
    """
    _check_lists(source, model, names)
    if not plain:
        return
    state = {
        name: tensor for name, tensor in model.state_dict(keep_vars=True).items() if isinstance(tensor, torch.Tensor)
    }
    _check_announced(source, names, state, tensors)
    for disk, memory in sorted(names.memory.items()):
        if disk in names.plain and memory in state and tuple(state[memory].shape) != tensors[disk].shape:
            shapes = f"{list(tensors[disk].shape)} in the files and {list(state[memory].shape)} by the config"
            raise UserError(f"{source}: {disk} has the shape {shapes}: mend one of them")
    _check_missing(source, model, names, state)
    _check_tied(source, model, names, tensors)


def _check_announced(
    source: str, names: Names, state: dict[str, torch.Tensor], tensors: dict[str, TensorEntry]
) -> None:
    """Packed weights of which the config says nothing: their bytes would be taken for weights.

    Some programs write how weights are packed into files of their own, which transformers does not read.
    """
    there = {*names.memory.values()}
    for disk, memory in sorted(names.memory.items()):
        entry, whole = tensors[disk], f"{memory.rpartition('.')[0]}.weight"
        weight = state[memory].is_floating_point() if memory in state else whole in state and whole not in there
        if entry.dtype in PACKED and weight and len(entry.shape) > 1:
            raise UserError(
                f"{source} holds packed weights ({disk} is stored as {entry.dtype}), and its config.json has no "
                "quantization_config that says how: add it, or give the unquantised model"
            )


def _check_lists(source: str, model: nn.Module, names: Names) -> None:
    """Lists of layers or experts of which the files hold more items than are built."""
    text = model.config.get_text_config()
    prediction_layers = sum(
        value
        for key, value in text.to_dict().items()
        if ANNOUNCED.search(key) and type(value) is int and 0 < value < 64
    )
    lists = {
        name + ".": len(module)
        for name, module in model.named_modules()
        if isinstance(module, nn.ModuleList) and len(module)
    }
    beyond: dict[str, set[int]] = defaultdict(set)
    for memory in names.memory.values():
        for match in NUMBER.finditer(memory):
            prefix = memory[: match.start()]
            if prefix in lists and len(match[0]) < 8 and int(match[0]) >= lists[prefix]:
                beyond[prefix].add(int(match[0]))
    for prefix, numbers in beyond.items():
        if len(numbers) > prediction_layers:
            in_files, in_config = max(numbers) + 1, lists[prefix]
            raise UserError(
                f"{source} has the weights of {in_files} layers ({prefix}{in_files - 1}) and a config for {in_config} "
                "layers: mend one of them"
            )


def _check_missing(source: str, model: nn.Module, names: Names, state: dict[str, Any]) -> None:
    """Weights of layers that lie nowhere in the files; what transformers allows to be absent is left to its loading."""
    there = {id(state[memory]) for memory in names.memory.values() if memory in state} | {
        id(state[memory]) for memory in names.tied_names(model) if memory in state
    }
    converted_names = {NUMBER.sub("#", memory) for disk, memory in names.memory.items() if disk not in names.plain}
    optional_names = getattr(model, "_keys_to_ignore_on_load_missing", None) or ()
    patterns = [re.compile(pattern) for pattern in optional_names]
    parameters = {name for name, _ in model.named_parameters(remove_duplicate=False)}
    for memory, tensor in state.items():
        absent = memory in parameters and id(tensor) not in there and NUMBER.sub("#", memory) not in converted_names
        if absent and not any(pattern.search(memory) for pattern in patterns):
            raise UserError(
                f"{source} lacks weights when loaded (missing keys: {memory}); they would be drawn at random: "
                "download or save it again"
            )


def _check_tied(source: str, model: nn.Module, names: Names, tensors: dict[str, TensorEntry]) -> None:
    """Weights that the config ties, and that the files hold twice with different values.

    Readers disagree about which count.
    """
    disk = {memory: name for name, memory in names.memory.items()}
    pairs: dict[str, str] = {}
    with suppress(AttributeError, TypeError):
        pairs = dict(model.all_tied_weights_keys)
    for one, other in pairs.items():
        if one in disk and other in disk and not same_bytes(tensors[disk[one]], tensors[disk[other]]):
            raise UserError(
                f"{source}: its config ties {disk[one]} to {disk[other]}, and the files hold different values "
                "for them, of which readers "
                "take one or both: set tie_word_embeddings to false, or remove one of them"
            )
