"""DeciLM, a Llama whose layers differ: the form of parts removed that vLLM, SGLang, llama.cpp and mlx-lm read.

Facts as read in the code of vLLM (``nemotron_nas.py``), SGLang, llama.cpp (``deci.cpp`` and its converter) and mlx-lm
(``nemotron-nas.py``) of 2026: MLPs are multiples of 256 neurons wide and given by ``ffn_mult``; the first layer keeps
its attention (vLLM takes the stream from it, mlx-lm the mask); llama.cpp skips the attention of a layer whose MLP has
no neuron, so 256 of zeros stay; mlx-lm asks for rotary settings in their older spelling.
"""

from typing import Any

import torch

from ..anatomy.config import Solved
from ..anatomy.custom import DECI_CODE, FILE, code_text
from ..anatomy.model import Model
from ..anatomy.modeling_shallower import DECI_TYPE, OURS, SHAPES, SILENT, DeciLMForCausalLM, deci_width
from ..artifacts import Plan
from ..artifacts.removal import ATTENTION, MLP, Removal
from .form import Form, Place, lost_tensors

FAMILIES = ("llama", "mistral", "qwen2")
ROPES = ("default", "linear", "llama3")  # that all four runtimes compute alike
STEP = 256  # neurons
READERS = "vLLM, SGLang, llama.cpp and mlx-lm"
OTHER_FIELDS = ("sliding_window", "use_sliding_window", "max_window_layers", "layer_types", "auto_map", *OURS)


def deci_misfit(model: Model, removal: Removal) -> str:
    """Why a DeciLM cannot be what is left of a model; empty where it can."""
    config, family = model.checkpoint.config, model.checkpoint.config.model_type
    if family not in FAMILIES:
        return f"it is for {', '.join(FAMILIES)} only"
    if model.checkpoint.quantised is not None:
        return "its weights are quantised"
    if getattr(config, "mlp_bias", False):
        return "its MLPs have biases"
    if (getattr(config, "head_dim", None) or 0) * config.num_attention_heads not in (0, config.hidden_size):
        return "its heads together are not as wide as the stream"
    windows = {*(getattr(config, "layer_types", None) or ())} - {"full_attention"}
    if windows or (family == "mistral" and config.sliding_window):
        return "its attentions have a sliding window"
    rope = config.rope_parameters
    if rope.get("rope_type", "default") not in ROPES or rope.get("partial_rotary_factor", 1) != 1:
        return f"its rotary positions are none of {', '.join(ROPES)}"
    if any(removal.groups(index).get(ATTENTION) for index in range(len(model.stack))):
        return "heads are left out of its attentions"
    stays = removal.stays(len(model.stack))
    lacking = {name: [old for old in stays if _lacks(config, removal, old, name)] for name in (ATTENTION, MLP)}
    if stays[0] in lacking[ATTENTION]:
        return f"layer {stays[0]}, its first one, has to keep its attention"
    widths = {_neurons(config, removal, old) for old in stays if old not in lacking[MLP]}
    if wrong := next((width for width in sorted(widths) if width % STEP), None):
        return f"an MLP of {wrong:,} neurons is no multiple of {STEP}"
    if lacking[MLP] and config.intermediate_size <= STEP:
        return f"an MLP of {config.intermediate_size} neurons would not become smaller"
    return ""


def deci_form(model: Model, plan: Plan, solved: Solved, save_dtype: torch.dtype | None) -> Form:
    """The form of a DeciLM, which a model fits in (see ``deci_misfit``)."""
    config, removal = model.checkpoint.config, plan.removal
    width, added, blocks = config.hidden_size, {}, []
    without = [old for old in plan.kept if _lacks(config, removal, old, MLP)]
    for new, old in enumerate(plan.kept):
        place = Place.of(model, old, new, save_dtype)
        attention = not _lacks(config, removal, old, ATTENTION)
        if attention and config.model_type == "qwen2":  # which has biases, but none here
            added |= place.zeros({"self_attn.o_proj.bias": (width,)})
        if old in without:
            added |= place.zeros({"mlp.gate_proj.weight": (STEP, width), "mlp.up_proj.weight": (STEP, width)})
            added |= place.zeros({"mlp.down_proj.weight": (width, STEP)})
            if _missing_before(config, old, MLP):
                added |= place.zeros({"post_attention_layernorm.weight": (width,)})
        blocks.append(_block(config, attention, STEP if old in without else _neurons(config, removal, old)))
    lost = lost_tensors(model, removal, ATTENTION)
    lost |= {name for name in lost_tensors(model, removal, MLP) if f".{MLP}." in name}  # the norm in front of it stays
    told = [f"layer {unit.layer} without its {unit.part}" for unit in removal.units if unit.part and not unit.groups]
    said = [f"{STEP} neurons of zeros in the place of each missing MLP, as llama.cpp needs"] if without else []
    return Form(
        "deci",
        (*told, f"written as {DeciLMForCausalLM.__name__}", *said, f"{FILE} beside the weights, for transformers"),
        frozenset(lost),
        added,
        config=lambda content: _content(content, solved.config, blocks),
        files={FILE: code_text()},
    )


def _missing_before(config: Any, layer: int, part: str) -> bool:
    entries = getattr(config, SILENT, None)
    return bool(entries) and any(entry["part"] == part for entry in entries[layer])


def _lacks(config: Any, removal: Removal, layer: int, part: str) -> bool:
    return part in removal.parts(layer) or _missing_before(config, layer, part)


def _neurons(config: Any, removal: Removal, layer: int) -> int:
    shapes = getattr(config, SHAPES, None)
    width = (shapes[layer] if shapes else {}).get("mlp.up_proj.weight", [config.intermediate_size])[0]
    return width - len(removal.groups(layer).get(MLP, ()))


def _block(config: Any, attention: bool, neurons: int) -> dict[str, dict[str, Any]]:
    """What one layer has, in DeciLM's words."""
    group = config.num_attention_heads // config.num_key_value_heads
    multiple = round(3 * neurons / (2 * config.hidden_size), 6)
    if deci_width(multiple, config.hidden_size) != neurons:
        multiple = round(3 * (neurons - 0.5) / (2 * config.hidden_size), 6)
    return {
        "attention": {
            "no_op": not attention,
            "n_heads_in_group": group if attention else None,
            "replace_with_linear": False,
        },
        "ffn": {"no_op": False, "ffn_mult": multiple, "replace_with_linear": False},
    }


def _content(content: dict[str, Any], config: Any, blocks: list[dict[str, Any]]) -> dict[str, Any]:
    """The content of config.json from that of the family's."""
    rope = dict(config.rope_parameters)
    scaling = {key: value for key, value in rope.items() if key != "rope_theta"}
    return {
        **{key: value for key, value in content.items() if key not in OTHER_FIELDS},
        "model_type": DECI_TYPE,
        "architectures": [DeciLMForCausalLM.__name__],
        "auto_map": {
            "AutoConfig": DECI_CODE,
            "AutoModelForCausalLM": f"{FILE.removesuffix('.py')}.{DeciLMForCausalLM.__name__}",
        },
        "num_hidden_layers": len(blocks),
        "num_key_value_heads": config.num_key_value_heads,
        "head_dim": config.hidden_size // config.num_attention_heads,
        "attention_bias": config.model_type == "qwen2" or getattr(config, "attention_bias", False),
        "mlp_bias": False,
        "rope_parameters": rope,
        "rope_theta": rope["rope_theta"],
        "rope_scaling": None if rope.get("rope_type", "default") == "default" else scaling,
        "block_configs": blocks,
    }
