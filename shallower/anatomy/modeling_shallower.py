"""Decoder language model in which some layers lack their attention or their MLP, or have weights of other shapes.

It is the family's own class with nothing in the place of what is missing: modules, names of tensors and generation are
the family's. This file lies beside the weights that need it, and is what shallower itself builds them with:
``AutoModelForCausalLM.from_pretrained(FOLDER, trust_remote_code=True)``. Apache-2.0.
"""

import copy
import functools
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING

MODEL_TYPE = "shallower"
DECI_TYPE = "nemotron-nas"  # DeciLM, a Llama whose layers differ; vLLM, SGLang, llama.cpp and mlx-lm know it
FILE = "modeling_shallower.py"
SILENT, STACK, SHAPES, NUMBERS = (
    "silent_modules",
    "silent_stack",
    "silent_shapes",
    "silent_numbers",
)  # fields of the family's config in memory; in the file they lie beside it
OURS = (SILENT, STACK, SHAPES, NUMBERS)
OWN_LAYER = "_layer_before_cache_places"  # attribute of a module whose ``layer_idx`` is a place in the cache: its layer
CONTAINERS = {"tuple": tuple, "list": list}
ATTENTION = "attention"


class ShallowerConfig(PreTrainedConfig):
    """The family's config, and what each layer lacks.

    Args:
        base_config: the family's own fields, its ``model_type`` among them.
        stack: dotted name of the list of layers.
        silent: of each layer the modules that are not there: ``module`` is the name within the layer, ``part`` what it
            belonged to, ``container`` and ``streams`` what it returned (a bare tensor, or items of which some are as
            large as the stream), ``width`` the numbers per token in these; null where it hands on what enters it.
        shapes: of each layer the weights that the family's config would make in another shape; empty for none.
        numbers: of each layer numbers that modules keep beside their weights and that follow, such as a count of heads.
    """

    model_type = MODEL_TYPE

    def __init__(
        self,
        base_config: dict[str, Any] | None = None,
        stack: str = "",
        silent: list[list[dict[str, Any]]] | None = None,
        shapes: list[dict[str, list[int]]] | None = None,
        numbers: list[dict[str, int]] | None = None,
        **kwargs: Any,
    ):
        self.base_config = base_config or {}
        self.stack = stack
        self.silent = silent or []
        self.shapes = shapes or []
        self.numbers = numbers or []
        super().__init__(**kwargs)

    def __getattr__(self, name: str) -> Any:
        base = self.__dict__.get("base_config") or {}
        kind = CONFIG_MAPPING.get(base.get("model_type"), PreTrainedConfig) if not name.startswith("_") else None
        name = getattr(kind, "attribute_map", {}).get(name, name)
        if name not in base or name.startswith("_"):
            raise AttributeError(f"{type(self).__name__} has no {name}")
        return base[name]

    def family(self) -> PreTrainedConfig:
        """The family's own config, which carries what is missing; its class is one of transformers' own."""
        fields = {SILENT: self.silent, STACK: self.stack, SHAPES: self.shapes, NUMBERS: self.numbers}
        return _family(self, self.base_config, fields)

    def get_text_config(self, *args: Any, **kwargs: Any) -> PreTrainedConfig:
        """The part of the family's config that describes the decoder."""
        return self.family().get_text_config(*args, **kwargs) if self.base_config else self


def _family(given: PreTrainedConfig, base: dict[str, Any], fields: dict[str, Any]) -> PreTrainedConfig:
    """The config of a family of transformers' own which carries what is missing."""
    kind = CONFIG_MAPPING[base["model_type"]]
    if not kind.__module__.startswith("transformers."):
        raise ValueError(f"{base['model_type']} is no model type of transformers' own")
    config = kind.from_dict(copy.deepcopy({key: value for key, value in base.items() if key != "auto_map"}))
    for name, value in fields.items():
        setattr(config, name, copy.deepcopy(value))
    if wanted := given.__dict__.get("_attn_implementation_internal"):
        config._attn_implementation = wanted
    return config


