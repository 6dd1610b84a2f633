"""Tiny random causal LMs of many families, a tiny tokenizer, and plain checkpoint folders for the tests.

Every model has 8 layers (so patterns of period 2, 3, 4 and 6 show), fp32, eval mode, and the same weights every time.
Rule fields are set awkwardly on purpose: mixed layer types, dense layers first, every second layer sparse.
"""

import copy
import math
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pytest
import torch
import transformers
from packaging.version import Version
from shrinking import LAYERS, VOCAB, shrink
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    CONFIG_MAPPING,
    AutoModelForCausalLM,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)
from transformers import __version__ as transformers_version

SPECIAL = ("<pad>", "<bos>", "<eos>", "<unk>")  # ids 0 to 3
REMOVALS = ((2,), (1, 4), (0, 3, 5))
# Older releases (5.17 was tried) tell which layer makes the keys and values by its index, so that some removals are
# refused there.
KEYS_BY_KIND = "exact" if Version(transformers_version) >= Version("5.23") else "either"


@dataclass(frozen=True)
class Family:
    """One model to try: how to build it, what to remove, and what the pruned checkpoint should be.

    expect: "exact" (same logits as bypassing the layers), "refused", or "either" (exact or refused, never wrong).
    """

    name: str
    build: Callable[[], PreTrainedModel]
    removals: tuple[tuple[int, ...], ...] = REMOVALS
    expect: str = "exact"
    note: str = ""


# ---------------------------------------------------------------- models


def randomise(model: PreTrainedModel, seed: int) -> None:
    """Draw every matrix anew and shake every vector, so that each layer matters and no two are alike."""
    generator = torch.Generator().manual_seed(seed)
    matrices = {
        parameter.data_ptr() for parameter in model.parameters() if parameter.dim() >= 2
    }  # saved tables of masks stay
    seen = set()
    for tensor in model.state_dict().values():  # parameters and saved buffers, shared ones several times
        if not tensor.is_floating_point() or tensor.data_ptr() in seen:
            continue
        seen.add(tensor.data_ptr())
        noise = torch.randn(tensor.shape, generator=generator)
        if tensor.data_ptr() in matrices:
            tensor.copy_(noise / math.sqrt(tensor.shape[-1]))
        elif tensor.dim() < 2:  # norms (about 1, or 0 where the code adds 1), biases, router corrections
            tensor.add_(noise, alpha=0.1)


def build(name: str, config: PreTrainedConfig) -> PreTrainedModel:
    """The random model of a config; the name alone decides the weights."""
    seed = zlib.crc32(name.encode())
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(seed)  # a few constructors draw vectors
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
        randomise(model, seed)
    return model.eval()


def _build(name: str, config: dict) -> PreTrainedModel:
    kind = name.partition("+")[0]
    if kind not in CONFIG_MAPPING:
        pytest.skip(f"transformers {transformers_version} has no {kind}")
    return build(name, shrink(kind, **config))


def _family(name: str, removals=REMOVALS, expect: str = "exact", note: str = "", **config) -> Family:
    return Family(name, partial(_build, name, config), removals, expect, note)


def _every(period: int, special: str, other: str) -> list[str]:
    """Layer types with `special` as the last of each period."""
    return [other if (i + 1) % period else special for i in range(LAYERS)]


_JAMBA = {"attn_layer_period": 4, "attn_layer_offset": 2, "expert_layer_period": 2, "expert_layer_offset": 1}

_MIXED = ["sliding_attention", "sliding_attention", "full_attention"] * 2 + ["sliding_attention", "full_attention"]
_SHARING = (
    (1,),
    (3, 5),
    (0, 1, 5),
)  # of layers 5 to 7, which use the keys and values that others make, some go and some stay
_BLOCKS = {
    "layer_types": _every(3, "hybrid", "hybrid_sliding"),
    "n_layers_per_attn_res_block": 4,
    "swa_num_attention_heads": 4,
    "swa_num_key_value_heads": 2,
    "swa_head_dim": 16,
    "unpadded_vocab_size": VOCAB,
    "rel_extent": 32,
}
_ZAMBA = {
    "layers_block_type": ["hybrid" if index in (1, 3, 6) else "linear_attention" for index in range(LAYERS)],
    "attention_head_dim": 32,
    "num_key_value_heads": 4,
}
_ZAMBA2 = {
    "layers_block_type": _every(3, "hybrid", "linear_attention"),
    "head_dim": 32,
    "num_key_value_heads": 4,
    "time_step_min": 1e-9,  # its cached decoding does not clamp the time step
}

