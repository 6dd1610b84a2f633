"""Plain classes that hold another family's layers without their MLP, or with MLPs of a second width: mixtures of
experts in which these layers have a single expert, of zeros or of that width. The proof decides whether it is the
model.
"""

from collections.abc import Set
from dataclasses import dataclass
from typing import Any

import torch

from ..artifacts.removal import MLP, Removal
from ..errors import argument

WIDTH = 8  # of an expert of zeros; products of grouped experts need rows of 16 bytes
STEP = 8  # a second width is a multiple of it, for the same reason
SIZES = {"shared": WIDTH, "one": 1}  # of dimensions by their names; "width" is the expert's
COMMON = (
    *("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads"),
    *("num_key_value_heads", "hidden_act", "max_position_embeddings", "initializer_range", "rms_norm_eps"),
    *("use_cache", "tie_word_embeddings", "rope_parameters", "attention_dropout", "attention_bias"),
    *("bos_token_id", "eos_token_id", "pad_token_id"),
)
EXPERT = {
    "experts.0.gate_proj.weight": ("width", "hidden"),
    "experts.0.up_proj.weight": ("width", "hidden"),
    "experts.0.down_proj.weight": ("hidden", "width"),
}
ROUTER = {"gate.weight": ("one", "hidden")}  # of one expert: zeros, whose softmax is 1
SHARED_EXPERT = {
    "shared_expert.gate_proj.weight": ("shared", "hidden"),
    "shared_expert.up_proj.weight": ("shared", "hidden"),
    "shared_expert.down_proj.weight": ("hidden", "shared"),
    "shared_expert_gate.weight": ("one", "hidden"),
}


@dataclass(frozen=True)
class Host:
    """A plain class whose layers may lack an MLP, or have one of a second width.

    Attributes:
        model_type, architecture: its names.
        beside: name within the MLP -> the shape in words of the zeros that stand beside the expert.
        more: further fields of its config.
    """

    model_type: str
    architecture: str
    beside: dict[str, tuple[str, str]]
    more: dict[str, Any]

    def fields(
        self, config: Any, without: Set[int], save_dtype: torch.dtype | None, width: int = WIDTH
    ) -> dict[str, Any]:
        """The fields of its config, for a family's config and the layers, as they are numbered, whose MLP is an expert
        of that width.
        """
        own, lacking = config.to_dict(), without | lacks_already(config)
        common = {key: own[key] for key in COMMON if key in own and key not in self.more}
        dtype = save_dtype or config.dtype
        return {
            **common,
            **self.more,
            "head_dim": getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads,
            "num_experts": 1,
            "num_experts_per_tok": 1,
            "moe_intermediate_size": width,
            "decoder_sparse_step": 1,
            "mlp_only_layers": [index for index in range(config.num_hidden_layers) if index not in lacking],
            **({"dtype": str(dtype).removeprefix("torch.")} if dtype is not None else {}),
        }


def _shared(bias: bool) -> Host:
    more = {"shared_expert_intermediate_size": WIDTH, "qkv_bias": bias}
    return Host("qwen2_moe", "Qwen2MoeForCausalLM", ROUTER | SHARED_EXPERT, more)


HOSTS = {
    "llama": _shared(False),
    "mistral": _shared(False),
    "qwen2": _shared(True),
    "qwen3": Host("qwen3_moe", "Qwen3MoeForCausalLM", ROUTER, {}),
}


def lacks_already(config: Any) -> set[int]:
    """The layers of a model that is a host itself which have a single expert in the place of their MLP."""
    own = set(getattr(config, "mlp_only_layers", None) or ()) if getattr(config, "num_experts", 0) == 1 else None
    return set() if own is None else set(range(config.num_hidden_layers)) - own


def host_of(config: Any) -> Host | None:
    """The host of a family, or of a model that is a host already; None where there is none."""
    again = getattr(config, "num_experts", 0) == 1 and getattr(config, "moe_intermediate_size", 0) == WIDTH
    if again and config.model_type == "qwen3_moe":
        return HOSTS["qwen3"]
    if again and config.model_type == "qwen2_moe" and config.shared_expert_intermediate_size == WIDTH:
        return _shared(config.qkv_bias)
    return HOSTS.get(config.model_type)


def misfit(config: Any, removal: Removal, widths: Set[int]) -> str:
    """Why no plain class holds a family's layers after a removal; empty where one does.

    Args:
        widths: of the MLPs that become narrower.
    """
    if any(unit.part and unit.part != MLP for unit in removal.units):
        keep = argument("settings", {"parts": "mlp"})
        narrow = f"its config cannot say how narrow its layers are, or refuses so many heads, which {keep} keeps"
        return narrow if removal.narrows else "no plain class lacks an attention"
    if reason := _unlike(widths, removal):
        return reason
    host = host_of(config)
    if host is None and getattr(config, "num_experts", 0) == 1:
        return "its layers have single experts of another width already"
    if host is None:
        return f"for {'a second width' if widths else 'an MLP'} there is one for {', '.join(HOSTS)} only"
    if widths and lacks_already(config):
        return "some of its MLPs are missing already"
    if getattr(config, "mlp_bias", False):
        return "its MLPs have biases"
    if getattr(config, "attention_bias", False) and "qkv_bias" in host.more:
        return "its attentions have biases"
    kinds = set(getattr(config, "layer_types", None) or ())
    windowed = kinds - {"full_attention"} if kinds else getattr(config, "sliding_window", None)
    return "its attentions have a sliding window" if windowed else ""


def _unlike(widths: Set[int], removal: Removal) -> str:
    """Why narrower MLPs are no experts of one width; empty where they are, or where there are none."""
    if len(widths) > 1:
        return f"its MLPs get {len(widths)} widths, and a plain class holds one beside the old"
    if widths and any(unit.part and not unit.groups for unit in removal.units):
        return "MLPs are missing and others narrower, and plain classes hold one of the two"
    if any(width % STEP for width in widths):
        return (
            f"its second width, {min(widths):,}, is no multiple of {STEP}: {argument('multiple_of', STEP)} makes it one"
        )
    return ""