class Fields(dict):
    """Fields that can be asked for as attributes too, as the runtimes do that know DeciLM."""

    def __getattr__(self, name: str) -> Any:
        if name in self:
            return self[name]
        raise AttributeError(name)


class DeciLMConfig(PreTrainedConfig):
    """DeciLM's config: a Llama's, and what each layer has.

    Args:
        block_configs: of each layer ``attention`` (``no_op`` where there is none, ``n_heads_in_group``) and ``ffn``
            (``ffn_mult``, three halves of its width by the stream's).
    """

    model_type = DECI_TYPE

    def __init__(self, block_configs: list[dict[str, dict[str, Any]]] | None = None, **kwargs: Any):
        blocks = block_configs or []
        self.block_configs = [Fields({key: Fields(value) for key, value in block.items()}) for block in blocks]
        if kwargs.get("rope_scaling", "") is None:  # transformers warns of it
            del kwargs["rope_scaling"]
        super().__init__(**kwargs)

    def family(self) -> PreTrainedConfig:
        """The config of the Llama that it is, which carries what is missing."""
        content = from_deci(self.to_dict())
        return _family(self, content, {name: content.pop(name) for name in OURS})


class ShallowerForCausalLM(PreTrainedModel):
    """Name under which the family's class is loaded; what is made is an object of a subclass of that one."""

    config_class = ShallowerConfig

    def __new__(cls, config: ShallowerConfig, *args: Any, **kwargs: Any) -> PreTrainedModel:
        return cls._from_config(config, *args, **kwargs)

    @classmethod
    def from_pretrained(
        cls, path: Any, *args: Any, config: ShallowerConfig | None = None, **kwargs: Any
    ) -> PreTrainedModel:
        """The model of a folder or of an id."""
        if not isinstance(config, cls.config_class):
            config = cls.config_class.from_pretrained(path)
        kind, family = lessened_class(config.family())
        return kind.from_pretrained(path, *args, config=family, **kwargs)

    @classmethod
    def _from_config(cls, config: ShallowerConfig, **kwargs: Any) -> PreTrainedModel:
        kind, family = lessened_class(config.family())
        return kind._from_config(family, **kwargs)


class DeciLMForCausalLM(ShallowerForCausalLM):
    """The same for DeciLM's config."""

    config_class = DeciLMConfig


class Silent(nn.Module):
    """What stands where a module is missing: it has no weights and gives zeros, or hands on what enters it.

    Args:
        missing: the module in whose place it is put; its plain attributes can still be asked for.
        entry: the entry of the config.
    """

    def __init__(self, missing: nn.Module, entry: dict[str, Any]):
        super().__init__()
        plain = {key: value for key, value in vars(missing).items() if isinstance(value, (bool, int, float, str))}
        self.__dict__.update({key: value for key, value in plain.items() if key not in self.__dict__})
        self.silent_part: str = entry["part"]
        self.silent_container = CONTAINERS[entry["container"]] if entry["container"] else None
        self.silent_streams: list[bool] = entry["streams"]
        self.silent_width: int | None = entry["width"]

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Zeros for streams and None for all else."""
        values = [item for item in (*args, *kwargs.values()) if isinstance(item, Tensor) and item.dim() > 1]
        entering = next(item for item in values if item.is_floating_point())
        if self.silent_width is None:
            return entering
        zero = entering.new_zeros(*entering.shape[:-1], self.silent_width)
        if self.silent_container is None:
            return zero
        return self.silent_container(zero if one else None for one in self.silent_streams)


def lessened_class(config: PreTrainedConfig) -> tuple[type[PreTrainedModel], PreTrainedConfig]:
    """The class that builds a family's config with what is missing, and the config to give it."""
    kind = MODEL_FOR_CAUSAL_LM_MAPPING[type(config)]
    if isinstance(kind, tuple):
        named = [one for one in kind if one.__name__ in (config.architectures or ())]
        kind = (named or list(kind))[0]
    if not kind.__module__.startswith("transformers."):
        raise ValueError(f"{kind.__name__} is no class of transformers' own")
    part = config.sub_configs.get("text_config")
    if part is not None and kind.config_class == part:  # the decoder alone
        text = config.get_text_config()
        for name in OURS:
            setattr(text, name, getattr(config, name, None))
        config = text
    return _subclass(kind), config


