"""Models of our own form: a family's class with modules missing, built by the code that ships with shallower, never by
the file in the folder.
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
from .modeling_shallower import CONTAINERS, FILE, MODEL_TYPE, SILENT, STACK, ShallowerConfig, lessened_class, unwrapped
from .units import LayerParts
from .units.part import Output, Part

__all__ = ["FILE", "code_text", "family_content", "is_custom", "loader_of", "read_custom", "silent_fields"]
NAME = re.compile(r"\w+(\.\w+)*")
ENTRY = {"module": str, "part": str, "container": (str, type(None)), "streams": list, "width": (int, type(None))}


def code_text() -> str:
    """The code that lies beside the weights of such a model."""
    return Path(modeling_shallower.__file__).read_text(encoding="utf-8")


def is_custom(config: PreTrainedConfig | dict[str, Any]) -> bool:
    """Whether a config, or the content of a config.json, is of our own form."""
    return config.get("model_type") == MODEL_TYPE if isinstance(config, dict) else hasattr(config, SILENT)


def family_content(raw: dict[str, Any]) -> dict[str, Any]:
    """The family's own fields of a config.json, which is of its form or of ours; ours add what is missing."""
    return unwrapped(raw) if is_custom(raw) else raw


def read_custom(source: str, raw: dict[str, Any]) -> PreTrainedConfig:
    """The family's config, which carries what is missing, from a config.json of our own form.

    Raises:
        UserError: it is none that we write.
    """
    base, stack, silent = raw.get("base_config"), raw.get("stack"), raw.get("silent")
    kind = base.get("model_type") if isinstance(base, dict) else None
    wrong = ""
    if not isinstance(kind, str) or kind not in CONFIG_MAPPING_NAMES:
        wrong = f"base_config is of model_type {str(kind)[:60]!r}, which transformers does not know"
    elif not isinstance(stack, str) or not NAME.fullmatch(stack):
        wrong = f"stack is {str(stack)[:60]!r}; the name of a list of layers is needed"
    elif not isinstance(silent, list) or not all(isinstance(layer, list) for layer in silent):
        wrong = f"silent is a {type(silent).__name__}; a list of what each layer lacks is needed"
    elif bad := next((entry for layer in silent for entry in layer if not _sound(entry)), None):
        wrong = f"silent holds {str(bad)[:80]}, which names no module and what it returns"
    if wrong:
        raise UserError(f"{source}: its config.json is none that shallower wrote ({wrong}): prune the model again")
    return ShallowerConfig(base_config=base, stack=stack, silent=silent).family()


def _sound(entry: Any) -> bool:
    if not isinstance(entry, dict) or not all(
        key in entry and isinstance(entry[key], kind) for key, kind in ENTRY.items()
    ):
        return False
    named = NAME.fullmatch(entry["module"]) and entry["container"] in (None, *CONTAINERS)
    return bool(named) and all(isinstance(one, bool) for one in entry["streams"])


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
    fields = []
    for index in removal.stays(len(layers)):
        lost = [parts[index].parts[name] for name in removal.parts(index)] if parts else []
        try:
            entries = [entry for part in lost for entry in _entries(layers[index], part, width)]
        except Refusal as refusal:
            raise Refusal(f"layer {index}: {refusal}") from refusal
        inner = [entry["module"] for entry in entries]
        kept = [entry for entry in before[index] if not any(_within(entry["module"], name) for name in inner)]
        fields.append([*kept, *entries])
    return {SILENT: fields, STACK: stack}


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
