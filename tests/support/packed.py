"""Quantised checkpoints, tiny ones, made by hand as each method holds its matrices, without the package of any."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
import zoo
from safetensors.torch import load_file, save_file
from shrinking import shrink

Tensors = dict[str, torch.Tensor]

NF4 = [-1.0, -0.6962, -0.5251, -0.3949, -0.2844, -0.1848, -0.0911, 0.0, 0.0796, 0.1609, 0.2461, 0.3379, 0.4407]
NF4 += [0.5626, 0.7230, 1.0]


def fp8(name: str, weight: torch.Tensor) -> Tensors:
    scale = weight.abs().max() / 448
    blocks = [-(-size // 128) for size in weight.shape]
    return {name: (weight / scale).to(torch.float8_e4m3fn), f"{name}_scale_inv": scale.expand(*blocks).contiguous()}


def integers(*shape: int, dtype=torch.int32) -> torch.Tensor:
    high = 255 if dtype == torch.uint8 else 2**30
    return torch.randint(0, high, shape, dtype=dtype, generator=torch.Generator().manual_seed(0))


def bitsandbytes4(name: str, weight: torch.Tensor) -> Tensors:
    state = {"quant_type": "nf4", "blocksize": 64, "dtype": "bfloat16", "shape": list(weight.shape)}
    blocks = weight.reshape(-1, 64)
    largest = blocks.abs().amax(1)
    codes = (blocks / largest[:, None])[..., None].sub(torch.tensor(NF4)).abs().argmin(-1).flatten()
    return {
        name: (codes[::2] * 16 + codes[1::2]).to(torch.uint8)[:, None],
        f"{name}.absmax": largest,
        f"{name}.quant_map": torch.tensor(NF4),
        f"{name}.quant_state.bitsandbytes__nf4": torch.tensor(list(json.dumps(state).encode()), dtype=torch.uint8),
    }


def bitsandbytes8(name: str, weight: torch.Tensor) -> Tensors:
    base, largest = name.removesuffix("weight"), weight.abs().amax(1)
    return {
        name: (weight / largest[:, None] * 127).round().to(torch.int8),
        f"{base}SCB": largest,
        f"{base}weight_format": torch.tensor(0, dtype=torch.uint8),
    }


def gptq(name: str, weight: torch.Tensor) -> Tensors:
    base, (rows, columns) = name.removesuffix("weight"), weight.shape
    return {
        f"{base}qweight": integers(columns // 8, rows),
        f"{base}qzeros": integers(columns // 32, rows // 8),
        f"{base}scales": torch.full((columns // 32, rows), 0.01).half(),
        f"{base}g_idx": torch.arange(columns, dtype=torch.int32) // 32,
    }


def awq(name: str, weight: torch.Tensor) -> Tensors:
    base, (rows, columns) = name.removesuffix("weight"), weight.shape
    return {
        f"{base}qweight": integers(columns, rows // 8),
        f"{base}qzeros": integers(columns // 32, rows // 8),
        f"{base}scales": torch.full((columns // 32, rows), 0.01).half(),
    }


def compressed4(name: str, weight: torch.Tensor) -> Tensors:
    rows, columns = weight.shape
    return {
        f"{name}_packed": integers(rows, columns // 8),
        f"{name}_scale": torch.full((rows, columns // 32), 0.01).bfloat16(),
        f"{name}_shape": torch.tensor([rows, columns]),
    }


def compressed8(name: str, weight: torch.Tensor) -> Tensors:
    scale = weight.abs().amax(1, keepdim=True) / 127
    return {name: (weight / scale).round().to(torch.int8), f"{name}_scale": scale.bfloat16()}


def mxfp4(name: str, weight: torch.Tensor) -> Tensors:
    experts, inside, outside = weight.shape
    shape = (experts, outside, inside // 32)
    scales = torch.full(shape, 124, dtype=torch.uint8)
    return {f"{name}_blocks": integers(*shape, 16, dtype=torch.uint8), f"{name}_scales": scales}


def affine(name: str, weight: torch.Tensor) -> Tensors:
    """As Apple's programs do: four bits, groups of 64, the least value of each beside its step."""
    base, (rows, columns) = name.removesuffix("weight"), weight.shape
    groups = weight.reshape(rows, columns // 64, 64)
    least = groups.amin(-1)
    step = (groups.amax(-1) - least) / 15
    codes = ((groups - least[..., None]) / step[..., None]).round().to(torch.int64).reshape(rows, -1, 8)
    words = (codes << torch.arange(0, 32, 4)).sum(-1)
    about = {f"{base}scales": step.bfloat16(), f"{base}qbiases": least.bfloat16()}
    return {name: words.to(torch.uint32), **about}


def ternary(name: str, weight: torch.Tensor) -> Tensors:
    """As BitNet does: four values of -1, 0 or 1 in a byte, rows of four quarters of the matrix together."""
    scale = 1 / weight.abs().mean()
    codes = (weight * scale).round().clamp(-1, 1).add(1).to(torch.uint8).chunk(4)
    words = sum(part << 2 * place for place, part in enumerate(codes))
    return {name: words, f"{name}_scale": scale.reshape(1).bfloat16()}


def torchao(name: str, weight: torch.Tensor) -> Tensors:
    base, scale = name.removesuffix("weight"), weight.abs().amax(1, keepdim=True) / 127
    return {
        f"{base}_weight_qdata": (weight / scale).round().to(torch.int8),
        f"{base}_weight_scale": scale,
        f"{base}_weight_zero_point": torch.zeros_like(scale, dtype=torch.int8),
    }


def said_of(names: list[str], packed: set[str]) -> dict[str, str]:
    """What torchao says in the header of the file: how each weight is packed, by its name, and all the names."""
    size, dtype = [1, 128], {"_type": "torch.dtype", "_data": "bfloat16"}
    kind = {"act_quant_kwargs": None, "reduce_range": False, "block_size": size, "dtype": dtype}
    about = {"_type": "Int8Tensor", "_data": kind, "_tensor_data_names": ["qdata", "scale", "zero_point"]}
    each = {name: json.dumps(about if name in packed else {"_type": "Tensor"}) for name in names}
    return {**each, "tensor_names": json.dumps(names)}


class Format(NamedTuple):
    """What a method's config says, and how it holds a matrix."""

    about: dict[str, Any]
    hold: Callable[[str, torch.Tensor], Tensors]
    field: str = "quantization_config"
    said_of: Callable[[list[str], set[str]], dict[str, str]] = lambda names, packed: {}

    @property
    def said(self) -> str:
        """The method as messages name it."""
        return self.about.get("quant_method", "an unknown method")


GROUP = {"num_bits": 4, "type": "int", "symmetric": True, "strategy": "group", "group_size": 32}
CHANNEL = {"num_bits": 8, "type": "int", "symmetric": True, "strategy": "channel"}
TOKEN = {"num_bits": 8, "type": "int", "symmetric": True, "strategy": "token", "dynamic": True}


def _method(name: str, **about: Any) -> dict[str, Any]:
    return {"quant_method": name, **about}


def _compressed(kind: str, **group: Any) -> dict[str, Any]:
    groups = {"group_0": {"targets": ["Linear"], **group}}
    status = {"quantization_status": "compressed", "ignore": ["lm_head"]}
    return _method("compressed-tensors", format=kind, config_groups=groups, **status)


FORMATS = {
    "fp8": Format(
        _method("fp8", activation_scheme="dynamic", weight_block_size=[128, 128], modules_to_not_convert=["lm_head"]),
        fp8,
    ),
    "bitsandbytes-4": Format(
        _method("bitsandbytes", load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype="bfloat16"),
        bitsandbytes4,
    ),
    "bitsandbytes-8": Format(_method("bitsandbytes", load_in_8bit=True), bitsandbytes8),
    "gptq": Format(_method("gptq", bits=4, group_size=32, desc_act=False, sym=True), gptq),
    "awq": Format(_method("awq", bits=4, group_size=32, zero_point=True, version="gemm"), awq),
    "compressed-w4a16": Format(_compressed("pack-quantized", weights=GROUP), compressed4),
    "compressed-w8a8": Format(_compressed("int-quantized", weights=CHANNEL, input_activations=TOKEN), compressed8),
    "mxfp4": Format(
        _method("mxfp4", modules_to_not_convert=["model.layers.*.self_attn", "model.layers.*.mlp.router", "lm_head"]),
        mxfp4,
    ),
    "metal": Format(_method("metal", bits=4, group_size=64, modules_to_not_convert=["lm_head"]), affine),
    "mlx": Format({"group_size": 64, "bits": 4}, affine, field="quantization"),
    "bitnet": Format(_method("bitnet", modules_to_not_convert=["lm_head"]), ternary),
    "torchao": Format(
        _method(
            "torchao",
            quant_type={
                "default": {
                    "_type": "Int8WeightOnlyConfig",
                    "_version": 2,
                    "_data": {
                        "granularity": {"_type": "PerRow", "_version": 1, "_data": {"dim": -1}},
                        "group_size": None,
                        "set_inductor_config": True,
                    },
                }
            },
        ),
        torchao,
        said_of=said_of,
    ),
    "modelopt": Format(_method("modelopt", quant_algo="FP8", ignore=["lm_head"]), compressed8),
}


def save_packed(name: str, folder: Path, layers: int = 4) -> Path:
    """A tiny model whose matrices are held as a method of ``FORMATS`` holds them."""
    form = FORMATS[name]
    sizes = {} if name == "mxfp4" else {"hidden_size": 128, "intermediate_size": 128}
    kind = "gpt_oss" if name == "mxfp4" else "llama"
    model = zoo.build(name, shrink(kind, num_hidden_layers=layers, **sizes))
    folder = zoo.save(model, folder, dtype=torch.bfloat16)
    plain = load_file(folder / "model.safetensors")
    deep = 3 if name == "mxfp4" else 2
    packed = {key for key, tensor in plain.items() if tensor.dim() == deep and (deep == 3 or "_proj" in key)}
    tensors: Tensors = {}
    for key, tensor in plain.items():
        tensors |= form.hold(key, tensor.float()) if key in packed else {key: tensor}
    tensors = {key: tensor.contiguous() for key, tensor in tensors.items()}
    save_file(tensors, folder / "model.safetensors", {"format": "pt"} | form.said_of(sorted(plain), packed))
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {form.field: form.about}))
    return folder
