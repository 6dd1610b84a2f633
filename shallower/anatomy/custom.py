"""Models of our own forms: a family's class with modules missing, told in our words or in those of DeciLM, built by the
code that ships with shallower, never by the file in the folder.
"""

import copy
import re
from pathlib import Path
from typing import Any

from torch import nn
from transformers import AutoModelForCausalLM, PreTrainedConfig
from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES

from ..artifacts.removal import Removal
from ..errors import Refusal, UserError
from . import modeling_shallower
from .modeling_shallower import (
    CONTAINERS,
    DECI_TYPE,
    FILE,
    MODEL_TYPE,
    NUMBERS,
    SHAPES,
    SILENT,
    STACK,
    DeciLMConfig,
    ShallowerConfig,
    lessened_class,
    unwrapped,
)
from .units import LayerParts
from .units.part import Output, Part

__all__ = ["FILE", "code_text", "family_content", "is_custom", "loader_of", "read_custom", "silent_fields"]
NAME = re.compile(r"\w+(\.\w+)*")
DECI_CODE = f"{FILE.removesuffix('.py')}.{DeciLMConfig.__name__}"
MOST = 1 << 24  # numbers along an axis of a weight
ENTRY = {"module": str, "part": str, "container": (str, type(None)), "streams": list, "width": (int, type(None))}


def code_text() -> str:
    """The code that lies beside the weights of such a model."""
    return Path(modeling_shallower.__file__).read_text(encoding="utf-8")


def is_custom(config: PreTrainedConfig | dict[str, Any]) -> bool:
    """Whether a config, or the content of a config.json, is of one of our own forms."""
    if not isinstance(config, dict):
        return hasattr(config, SILENT)
    code = (config.get("auto_map") or {}).get("AutoConfig")
    return config.get("model_type") == MODEL_TYPE or (config.get("model_type") == DECI_TYPE and code == DECI_CODE)


def family_content(raw: dict[str, Any]) -> dict[str, Any]:
    """The family's own fields of a config.json, which is of its form or of ours; ours add what is missing."""
    return unwrapped(raw) if is_custom(raw) else raw


def read_custom(source: str, raw: dict[str, Any]) -> PreTrainedConfig:
    """The family's config, which carries what is missing, from a config.json of one of our own forms.

    Raises:
        UserError: it is none that we write.
    """
    deci = raw["model_type"] == DECI_TYPE
    wrong = _wrong_blocks(raw) if deci else _wrong_fields(raw)
    if wrong:
        raise UserError(f"{source}: its config.json is none that shallower wrote ({wrong}): prune the model again")
    return (DeciLMConfig if deci else ShallowerConfig)(**raw).family()


def _wrong_blocks(raw: dict[str, Any]) -> str:
    """What is wrong with the fields of a DeciLM; empty for nothing."""
    for name in ("hidden_size", "intermediate_size", "num_attention_heads", "num_key_value_heads"):
        if not isinstance(raw.get(name), int) or raw[name] < 1:
            return f"{name} is {str(raw.get(name))[:60]!r}; a whole number is needed"
    blocks = raw.get("block_configs")
    if not isinstance(blocks, list):
        return f"block_configs is a {type(blocks).__name__}; a list of what each layer has is needed"
    group = raw["num_attention_heads"] // raw["num_key_value_heads"]
    for block in blocks:
        attention, ffn = (block.get(name) if isinstance(block, dict) else None for name in ("attention", "ffn"))
        if not isinstance(attention, dict) or not isinstance(ffn, dict):
            return f"block_configs holds {str(block)[:80]}, which does not say what a layer has"
        heads, multiple = attention.get("n_heads_in_group"), ffn.get("ffn_mult")
        if attention.get("replace_with_linear") or ffn.get("replace_with_linear"):
            return "block_configs holds linear layers in the place of others"
        if attention.get("no_op") not in (True, False) or heads != (None if attention["no_op"] else group):
            return f"block_configs holds an attention {str(attention)[:80]}; one of groups of {group} heads is needed"
        if ffn.get("no_op") is not False or not isinstance(multiple, (int, float)) or not 0 < multiple < MOST:
            return f"block_configs holds an ffn {str(ffn)[:80]}; a width is needed"
    return ""


def _wrong_fields(raw: dict[str, Any]) -> str:
    """What is wrong with the fields of our own form; empty for nothing."""
    base, stack, silent = raw.get("base_config"), raw.get("stack"), raw.get("silent")
    shapes, numbers = raw.get("shapes") or [], raw.get("numbers") or []
    kind = base.get("model_type") if isinstance(base, dict) else None
    if not isinstance(kind, str) or kind not in CONFIG_MAPPING_NAMES:
        return f"base_config is of model_type {str(kind)[:60]!r}, which transformers does not know"
    if not isinstance(stack, str) or not NAME.fullmatch(stack):
        return f"stack is {str(stack)[:60]!r}; the name of a list of layers is needed"
    if not isinstance(silent, list) or not all(isinstance(layer, list) for layer in silent):
        return f"silent is a {type(silent).__name__}; a list of what each layer lacks is needed"
    if bad := next((entry for layer in silent for entry in layer if not _sound(entry)), None):
        return f"silent holds {str(bad)[:80]}, which names no module and what it returns"
    layers = isinstance(shapes, list) and all(isinstance(layer, dict) for layer in shapes)
    if not layers or len(shapes) not in (0, len(silent)):
        return "shapes is no list of the shapes of each layer's weights"
    if not isinstance(numbers, list) or len(numbers) not in (0, len(silent)) or not all(map(_are_numbers, numbers)):
        return "numbers is no list of the numbers that each layer's modules keep"
    bad = next((item for layer in shapes for item in layer.items() if not _is_shape(*item)), None)
    return f"shapes holds {str(bad)[:80]}, which names no weight and its shape" if bad else ""