FAMILIES: dict[str, Family] = {
    family.name: family
    for family in (
        # dense, all layers alike
        _family("llama"),
        _family("llama+tied", tie_word_embeddings=True),
        _family("mistral"),
        _family("qwen3"),
        _family("phi3"),
        _family("phi"),
        _family("stablelm"),
        _family("starcoder2"),
        _family("olmo2"),
        _family(
            "granite", embedding_multiplier=2.0, attention_multiplier=0.25, residual_multiplier=0.5, logits_scaling=2.0
        ),
        # older layouts: other names, layers that return tuples
        _family("gpt2"),
        _family("gpt_neox"),
        _family("gptj", rotary_dim=8),
        _family("gpt_neo", attention_types=[[["global", "local"], 4]], note="every layer holds the whole list"),
        _family("roberta", note="generation numbers positions otherwise than a bare forward"),
        _family("opt"),
        _family("bloom"),
        _family("falcon"),
        # mixed attention, lists of layer types
        _family("qwen2", use_sliding_window=True, layer_types=_every(3, "full_attention", "sliding_attention")),
        _family("gemma2"),
        _family("gemma3_text"),
        _family("gemma3", note="multimodal wrapper of gemma3_text"),
        _family("smollm3", note="no rope in every 4th layer"),
        _family("cohere2", logit_scale=1.0),
        _family(
            "modernbert-decoder",
            removals=((2,), (1, 4), (3, 5)),
            local_attention=16,
            note="see modernbert-decoder+first",
        ),
        _family(
            "modernbert-decoder+first",
            removals=((0, 3, 5), (0,)),
            expect="refused",
            local_attention=16,
            note="layer 0 has no attn_norm, so no other layer can be first",
        ),
        # experts
        _family("mixtral"),
        _family("qwen3_moe"),
        _family("qwen3_moe+sparse_step", decoder_sparse_step=2),
        _family("qwen2_moe+sparse_step", decoder_sparse_step=2),
        _family("deepseek_v3", num_key_value_heads=4, first_k_dense_replace=2, n_group=2, topk_group=1),
        _family(
            "llama4_text",
            interleave_moe_layer_step=2,
            num_experts_per_tok=1,
            attention_chunk_size=8,
            floor_scale=8,
            note="moe_layers is a list of indices",
        ),
        _family(
            "llama4_text+every",
            removals=((1, 4),),
            num_experts_per_tok=1,
            attention_chunk_size=8,
            floor_scale=8,
            note="moe_layers lists every index: as long as the stack, and yet no list by layer",
        ),
        _family("gpt_oss"),
        _family(
            "longcat_flash",
            num_layers=LAYERS,
            num_hidden_layers=2 * LAYERS,
            head_dim=8,
            zero_expert_num=2,
            note="indices by two",
        ),
        # recurrent layers
        _family("mamba"),
        _family("lfm2", layer_types=_every(3, "full_attention", "conv"), block_auto_adjust_ff_dim=False),
        _family("recurrent_gemma", lru_width=64, note="block_types is cycled: recurrent, recurrent, attention"),
        _family(
            "qwen3_next",
            linear_key_head_dim=16,
            linear_value_head_dim=16,
            linear_num_key_heads=2,
            linear_num_value_heads=4,
            decoder_sparse_step=2,
            mlp_only_layers=[1],
            note="dense layers of both kinds of attention",
        ),
        _family(
            "minimax",
            block_size=8,
            sliding_window=None,
            layer_types=_every(3, "full_attention", "linear_attention"),
            note="saved buffers that the constructor makes from the layer's index",
        ),
        _family("jamba", removals=((2,),), expect="refused", note="periods only, and what is kept has none", **_JAMBA),
        _family("jamba+period", removals=((4, 5, 6, 7), (0, 1, 2, 3)), note="one whole period removed", **_JAMBA),
        # constants that depend on the depth or on the layer's index
        _family("minicpm3", num_key_value_heads=4, dim_model_base=64, note="scale_depth / sqrt(num_hidden_layers)"),
        _family("diffllama", expect="refused", note="lambda_init depends on the layer's index"),
        # tensors outside the layers with a part per layer, keys and values shared by layers, sizes by layer
        _family(
            "gemma3n_text",
            removals=((1,), (0, 6), (1, 3, 7)),
            expect=KEYS_BY_KIND,
            num_kv_shared_layers=3,
            layer_types=_MIXED,
        ),
        _family("gemma3n_text+noshare", num_kv_shared_layers=0, layer_types=_MIXED),
        _family(
            "gemma3n_text+refused",
            removals=((4,), (0, 3, 4), (2, 5)),
            expect="refused",
            num_kv_shared_layers=3,
            note="layers 2 (full) and 4 (sliding) make the keys and values of layers 5 to 7",
            layer_types=_MIXED,
        ),
        _family("gemma4_text", removals=_SHARING, num_kv_shared_layers=3, global_head_dim=16, layer_types=_MIXED),
        _family(
            "gemma4_text+noshare",
            removals=((2,), (1, 6), (0, 3, 5)),
            expect=KEYS_BY_KIND,
            num_kv_shared_layers=0,
            global_head_dim=16,
            layer_types=_MIXED,
        ),
        _family(
            "gemma4_text+hetero",
            removals=_SHARING,
            num_kv_shared_layers=3,
            global_head_dim=32,
            num_global_key_value_heads=1,
            attention_k_eq_v=True,
            use_double_wide_mlp=True,
            note="per_layer_config: other head sizes in full attention",
            layer_types=_MIXED,
        ),
        _family(
            "gemma4_text+refused",
            removals=((4,), (2, 6), (7,)),
            expect="refused",
            num_kv_shared_layers=3,
            global_head_dim=16,
            note="layers 2 and 4 make the keys and values of layers 5 to 7; the last layer has to be full attention",
            layer_types=_MIXED,
        ),
        _family(
            "gemma4",
            removals=_SHARING,
            vision_config={"position_embedding_size": 16},
            text_config={"num_kv_shared_layers": 3, "global_head_dim": 32, "layer_types": _MIXED},
            note="multimodal wrapper of gemma4_text",
        ),
        # a residual across layers, told by each layer's place in its block of four; in the files its queries lie apart
        _family("inkling2_text", removals=((7,), (6, 7), (5, 6, 7)), **_BLOCKS),
        _family("inkling2_text+refused", removals=((2,),), expect="refused", **_BLOCKS),
        _family(
            "hy_v4",
            removals=((0, 3, 5),),
            expect="refused",
            indexer_types=["full", "shared", "shared", "full", "shared", "full", "full", "shared"],
            note="a shared indexer needs a full one before it",
        ),
        # weights shared across layers
        _family(
            "zamba",
            removals=((1,), (0, 4), (2, 3, 7)),
            note="layers 1, 3 and 6 share one block, which the files keep in 1",
            **_ZAMBA,
        ),
        _family(
            "zamba+refused",
            removals=((1, 3), (0, 3, 6)),
            expect="refused",
            note="its code needs two users of the block",
            **_ZAMBA,
        ),
        _family("zamba2", removals=((0,), (1, 4), (3, 6, 7)), note="layers 2 and 5 share one block", **_ZAMBA2),
        _family(
            "zamba2+refused",
            removals=((2,), (0, 3, 5)),
            expect="refused",
            note="the shared block of layers 2 and 5 has an adapter for each of them",
            **_ZAMBA2,
        ),
    )
}


