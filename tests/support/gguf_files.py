"""Tiny .gguf files of several architectures with random weights, written by the gguf package."""

from pathlib import Path
from typing import Any

import gguf
import numpy as np

WIDE, INNER, WORDS, HEADS, GROUPS, SIZE = 64, 96, 320, 4, 2, 16  # SIZE: of a head


def rows(*sides: int) -> tuple[int, ...]:
    return sides


BASE = {
    "attn_norm.weight": rows(WIDE),
    "attn_q.weight": rows(HEADS * SIZE, WIDE),
    "attn_k.weight": rows(GROUPS * SIZE, WIDE),
    "attn_v.weight": rows(GROUPS * SIZE, WIDE),
    "attn_output.weight": rows(WIDE, HEADS * SIZE),
    "ffn_norm.weight": rows(WIDE),
}
GATED = {"ffn_gate.weight": rows(INNER, WIDE), "ffn_up.weight": rows(INNER, WIDE), "ffn_down.weight": rows(WIDE, INNER)}
BIASES = {
    "attn_q.bias": rows(HEADS * SIZE),
    "attn_k.bias": rows(GROUPS * SIZE),
    "attn_v.bias": rows(GROUPS * SIZE),
}
HEAD_NORMS = {"attn_q_norm.weight": rows(SIZE), "attn_k_norm.weight": rows(SIZE)}
BEHIND = {"post_attention_norm.weight": rows(WIDE), "post_ffw_norm.weight": rows(WIDE)}
EXPERTS = {
    "ffn_gate_inp.weight": rows(4, WIDE),
    "ffn_gate_exps.weight": rows(4, 32, WIDE),
    "ffn_up_exps.weight": rows(4, 32, WIDE),
    "ffn_down_exps.weight": rows(4, WIDE, 32),
}
CONVOLUTION = {
    "attn_norm.weight": rows(WIDE),
    "ffn_norm.weight": rows(WIDE),
    "shortconv.conv.weight": rows(WIDE, 3),
    "shortconv.in_proj.weight": rows(3 * WIDE, WIDE),
    "shortconv.out_proj.weight": rows(WIDE, WIDE),
}
LAYERS: dict[str, dict[str, tuple[int, ...]]] = {
    "llama": BASE | GATED,
    "qwen2": BASE | GATED | BIASES,
    "qwen3": BASE | GATED | HEAD_NORMS,
    "gemma2": BASE | GATED | BEHIND,
    "gemma3": BASE | GATED | BEHIND | HEAD_NORMS,
    "phi3": {
        **{name: BASE[name] for name in ("attn_norm.weight", "attn_output.weight", "ffn_norm.weight")},
        "attn_qkv.weight": rows((HEADS + 2 * GROUPS) * SIZE, WIDE),
        "ffn_up.weight": rows(2 * INNER, WIDE),
        "ffn_down.weight": rows(WIDE, INNER),
    },
    "qwen3moe": BASE | EXPERTS | HEAD_NORMS,
    "smollm3": BASE | GATED,
    "lfm2": BASE | GATED | HEAD_NORMS,
}


def tiny_gguf(
    path: Path, arch: str, layers: int = 6, *, keys: dict[str, Any] | None = None, kind: str = "F32", seed: int = 0
) -> Path:
    """A file of so many layers.

    Args:
        keys: further metadata, or others, by their names behind the architecture's.
        kind: type of the matrices.
    """
    writer = gguf.GGUFWriter(path, arch)
    writer.add_block_count(layers)
    numbers = {"context_length": 256, "embedding_length": WIDE, "feed_forward_length": INNER, "vocab_size": WORDS}
    numbers |= {"attention.head_count": HEADS, "attention.key_length": SIZE, "attention.value_length": SIZE}
    numbers |= {"rope.dimension_count": SIZE} | _own(arch, layers) | (keys or {})
    if "attention.head_count_kv" not in numbers:
        numbers["attention.head_count_kv"] = GROUPS
    for key, value in numbers.items():
        _add(writer, f"{arch}.{key}", value)
    writer.add_float32(f"{arch}.attention.layer_norm_rms_epsilon", 1e-5)
    _add_words(writer)
    writer.add_add_space_prefix(not arch.startswith("gemma"))  # as transformers' importer takes them
    draw = np.random.default_rng(seed)
    shapes = {
        "token_embd.weight": rows(WORDS, WIDE),
        "output_norm.weight": rows(WIDE),
        "output.weight": rows(WORDS, WIDE),
    }
    if arch in ("gemma2", "gemma3"):
        del shapes["output.weight"]  # the embedding is the head
    if arch == "lfm2":
        shapes["token_embd_norm.weight"] = shapes.pop("output_norm.weight")
    for index in range(layers):
        own = CONVOLUTION | GATED if arch == "lfm2" and index % 3 else LAYERS[arch]
        shapes |= {f"blk.{index}.{name}": shape for name, shape in own.items()}
    for name, shape in shapes.items():
        values = draw.normal(1.0 if "norm" in name else 0.0, 0.3, shape).astype(np.float32)
        matrix = len(shape) > 1 and "conv.weight" not in name and "gate_inp" not in name and kind != "F32"
        if matrix:
            packed = gguf.quants.quantize(values, gguf.GGMLQuantizationType[kind])
            writer.add_tensor(name, packed, raw_dtype=gguf.GGMLQuantizationType[kind])
        else:
            writer.add_tensor(name, values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _add_words(writer: gguf.GGUFWriter) -> None:
    """A vocabulary of bytes and made-up words."""
    words = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    words += [f"w{number}" for number in range(WORDS - len(words))]
    kinds = [gguf.TokenType.UNKNOWN, *[gguf.TokenType.CONTROL] * 2, *[gguf.TokenType.BYTE] * 256]
    writer.add_tokenizer_model("llama")
    writer.add_token_list(words)
    writer.add_token_scores([-float(number) for number in range(WORDS)])
    writer.add_token_types([*kinds, *[gguf.TokenType.NORMAL] * (WORDS - len(kinds))])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)


def _own(arch: str, layers: int) -> dict[str, Any]:
    """Metadata that an architecture needs."""
    found: dict[str, Any] = {}
    if arch in ("gemma2", "gemma3"):
        found |= {"attention.sliding_window": 8, "rope.freq_base": 10000.0}
    if arch == "phi3":
        found |= {"attention.head_count_kv": GROUPS, "rope.scaling.original_context_length": 256}
    if arch == "qwen3moe":
        found |= {"expert_count": 4, "expert_used_count": 2, "expert_feed_forward_length": 32}
    if arch == "lfm2":
        found |= {"attention.head_count_kv": [0 if index % 3 else GROUPS for index in range(layers)]}
        found |= {"shortconv.l_cache": 3}
    return found


def _add(writer: gguf.GGUFWriter, key: str, value: Any) -> None:
    if isinstance(value, list):
        writer.add_array(key, value)
    elif isinstance(value, bool):
        writer.add_bool(key, value)
    elif isinstance(value, float):
        writer.add_float32(key, value)
    else:
        writer.add_uint32(key, value)
