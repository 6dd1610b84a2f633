"""Analytic figures of decoding, rather than by a clock: bytes and FLOPs seen by watching one decoding step.

And the machine's memory bandwidth.
"""

import time
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from ..anatomy.decoding import PROMPT, Decoder
from ..anatomy.model import Model
from ..anatomy.stack import dry_tokens
from ..artifacts import Analytic
from ..runtime.memory import total_memory
from ..walk.expert_inputs import GROUPED, storage_of

GATHERS = {"embedding", "index", "index_select", "gather"}  # these read what they return, not all of their table
CASTS = {"_to_copy", "clone"}
UNCOUNTED = GROUPED | {"linear", "mv", "_linear_pointwise"}  # products that torch's own table of FLOPs lacks
COPIED_BYTES = 1 << 29  # bytes: larger than caches, and about what a small model reads per token
READINGS = 8


class Watch(TorchDispatchMode):
    """While inside: which bytes of a model's parameters are read, each once, and the FLOPs of the products that they
    take part in.
    """

    def __init__(self, module: nn.Module):
        super().__init__()
        self.stored = {storage_of(parameter) for parameter in module.parameters()}
        self.copies: set[int] = set()  # where gathered or cast weights lie
        self.spans: list[tuple[int, int]] = []
        self.gathered = self.flops = 0

    @property
    def bytes(self) -> int:
        """Bytes read: of every parameter the part that was used, once, however often it was used."""
        total = self.gathered
        end = 0
        for start, stop in sorted(self.spans):
            total += max(0, stop - max(start, end))
            end = max(end, stop)
        return total

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        name = func._overloadpacket.__name__
        inputs = _tensors((args, kwargs))
        outputs = _tensors(out)
        weights = [tensor for tensor in inputs if storage_of(tensor) in self.stored]
        copied = any(storage_of(tensor) in self.copies for tensor in inputs)
        self.copies -= {storage_of(tensor) for tensor in outputs} - {
            storage_of(tensor) for tensor in inputs
        }  # memory that is used anew
        if (weights or copied) and name in GATHERS | CASTS:
            self.copies |= {storage_of(tensor) for tensor in outputs}
        if weights and any(
            storage_of(tensor) not in self.stored for tensor in outputs
        ):  # else a view, which reads nothing
            self._read(name, weights, outputs, args, kwargs)
        if weights or copied:
            self.flops += _flops(func, name, args, kwargs, out)
        return out

    def _read(self, name: str, weights: list[Tensor], made: list[Tensor], args: tuple, kwargs: dict) -> None:
        if name in GATHERS:
            rows = _rows(name, args)
            if rows is None:
                self.gathered += sum(tensor.nbytes for tensor in made)
                return
            weights = [args[0][index] for index in rows.unique().tolist()]
        elif name in GROUPED:
            weights = [
                part
                for weight in weights
                for part in _active(weight, kwargs.get("offs", args[2] if len(args) > 2 else None))
            ]
        for weight in weights:
            extent = 1 + sum((size - 1) * stride for size, stride in zip(weight.shape, weight.stride(), strict=True))
            self.spans.append((weight.data_ptr(), weight.data_ptr() + extent * weight.itemsize))


def _tensors(tree: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]


def _rows(name: str, args: tuple) -> Tensor | None:
    """Which rows of its first argument a gathering operation reads; None where it takes other parts."""
    if name == "embedding":
        return args[1]
    plain = name == "index" and len(args[1]) == 1 and args[1][0] is not None and args[1][0].dtype != torch.bool
    return args[1][0] if plain else None


def _active(weight: Tensor, offsets: Tensor | None) -> list[Tensor]:
    """The experts, (expert, in, out), that rows were sent to; ``offsets`` holds where each one's rows end."""
    if offsets is None or weight.dim() != 3:
        return [weight]
    rows = torch.diff(offsets, prepend=offsets.new_zeros(1))
    return [weight[index] for index in rows.nonzero().flatten().tolist()]


def _flops(func, name: str, args: tuple, kwargs: dict, out: Any) -> int:
    if func._overloadpacket in flop_registry:
        return flop_registry[func._overloadpacket](*args, **kwargs, out_val=out)
    return 2 * out.numel() * args[0].shape[-1] if name in UNCOUNTED else 0


@torch.no_grad()
def analytic(model: Model) -> Analytic:
    """Figures of one decoded token at batch 1, seen in a step behind a prompt of a few tokens.

    - ``parameters``, ``weight_bytes``: distinct ones.
    - ``read_bytes_per_token``: bytes of weights that a step uses, each stored tensor once: layers, final norm, head;
      of a table only the rows looked up, so an untied input embedding counts one row; of experts only those that are
      active.
    - ``kv_bytes_per_token``: by how much the cache grows per token and sequence while no sliding window is full;
      ``state_bytes``: what it holds per sequence besides (recurrent states).
    - ``flops_per_token``: of the products with weights, 2 per parameter that takes part; attention over the context,
      which grows with it, and what is done element by element are left out.
    """
    module = model.module
    decoder = Decoder(module)
    token = dry_tokens(model.vocabulary, 1, 1).to(model.device)
    decoder.prefill(dry_tokens(model.vocabulary, 1, PROMPT).to(model.device))
    decoder.step(token)
    with Watch(module) as watch:
        bytes_before, growth = decoder.grown(token)
    return Analytic(
        parameters=model.record.parameters,
        weight_bytes=sum(parameter.nbytes for parameter in module.parameters()),
        read_bytes_per_token=watch.bytes,
        kv_bytes_per_token=growth,
        state_bytes=max(0, bytes_before - growth * (PROMPT + 1)),
        flops_per_token=watch.flops,
    )


def bandwidth(device: str) -> float:
    """Bytes per second that the device reads from its memory, with torch's threads.

    The best of a few sums and matrix-vector products over a buffer larger than the caches.
    """
    rows = min(COPIED_BYTES << 3 * device.startswith("cuda"), total_memory(device) // 8) // (4 * 4096)
    buffer, vector = torch.ones(rows, 4096, device=device), torch.ones(4096, device=device)
    best = float("inf")
    for reading in (lambda: buffer.sum(), lambda: buffer @ vector):
        for _ in range(READINGS):
            synchronize(device)
            started = time.perf_counter()
            reading()
            synchronize(device)
            best = min(best, time.perf_counter() - started)
    return buffer.nbytes / best


def synchronize(device: str) -> None:
    """Wait until the device has done what it was given."""
    if torch.device(device).type != "cpu":
        torch.accelerator.synchronize(torch.device(device))