@functools.cache
def _subclass(kind: type[PreTrainedModel]) -> type[PreTrainedModel]:
    """The class with modules missing; transformers' rules, which ask for names, take it for the class itself."""

    def __init__(self: PreTrainedModel, config: PreTrainedConfig, *args: Any, **kwargs: Any) -> None:
        kind.__init__(self, config, *args, **kwargs)
        layers = self.get_submodule(getattr(config, STACK))
        for layer, shapes in zip(layers, getattr(config, SHAPES, None) or [], strict=False):
            reshape(layer, shapes)
        for layer, numbers in zip(layers, getattr(config, NUMBERS, None) or [], strict=False):
            renumber(layer, numbers)
        take_out(layers, getattr(config, SILENT), config)

    def save_pretrained(self: PreTrainedModel, save_directory: Any, *args: Any, **kwargs: Any) -> None:
        if kwargs.get("push_to_hub"):
            raise ValueError("save it into a folder first, then upload that: the code has to lie beside the weights")
        kind.save_pretrained(self, save_directory, *args, **kwargs)
        path = Path(save_directory) / "config.json"
        if path.is_file():
            content = wrapped(json.loads(path.read_text(encoding="utf-8")))
            path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
            path.with_name(FILE).write_text(Path(__file__).read_text(encoding="utf-8"), encoding="utf-8")

    def __reduce_ex__(self: PreTrainedModel, protocol: Any) -> tuple:
        return _empty, (kind,), self.__dict__.copy()

    own = {"__init__": __init__, "save_pretrained": save_pretrained, "config_class": kind.config_class}
    own["__reduce_ex__"] = __reduce_ex__  # the class is found by no name
    return type(kind.__name__, (kind,), {"__module__": kind.__module__, "__doc__": kind.__doc__, **own})


def _empty(kind: type[PreTrainedModel]) -> PreTrainedModel:
    """An object of the class with modules missing, to be filled by unpickling."""
    lessened = _subclass(kind)
    return lessened.__new__(lessened)


def reshape(layer: nn.Module, shapes: dict[str, list[int]]) -> None:
    """Give weights the shapes that the files have; what is in them is filled by loading."""
    for path, shape in shapes.items():
        owner, _, name = path.rpartition(".")
        module = layer.get_submodule(owner)
        weight = getattr(module, name)
        weight = next(module.parameters(recurse=False)) if weight is None else weight  # a bias that it has not yet
        setattr(module, name, nn.Parameter(weight.new_zeros(shape), requires_grad=weight.requires_grad))
        if isinstance(module, nn.Linear) and name == "weight":
            module.out_features, module.in_features = shape
        elif hasattr(module, "nf") and name == "weight":  # the transposed product of some families
            module.nf = shape[1]


def renumber(layer: nn.Module, numbers: dict[str, int]) -> None:
    """Give modules the numbers that they keep beside their weights, such as a count of heads."""
    for path, value in numbers.items():
        owner, _, name = path.rpartition(".")
        module = layer.get_submodule(owner.removesuffix(".config"))
        if owner.endswith(".config"):  # which all layers share
            module.config = copy.copy(module.config)
        setattr(module.config if owner.endswith(".config") else module, name, value)