def _are_numbers(layer: Any) -> bool:
    """Whether a layer's numbers are named and whole."""
    return isinstance(layer, dict) and all(
        NAME.fullmatch(name) and type(value) is int and 0 < value < MOST for name, value in layer.items()
    )


def _is_shape(name: str, shape: Any) -> bool:
    whole = isinstance(shape, list) and all(isinstance(size, int) and 0 < size < MOST for size in shape)
    return bool(NAME.fullmatch(name)) and whole and len(shape) in (1, 2, 3)


def _sound(entry: Any) -> bool:
    if not isinstance(entry, dict) or not all(
        key in entry and isinstance(entry[key], kind) for key, kind in ENTRY.items()
    ):
        return False
    named = NAME.fullmatch(entry["module"]) and entry["container"] in (None, *CONTAINERS)
    sized = entry["width"] is None or 0 < entry["width"] < MOST
    return bool(named) and sized and bool(entry["streams"]) and all(isinstance(one, bool) for one in entry["streams"])


def loader_of(config: PreTrainedConfig) -> tuple[Any, PreTrainedConfig, bool]:
    """What builds and loads a config's model, a copy of the config to give it, and whether that is our own form."""
    config = copy.deepcopy(config)
    return (*lessened_class(config), True) if is_custom(config) else (AutoModelForCausalLM, config, False)


def silent_fields(
    config: PreTrainedConfig,
    layers: nn.ModuleList,
    stack: str,
    width: int,
    removal: Removal,
    parts: tuple[LayerParts, ...],
) -> dict[str, Any]:
    """The fields that say what is missing, of the layers of which something stays.

    Args:
        config: of the model as it is; what it lacks already stays missing.
        layers: all layers of the model as it is, with weights or without; ``stack`` is their name.
        width: numbers per token in the stream.
    Raises:
        Refusal: what a part returns, or which weights go with it, cannot be told in a file.
    """
    before = getattr(config, SILENT, None) or [[] for _ in layers]
    shapes = getattr(config, SHAPES, None) or [{} for _ in layers]
    numbers = getattr(config, NUMBERS, None) or [{} for _ in layers]
    fields, sizes, counts = [], [], []
    for index in removal.stays(len(layers)):
        lost = [parts[index].parts[name] for name in removal.parts(index)] if parts else []
        try:
            entries = [entry for part in lost for entry in _entries(layers[index], part, width)]
        except Refusal as refusal:
            raise Refusal(f"layer {index}: {refusal}") from refusal
        inner = [entry["module"] for entry in entries]
        kept = [entry for entry in before[index] if not any(_within(entry["module"], name) for name in inner)]
        fields.append([*kept, *entries])
        sizes.append(
            {name: shape for name, shape in shapes[index].items() if not any(_within(name, one) for one in inner)}
        )
        counts.append(
            {name: value for name, value in numbers[index].items() if not any(_within(name, one) for one in inner)}
        )
    return {SILENT: fields, STACK: stack, SHAPES: sizes, NUMBERS: counts}


def _within(name: str, module: str) -> bool:
    return name == module or name.startswith(f"{module}.")


def _entries(layer: nn.Module, part: Part, width: int) -> list[dict[str, Any]]:
    """The modules that go with a part: those that are silent, and others that serve them alone."""
    entries = [_entry(part, name, output, width) for name, output in part.modules.items()]
    names = [*part.modules]
    for owner in sorted({parameter.rpartition(".")[0] for parameter in part.parameters}):
        if any(_within(owner, name) for name in names):
            continue
        module = layer.get_submodule(owner)
        served = {f"{owner}.{name}" for name, _ in module.named_parameters()}
        if not owner or not served <= part.parameters or any(_within(name, owner) for name in part.modules):
            raise Refusal(f"weights of its {part.name} lie in {owner or 'the layer itself'}, which does more")
        size = getattr(module, "out_features", getattr(module, "nf", None))
        entries.append(_entry(part, owner, Output(None), size))
        names.append(owner)
    return entries


def _entry(part: Part, name: str, output: Output, width: int | None) -> dict[str, Any]:
    container = output.container.__name__ if output.container is not None else None
    if container is not None and CONTAINERS.get(container) is not output.container:
        raise Refusal(f"{name} of its {part.name} returns a {container}, which a file cannot tell")
    streams = [bool(one) for one in output.streams]
    return {"module": name, "part": part.name, "container": container, "streams": streams, "width": width}
