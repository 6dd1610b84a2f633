"""How ``families.py`` tries each model type, where generic shrinking cannot guess it."""

import dataclasses
from dataclasses import dataclass, field

from shrinking import LAYERS, VOCAB
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from zoo import REMOVALS


@dataclass(frozen=True)
class Setting:
    """How one type is tried.

    Attributes:
        config: overrides of the shrunk config; of a multimodal type, of its text part's own type as well.
        removals: sets of layers that have to come out exact.
        illegal: sets that have to be refused, because no config describes what is left.
        note: why these.
        absent: why the type is not built at all.
    """

    config: dict = field(default_factory=dict)
    removals: tuple[tuple[int, ...], ...] = REMOVALS
    illegal: tuple[tuple[int, ...], ...] = ()
    note: str = ""
    absent: str = ""


def _every(period: int, special: str, other: str) -> list[str]:
    return [other if (index + 1) % period else special for index in range(LAYERS)]


_SOUND = "audio tokens need an audio encoder or a codec beside the text"
_DRAFTER = "a drafter: it reads the keys and values of the model that it drafts for"
_ROPE_BY_KIND = {
    "full_attention": {"rope_type": "default", "rope_theta": 1e6},
    "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
}
_STEP = {"time_step_min": 1e-9}
_STEP_NOTE = "time_step_min clamps the prefill alone: with a larger one the dense model's cache goes wrong"
_SWA = {"swa_num_attention_heads": 4, "swa_num_key_value_heads": 2, "swa_head_dim": 16}
_MAKERS_STAY = ((2,), (1, 3), (0, 3, 6))
_MAKERS_GO = ((1, 4), (0, 3, 5))
_MAKERS_NOTE = "layers 4 and 5, which make keys and values for the last two, cannot go"
SETTINGS: dict[str, Setting] = {
    "dots3_note_text": Setting(
        {
            "swa_num_attention_heads": 4,
            "swa_num_key_value_heads": 4,
            "swa_q_lora_rank": 24,
            "swa_kv_lora_rank": 16,
            "swa_head_dim": 24,
            "swa_qk_nope_head_dim": 16,
            "swa_v_head_dim": 16,
        }
    ),
    "dots1": Setting({"n_shared_experts": 1}),
    "gpt_neo": Setting({"attention_types": [[["global", "local"], 4]]}),
    "lfm2_moe": Setting({"layer_types": _every(3, "full_attention", "conv")}),
    "mamba2": Setting({"num_heads": 8, "head_dim": 16}),
    "qwen4_exp_text": Setting(
        {
            "ple_layer_ids": [6, 7],
            "ngram_vocab_size_base": 64,
            "heads_per_ngram": 2,
            "split_ngram_parts": 2,
            "hc_lowrank": 8,
            "hc_count": 2,
            "indexer_n_heads": 4,
            "indexer_kv_heads": 1,
            "indexer_head_dim": 16,
            "indexer_budget": 64,
            "indexer_compress_ratio": 4,
        },
        removals=((2,), (1, 4), (0, 3, 6)),
        illegal=((0, 3, 5),),
        note="ple_layer_ids count from 1; the sizes of a layer's hash tables depend on how many tables come before it",
    ),
    "cohere_compass_text": Setting(
        {"layer_types": _every(3, "full_attention", "sliding_attention"), "rope_parameters": _ROPE_BY_KIND}
    ),
    "dbrx": Setting(
        {
            "d_model": 64,
            "attn_config": {"rope_theta": 10000.0, "clip_qkv": 8.0, "kv_n_heads": 2},
            "ffn_config": {"hidden_size": 64, "moe_top_k": 2},
        }
    ),
    "dots3_note": Setting(
        {
            "vision_config": {"mlp_layer_types": ["dense", "sparse"], "adapter_in_dim": 32, "adapter_out_dim": 64},
            "audio_config": {"adapter_input_size": 32, "adapter_out_dim": 64},
        }
    ),
    "longcat_flash": Setting({"num_hidden_layers": 16, "num_layers": 8, "head_dim": 8, "zero_expert_num": 2}),
    "reformer": Setting(
        {"axial_pos_shape": [16, 16], "axial_pos_embds_dim": [16, 48], "attn_layers": ["local", "lsh"] * 4}
    ),
    "roc_bert": Setting({"pronunciation_embed_dim": 16, "shape_embed_dim": 16, "shape_vocab_size": VOCAB}),
    "inkling_text": Setting(_SWA),
    "inkling2_text": Setting(
        _SWA,
        removals=((2,), (1, 4), (3, 5, 7)),
        illegal=((0, 3, 5),),
        note="layer 0 reads no earlier block, so no other layer can be first",
    ),
    "gemma3n": Setting(
        absent="its image half needs a package that is not installed; the text part is a type of its own"
    ),
    "gemma4_assistant": Setting(absent=_DRAFTER),
    "gemma4_unified_assistant": Setting(absent=_DRAFTER),
    "musicgen": Setting(absent=_SOUND),
    "musicgen_melody": Setting(absent=_SOUND),
    "xmod": Setting({"default_language": "en_XX"}),
    "zamba": Setting(
        {"layers_block_type": ["linear_attention", "linear_attention", *["hybrid", "linear_attention"] * 3]},
        illegal=((2, 4),),
        note="layers 2, 4 and 6 share one block; transformers cannot build a model with one such layer",
    ),
    "zamba2": Setting(
        {
            "layers_block_type": _every(3, "hybrid", "linear_attention"),
            "head_dim": 32,
            "num_key_value_heads": 4,
            **_STEP,
        },
        removals=((1,), (1, 4), (0, 3, 6)),
        illegal=((2,), (0, 3, 5)),
        note=f"layers 2 and 5 share a block that holds an adapter for each of them, so neither can go; {_STEP_NOTE}",
    ),
    "zaya": Setting(
        {"num_experts_per_tok": 1},
        removals=((2,), (1, 4), (3, 5, 6)),
        illegal=((0, 3, 5),),
        note="the router of layer 0 alone reads no earlier router's state, so no other layer can be first",
    ),
    "bamba": Setting({"attn_layer_indices": [1, 4, 6]}),
    "granitemoehybrid": Setting(
        {"layer_types": [*_every(3, "full_attention", "linear_attention")[:-1], "full_attention"]}
    ),
    "beam": Setting(
        removals=((7,), (6, 7), (4, 5, 6, 7)),
        illegal=((2,), (0,)),
        note="attn_residual_add_idx depends on the layer's index: only the tail may go",
    ),
    "gemma3n_text": Setting(removals=_MAKERS_STAY, illegal=_MAKERS_GO, note=_MAKERS_NOTE),
    "gemma4_text": Setting(removals=_MAKERS_STAY, illegal=_MAKERS_GO, note=_MAKERS_NOTE),
    "gemma4_unified_text": Setting(removals=_MAKERS_STAY, illegal=_MAKERS_GO, note=_MAKERS_NOTE),
    "hy_v4": Setting(
        {"indexer_types": ["full", "shared", "shared", "full", "shared", "full", "full", "shared"]},
        removals=((2,), (1, 4), (0, 1, 2)),
        illegal=((0, 3, 5),),
        note="a shared indexer needs a full one before it",
    ),
    "nemotron_h": Setting(
        {
            **_STEP,
            "layers_block_type": [
                "linear_attention",
                "moe",
                "full_attention",
                "mlp",
                "linear_attention",
                "full_attention",
                "moe",
                "mlp",
            ],
        },
        note=_STEP_NOTE,
    ),
    "prophetnet": Setting({"num_decoder_layers": 8, "num_decoder_attention_heads": 4}),
    "moshi": Setting(
        {"sliding_window": 64}, note="with a window shorter than the text the dense model's cache goes wrong"
    ),
    "rwkv": Setting(
        {"rescale_every": 0},
        removals=((2,), (1, 4), (3, 5, 6)),
        illegal=((0, 3, 5),),
        note="layer 0 alone normalises its input; with rescale_every the stream is halved after every sixth layer, "
        "also when earlier ones "
        "are gone: then the logits agree to 1e-4 only, because the norms' epsilon weighs more",
    ),
    "blt": Setting(
        {"encoder_hash_byte_group_vocab": 64},
        note="its forward makes a cache from a config of four parts that names no depth",
    ),
    "xlm": Setting({"causal": True}),
    "xlnet": Setting({"attn_type": "uni"}),
    "xlstm": Setting({"qk_dim_factor": 1.0}, note="with narrower queries the dense model cannot use its cache"),
    "minimax": Setting(
        {"block_size": 8, "sliding_window": None}, note="with a sliding window the dense model's cache goes wrong"
    ),
    "ernie4_5_moe": Setting({"moe_layer_start_index": 2, "moe_layer_end_index": 6}),
    "jamba": Setting(
        {"attn_layer_period": 4, "attn_layer_offset": 2, "expert_layer_period": 2, "expert_layer_offset": 1},
        removals=((4, 5, 6, 7), (0, 1, 2, 3), (6, 7)),
        illegal=((2,), (1, 4)),
        note="its config knows periods only: whole periods or layers of the tail may go",
    ),
    "modernbert-decoder": Setting(
        removals=((2,), (1, 4), (3, 5)),
        illegal=((0, 3, 5),),
        note="layer 0 has no attention norm, so no other layer can be first",
    ),
    "diffllama": Setting(
        removals=((7,), (6, 7), (4, 5, 6, 7)),
        illegal=((2,), (0,)),
        note="lambda_init depends on the layer's index: only the tail may go",
    ),
    "minicpm3": Setting({"dim_model_base": 64}, note="scale_depth / sqrt(num_hidden_layers)"),
    "llama4_text": Setting({"num_experts_per_tok": 1, "floor_scale": 8}, note="moe_layers is a list of indices"),
}


def setting(name: str) -> Setting:
    """The type's own setting; a multimodal type takes that of its text part."""
    own = SETTINGS.get(name, Setting())
    part = CONFIG_MAPPING[name].sub_configs.get("text_config")
    text = SETTINGS.get(getattr(part, "model_type", ""))
    if text is None or own.absent:
        return own
    text_config = text.config | own.config.get("text_config", {})
    return dataclasses.replace(text, config=own.config | {"text_config": text_config}, note=own.note or text.note)
