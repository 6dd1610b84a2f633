"""CPU kernels of the same precision, but faster.

OneDNN for fp32 linear layers, at about twice the speed of the default; bf16 and fp16 through it where the CPU has no
products of theirs; weights that are multiplied often kept in its own order.
"""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import cache

import torch
from torch import Tensor, nn
from torch.nn.functional import linear
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from .forwards import replaced_forwards

AVAILABLE = torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")
FEW = 1 << 15  # multiplications below this are not worth the longer way there
OFTEN = 4  # calls from which on reordering a weight once takes less time than oneDNN's doing so in each
NARROW = 1024  # the shorter side of a weight above which nothing is gained
LARGEST = 256 << 20  # bytes of a weight that are not held twice


def product(stream: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """stream @ weight.T + bias by oneDNN, (..., in) x (out, in) -> (..., out); no gradient."""
    return torch.ops.mkldnn._linear_pointwise(stream, weight, bias, "none", [], "")


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx, stream: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(stream, weight)
        return product(stream, weight, bias)

    @staticmethod
    def backward(ctx, gradient: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        stream, weight = ctx.saved_tensors
        needs = ctx.needs_input_grad
        rows = gradient.flatten(0, -2)
        return (
            product(gradient, weight.t()) if needs[0] else None,
            product(rows.t(), stream.flatten(0, -2).t()) if needs[1] else None,
            rows.sum(0) if needs[2] else None,
        )


def fast_linear(stream: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """``torch.nn.functional.linear`` on a CPU through oneDNN where that is the faster one, bf16 and fp16 through fp32
    where the CPU
    has no products of theirs: each product is exact, the sum is rounded once, as on CPUs that have them."""
    alike = stream.dtype == weight.dtype and stream.device.type == "cpu" and stream.dim() >= 2
    usable = AVAILABLE and alike and (stream.dtype == torch.float32 or is_emulated(stream.dtype))
    if (
        not usable
        or is_traceable_wrapper_subclass(weight)
        or stream.numel() * weight.shape[0] < FEW
        or torch.is_autocast_enabled("cpu")
    ):
        return linear(stream, weight, bias)
    if stream.dtype != torch.float32:
        return fast_linear(stream.float(), weight.float(), None if bias is None else bias.float()).to(stream.dtype)
    if torch.is_grad_enabled():
        return _Linear.apply(stream, weight, bias)
    return product(stream, weight, bias)


@cache
def is_emulated(dtype: torch.dtype) -> bool:
    """Whether oneDNN only imitates products of this dtype on this CPU, several times slower than fp32."""
    known = {torch.bfloat16: "_is_mkldnn_bf16_supported", torch.float16: "_is_mkldnn_fp16_supported"}
    return AVAILABLE and dtype in known and not getattr(torch.ops.mkldnn, known[dtype])()


@contextmanager
def exact_products() -> Iterator[None]:
    """No TF32 on a GPU while inside.

    Fp32 products in fp32 and sums of bf16 products in fp32, whatever the process had set.
    """
    matmul, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    if not torch.cuda.is_available():
        yield
        return
    before = torch.get_float32_matmul_precision(), cudnn.allow_tf32, matmul.allow_bf16_reduced_precision_reduction
    try:
        torch.set_float32_matmul_precision("highest")
        cudnn.allow_tf32 = matmul.allow_bf16_reduced_precision_reduction = False
        yield
    finally:
        torch.set_float32_matmul_precision(before[0])
        cudnn.allow_tf32, matmul.allow_bf16_reduced_precision_reduction = before[1:]


@contextmanager
def fast_products(model: nn.Module) -> Iterator[None]:
    """Let the model's plain linear layers use ``fast_linear`` while inside, and no TF32.

    Layers of other classes stay as they are.
    """
    on_cpu = AVAILABLE and any(parameter.device.type in ("cpu", "meta") for parameter in model.parameters())
    plain = (
        [module for module in model.modules() if _is_linear(module) and "forward" not in module.__dict__]
        if on_cpu
        else []
    )
    with exact_products(), replaced_forwards((module, _forward(module)) for module in plain):
        yield


def _forward(module: nn.Linear) -> Callable[[Tensor], Tensor]:
    return lambda stream: fast_linear(stream, module.weight, module.bias)


def packed_weights(module: nn.Module | None, calls: int) -> AbstractContextManager[None]:
    """Let plain linear layers within a module hold their weights in oneDNN's order while inside, if it is called often
    enough to pay.

    The results are those without, bit for bit. The weights must stay as they are meanwhile; they are read at the first
    call.
    """
    inside = module.modules() if module is not None and AVAILABLE and calls >= OFTEN else ()
    return replaced_forwards((one, _holding(one)) for one in inside if _is_linear(one))


def _is_linear(module: nn.Module) -> bool:
    """Whether a module multiplies by its weight and does nothing else; quantised ones may round what enters too."""
    return type(module) is nn.Linear and not hasattr(module, "quantization_scheme")


def _holding(module: nn.Linear) -> Callable[[Tensor], Tensor]:
    plain = module.forward
    cache = []

    def forward(stream: Tensor) -> Tensor:
        weight, bias = module.weight, module.bias
        if not _worth_holding(stream, weight):
            return plain(stream)
        kind = torch.float32 if is_emulated(weight.dtype) else weight.dtype
        if not cache:
            cache.append(
                torch.ops.mkldnn._reorder_linear_weight(weight.detach().to(kind), stream.numel() // stream.shape[-1])
            )
        return product(stream.to(kind), cache[0], None if bias is None else bias.to(kind)).to(stream.dtype)

    return forward


def _worth_holding(stream: Tensor, weight: Tensor) -> bool:
    known = weight.dtype in (torch.float32, torch.bfloat16) or is_emulated(weight.dtype)
    known = known and not is_traceable_wrapper_subclass(weight)
    alike = known and stream.dtype == weight.dtype and stream.device.type == "cpu" and stream.dim() >= 2
    if not alike or torch.is_grad_enabled() or torch.is_autocast_enabled("cpu"):
        return False
    size = weight.numel() * (4 if is_emulated(weight.dtype) else weight.element_size())
    return stream.numel() * weight.shape[0] >= FEW and min(weight.shape) <= NARROW and size <= LARGEST