def take_out(layers: Iterable[nn.Module], silent: list[list[dict[str, Any]]], config: PreTrainedConfig) -> None:
    """Put nothing in the place of what is missing, and number the caches of what is left anew.

    A cache tells how much was read by its first layer, or the first of a kind: within each kind of layers the
    attentions that are left take the first places, in order.
    """
    layers = list(layers)
    if len(silent) != len(layers):
        raise ValueError(f"the config tells of {len(silent)} layers what is missing, and describes {len(layers)}")
    kinds = getattr(config.get_text_config(), "layer_types", None) or []
    kinds = kinds if len(kinds) == len(layers) else [""] * len(layers)
    places = {one: iter([at for at, kind in enumerate(kinds) if kind == one]) for one in set(kinds)}
    for index, (layer, entries) in enumerate(zip(layers, silent, strict=True)):
        for entry in entries:
            owner, _, name = entry["module"].rpartition(".")
            setattr(layer.get_submodule(owner), name, Silent(layer.get_submodule(entry["module"]), entry))
        own = [module for name, module in layer.named_modules() if name and not isinstance(module, Silent)]
        numbered = [module for module in own if getattr(module, "layer_idx", None) == index]
        lost = any(entry["part"] == ATTENTION for entry in entries)
        if numbered and (not lost or any(lacks_attention(module) for module in numbered)):
            place = next(places[kinds[index]])
            for module in numbered:
                module.layer_idx = place
                setattr(module, OWN_LAYER, index)


def lacks_attention(module: nn.Module) -> bool:
    """Whether something of an attention is missing inside a module, which runs all the same."""
    return any(isinstance(inner, Silent) and inner.silent_part == ATTENTION for inner in module.modules())


def wrapped(content: dict[str, Any]) -> dict[str, Any]:
    """The content of config.json from that of the family's config which carries what is missing."""
    base = {key: value for key, value in content.items() if key not in (*OURS, "auto_map")}
    shapes, numbers = content.get(SHAPES) or [], content.get(NUMBERS) or []
    module = FILE.removesuffix(".py")
    return {
        "model_type": MODEL_TYPE,
        "architectures": [ShallowerForCausalLM.__name__],
        "auto_map": {
            "AutoConfig": f"{module}.{ShallowerConfig.__name__}",
            "AutoModelForCausalLM": f"{module}.{ShallowerForCausalLM.__name__}",
        },
        "stack": content[STACK],
        "silent": content[SILENT],
        **({"shapes": shapes} if any(shapes) else {}),
        **({"numbers": numbers} if any(numbers) else {}),
        "base_config": base,
    }


def unwrapped(content: dict[str, Any]) -> dict[str, Any]:
    """The family's config which carries what is missing, from the content of config.json."""
    if content["model_type"] == DECI_TYPE:
        return from_deci(content)
    fields = {SILENT: content["silent"], STACK: content["stack"]}
    fields |= {SHAPES: content.get("shapes") or [], NUMBERS: content.get("numbers") or []}
    return content["base_config"] | fields


def deci_width(multiple: float, width: int) -> int:
    """Neurons of a DeciLM's MLP: two thirds of ``ffn_mult`` times the stream's width, rounded up to 256."""
    return -(-int(2 * multiple * width / 3) // 256) * 256


def from_deci(content: dict[str, Any]) -> dict[str, Any]:
    """The Llama's config which carries what is missing, from that of a DeciLM."""
    other = ("block_configs", "auto_map", *(("rope_theta", "rope_scaling") if "rope_parameters" in content else ()))
    base = {key: value for key, value in content.items() if key not in other}
    width, neurons = base["hidden_size"], base["intermediate_size"]
    attention = {"module": "self_attn", "container": "tuple", "streams": [True, False], "width": width}
    norm = {"module": "input_layernorm", "container": None, "streams": [True], "width": width}
    silent, shapes = [], []
    for block in content["block_configs"]:
        lost = (attention, norm) if block["attention"]["no_op"] else ()
        silent.append([{**entry, "part": ATTENTION} for entry in lost])
        own = deci_width(block["ffn"]["ffn_mult"], width)
        into = {f"mlp.{name}_proj.weight": [own, width] for name in ("gate", "up")}
        shapes.append({} if own == neurons else into | {"mlp.down_proj.weight": [width, own]})
    fields = {SILENT: silent, STACK: "model.layers", SHAPES: shapes, NUMBERS: []}
    return base | fields | {"model_type": "llama", "architectures": ["LlamaForCausalLM"]}
