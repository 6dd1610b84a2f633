"""Sharded training (FSDP2): weights, gradients and the optimiser's state split among the processes (FSDP2), for models
that no process could train whole.
"""

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from ..errors import argument
from ..runtime import distributed
from ..runtime.progress import say

BY_ACCELERATE = {"ACCELERATE_USE_FSDP": "FSDP", "ACCELERATE_USE_DEEPSPEED": "DeepSpeed's ZeRO"}
UNHEARD = (  # what accelerate would do to the loss, and transformers to the weights while it loads them
    *BY_ACCELERATE,
    "ACCELERATE_GRADIENT_ACCUMULATION_STEPS",
    "FSDP_CPU_RAM_EFFICIENT_LOADING",
)
_asked: ContextVar[str] = ContextVar("asked", default="")


@contextmanager
def by_hand() -> Iterator[None]:
    """Inside, accelerate and transformers do not know what ``accelerate launch`` was told of splitting, and leave it
    to ``shard``.
    """
    known = {name: os.environ.pop(name) for name in UNHEARD if name in os.environ}
    token = _asked.set(
        next((what for name, what in BY_ACCELERATE.items() if known.get(name, "").lower() == "true"), "")
    )
    try:
        yield
    finally:
        os.environ.update(known)
        _asked.reset(token)


def split_by_launcher() -> bool:
    """Within ``by_hand``: whether ``accelerate launch`` was asked for FSDP or DeepSpeed, which stand for ``--shard``.

    Says so.

    FSDP2 splits what ZeRO stage 3 splits; the launcher's own settings, such as a stage or offloading, are not used.
    """
    if what := _asked.get():
        done = (
            f"the model is split by FSDP2, as by {argument('shard', True)}"
            if distributed.size() > 1
            else "one process cannot split the model"
        )
        say(f"{what} was asked for: {done}; no other setting of {what} is used")
    return bool(what) and distributed.size() > 1


def shard(objective: nn.Module, layers: Iterable[nn.Module], device: str) -> None:
    """Split all parameters, in place.

    Each layer is put together while it computes, what lies outside of them with the objective.

    Every process must then call ``objective`` equally often.
    """
    mesh = _mesh(device)
    for layer in layers:
        fully_shard(layer, mesh=mesh)
    fully_shard(objective, mesh=mesh)


def shard_layers(module: nn.Module, layers: Iterable[nn.Module], device: str) -> None:
    """Split the layers of a model that is only run, in place; what lies outside of them is whole in every process."""
    mesh = _mesh(device)
    for layer in layers:
        fully_shard(
            layer, mesh=mesh, reshard_after_forward=True
        )  # each is a root of its own, which would stay together
    for tensor in (*module.parameters(), *module.buffers()):
        if not isinstance(tensor, DTensor):
            tensor.data = tensor.data.to(device)


def _mesh(device: str) -> DeviceMesh:
    return init_device_mesh(torch.device(device).type, (distributed.size(),))


def whole(tensor: Tensor) -> Tensor:
    """A split tensor put together, in the memory of the first process, empty in the others.

    Every process must call this.
    """
    if not isinstance(tensor, DTensor):
        return tensor
    full = tensor.full_tensor()
    return full.cpu() if dist.get_rank() == 0 else full.new_empty(0)


def like(tensor: Tensor, parameter: Tensor) -> Tensor:
    """A copy of a whole tensor on the device of a parameter, split as that is where both have the same shape."""
    if isinstance(parameter, DTensor) and tensor.shape == parameter.shape:
        local = tensor.to(parameter.device)
        return distribute_tensor(
            local, parameter.device_mesh, parameter.placements, src_data_rank=None
        )  # all have it: nothing is sent
    return tensor.to(parameter.device, copy=True)
