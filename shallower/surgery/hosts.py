"""Plain classes that hold another family's layers without their MLP: mixtures of experts in which the layers that lack
one have a single expert of zeros. The proof decides whether it is the model.
"""

from collections.abc import Set
from dataclasses import dataclass
from typing import Any

import torch

from ..artifacts.removal import MLP, Removal

WIDTH = 8  # of the expert of zeros; products of grouped experts need rows of 16 bytes
ZEROS = {"width": WIDTH, "one": 1}
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
    "gate.weight": ("one", "hidden"),
}
SHARED_EXPERT = {
    "shared_expert.gate_proj.weight": ("width", "hidden"),
    "shared_expert.up_proj.weight": ("width", "hidden"),
    "shared_expert.down_proj.weight": ("hidden", "width"),
    "shared_expert_gate.weight": ("one", "hidden"),
}


@dataclass(frozen=True)
class Host:
    """A plain class whose layers may lack an MLP.

    Attributes:
        model_type, architecture: its names.
        tensors: name within the MLP -> the shape in words of what stands where an MLP is missing.
        more: further fields of its config.
    """

    model_type: str
    architecture: str
    tensors: dict[str, tuple[str, str]]
    more: dict[str, Any]

    def fields(self, config: Any, without: Set[int], save_dtype: torch.dtype | None) -> dict[str, Any]:
        """The fields of its config for a family's config and the layers that lack their MLP, as they are numbered."""
        own, lacking = config.to_dict(), without | lacks_already(config)
        common = {key: own[key] for key in COMMON if key in own and key not in self.more}
        dtype = save_dtype or config.dtype
        return {
            **common,
            **self.more,
            "head_dim": getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads,
            "num_experts": 1,
            "num_experts_per_tok": 1,
            "moe_intermediate_size": WIDTH,
            "decoder_sparse_step": 1,
            "mlp_only_layers": [index for index in range(config.num_hidden_layers) if index not in lacking],
            **({"dtype": str(dtype).removeprefix("torch.")} if dtype is not None else {}),
        }


def _shared(bias: bool) -> Host:
    more = {"shared_expert_intermediate_size": WIDTH, "qkv_bias": bias}
    return Host("qwen2_moe", "Qwen2MoeForCausalLM", EXPERT | SHARED_EXPERT, more)


HOSTS = {
    "llama": _shared(False),
    "mistral": _shared(False),
    "qwen2": _shared(True),
    "qwen3": Host("qwen3_moe", "Qwen3MoeForCausalLM", EXPERT, {}),
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


def misfit(config: Any, removal: Removal) -> str:
    """Why no plain class holds a family's layers after a removal; empty where one does."""
    if removal.narrows:
        return "no config of its says how wide its layers are then"
    if any(unit.part and unit.part != MLP for unit in removal.units):
        return "no plain class lacks an attention"
    host = host_of(config)
    if host is None:
        return f"for an MLP there is one for {', '.join(HOSTS)} only"
    if getattr(config, "mlp_bias", False):
        return "its MLPs have biases"
    if getattr(config, "attention_bias", False) and "qkv_bias" in host.more:
        return "its attentions have biases"
    kinds = set(getattr(config, "layer_types", None) or ())
    windowed = kinds - {"full_attention"} if kinds else getattr(config, "sliding_window", None)
    return "its attentions have a sliding window" if windowed else ""