# ---------------------------------------------------------------- tokenizer, data, checkpoints

_SENTENCES = """\
The quick brown fox jumps over the lazy dog, and the dog does not even open one eye.
She opened the old wooden door, looked around the empty room, and asked whether anybody was still there.
In 1969, after 8 years of work, three men flew to the moon; two of them walked on it for 21 hours.
A small model with fewer layers answers faster, but which of its layers can be removed without harm?
"What would you like for dinner?" he said. "Bread, cheese, and a little soup," they answered together.
Water boils at 100 degrees where the air is thick, and at less where the mountains are high.
def remove(layers, index): return [layer for i, layer in enumerate(layers) if i != index]
The committee will meet again on Thursday to discuss the report, the budget, and other questions.
It was raining when we left the station, so we waited under the bridge until the storm had passed.
Every number that is greater than one is either a prime or a product of several primes.
"""


def tokenizer(vocab: int = VOCAB) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer of at most `vocab` (260 or more) entries; it adds no special tokens by itself."""
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    if vocab < len(alphabet) + len(SPECIAL):
        raise ValueError(f"byte-level BPE needs {len(alphabet) + len(SPECIAL)} entries, not {vocab}")
    backend = Tokenizer(models.BPE(unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab, special_tokens=list(SPECIAL), initial_alphabet=sorted(alphabet), show_progress=False
    )
    backend.train_from_iterator(_SENTENCES.splitlines(), trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token="<pad>", bos_token="<bos>", eos_token="<eos>", unk_token="<unk>"
    )


def tokens(batch: int = 2, length: int = 24, vocab: int = VOCAB, seed: int = 0) -> torch.LongTensor:
    """Random token ids without special tokens."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(len(SPECIAL), vocab, (batch, length), generator=generator)


def save(
    name_or_model: str | PreTrainedModel,
    folder: str | Path,
    dtype: torch.dtype | None = None,
    max_shard_size: int | str | None = None,
    with_tokenizer: bool = True,
) -> Path:
    """Write a plain checkpoint folder; a model that is passed in stays as it is."""
    model = FAMILIES[name_or_model].build() if isinstance(name_or_model, str) else name_or_model
    if dtype is not None:
        model = copy.deepcopy(model).to(dtype)
    transformers.utils.logging.disable_progress_bar()  # so that tests of what is printed see what the package prints
    model.save_pretrained(folder, **({} if max_shard_size is None else {"max_shard_size": max_shard_size}))
    if with_tokenizer:
        tokenizer(model.get_input_embeddings().num_embeddings).save_pretrained(folder)
    return Path(folder)
