"""The tiny config of any model type, from wanted sizes that each config class takes as far as it knows them."""

import copy
from dataclasses import fields

from transformers import PreTrainedConfig
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

LAYERS = 8
VOCAB = 512

# Wanted sizes, under every name a config class may give them; each class takes those it knows.
SMALL = {
    "vocab_size": VOCAB,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "cls_token_id": 1,
    "sep_token_id": 2,
    "max_position_embeddings": 256,
    "num_hidden_layers": LAYERS,
    "hidden_size": 64,
    "decoder_layers": LAYERS,
    "num_attention_heads": 4,
    "decoder_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "d_head": 16,
    "query_pre_attn_scalar": 16,
    "sliding_window": 8,
    "sliding_window_size": 8,
    "window_size": 8,
    "attention_window_size": 8,
    "local_attention": 16,
    "attention_chunk_size": 8,
    "rotary_dim": 8,
    # feed-forward
    "intermediate_size": 96,
    "intermediate_size_mlp": 96,
    "dense_intermediate_size": 96,
    "ffn_dim": 96,
    "ffn_hidden_size": 96,
    "decoder_ffn_dim": 96,
    "n_inner": 96,
    "d_inner": 96,
    "dim_ff": 96,
    "dff": 96,
    # experts
    "num_experts": 4,
    "num_local_experts": 4,
    "n_routed_experts": 4,
    "moe_num_experts": 4,
    "num_experts_per_tok": 2,
    "top_k_experts": 2,
    "moe_topk": 2,
    "moe_k": 2,
    "n_group": 2,
    "topk_group": 1,
    "moe_intermediate_size": 48,
    "expert_ffn_hidden_size": 48,
    "shared_intermediate_size": 48,
    "shared_expert_intermediate_size": 48,
    "shared_experts_intermediate_size": 48,
    "moe_shared_expert_intermediate_size": 48,
    # latent attention and sparse indexers; an indexer that drops tokens differs between cached and uncached
    "kv_lora_rank": 16,
    "q_lora_rank": 24,
    "o_lora_rank": 16,
    "o_groups": 2,
    "qk_nope_head_dim": 8,
    "qk_rope_head_dim": 8,
    "v_head_dim": 16,
    "index_head_dim": 16,
    "index_n_heads": 4,
    "index_topk": 64,
    "hc_mult": 2,
    # recurrent layers
    "state_size": 8,
    "ssm_state_size": 8,
    "mamba_d_state": 8,
    "mamba_n_heads": 8,
    "mamba_num_heads": 8,
    "n_mamba_heads": 8,
    "mamba_d_head": 16,
    "mamba_head_dim": 16,
    "mamba_n_groups": 2,
    "mamba_d_ssm": 128,
    "n_groups": 2,
    "chunk_size": 8,
    "mamba_chunk_size": 8,
    "use_mamba_kernels": False,
    "is_decoder": True,
    "is_encoder_decoder": False,
    "lru_width": 64,
    "adapter_rank": 8,
    "linear_key_head_dim": 16,
    "linear_value_head_dim": 16,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_head_dim": 16,
    "linear_num_heads": 4,
    # tables by layer
    "vocab_size_per_layer_input": VOCAB,
    "hidden_size_per_layer_input": 8,
    "laurel_rank": 8,
    "altup_num_inputs": 3,
    # images
    "image_size": 28,
    "patch_size": 14,
    "depth": 2,
    "mm_tokens_per_image": 4,
}

# Rules that the class defaults make harmless, set so that most removals have to change them.
AWKWARD = {
    "first_k_dense_replace": 2,
    "num_dense_layers": 2,
    "decoder_sparse_step": 2,
    "mlp_only_layers": [1],
    "interleave_moe_layer_step": 2,
    "num_kv_shared_layers": 2,
}
MIXED = (0, 1, 1, 0, 1, 0, 0, 1)  # without a period
PART = {  # the image or sound half of a multimodal model
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
}


def shrink(model_type: str, *, awkward: bool = False, **overrides) -> PreTrainedConfig:
    """The tiny config of a model type: SMALL where the class has the field, then the overrides; parts likewise.

    awkward: also set AWKWARD, and mix lists of layer kinds so that they have no period.
    """
    return _shrunk(CONFIG_MAPPING[model_type], SMALL | (AWKWARD if awkward else {}), overrides, awkward)


def _shrunk(cls: type[PreTrainedConfig], sizes: dict, overrides: dict, awkward: bool) -> PreTrainedConfig:
    known = {field.name for field in fields(cls)} | set(cls.attribute_map)
    content = {k: v for k, v in sizes.items() if k in known} | {
        k: v for k, v in overrides.items() if k not in cls.sub_configs
    }
    for name, part in cls.sub_configs.items():
        part = part if issubclass(part, PreTrainedConfig) else type(getattr(cls(), name))
        if part is not type(None):
            text = name in ("text_config", "attn_config", "ffn_config", "decoder")
            content[name] = _shrunk(
                part, sizes if text else sizes | PART, overrides.get(name, {}), awkward and text
            ).to_dict()
    if "kv_lora_rank" in content and "num_key_value_heads" not in overrides:
        content["num_key_value_heads"] = content["num_attention_heads"]  # latent attention has no grouped heads
    config = cls(**copy.deepcopy(content))
    if not awkward:
        return config
    listed = {
        k: v
        for k, v in config.to_dict().items()
        if k in {field.name for field in fields(cls)} - set(overrides) and _kinds(v)
    }
    return cls(**copy.deepcopy(content | {k: _mixed(v) for k, v in listed.items()})) if listed else config


def _kinds(value: object) -> bool:
    """Whether a field names the kind of each layer, and there are several."""
    listed = isinstance(value, (list, tuple)) and len(value) == LAYERS and all(isinstance(item, str) for item in value)
    return listed and len(set(value)) > 1


def _mixed(value: list[str]) -> list[str]:
    """The same kinds in an order without a period; the first comes first, and of two the second last."""
    kinds = list(dict.fromkeys(value))
    return [kinds[place if len(kinds) == 2 else (place + index) % len(kinds)] for index, place in enumerate(MIXED)]
