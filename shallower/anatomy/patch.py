"""Patch of weights, the changes that repair a pruned model.

Kept as small edits, applied virtually or to what is written.
"""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn

from ..errors import Refusal


@dataclass(frozen=True)
class Edit:
    """A change of one parameter.

    Attributes:
        kind: ``new``: the parameter is a bias that the model has not yet; ``set``: it becomes ``value``;
            ``map``: the features along ``axis`` are multiplied by the matrix ``value``, (features, features);
            ``add``: ``value``, shaped like the parameter, is added; ``scale``: it is multiplied by the number
                ``value``.
        strength: of what the change adds, this share.
    """

    kind: Literal["new", "set", "map", "add", "scale"]
    value: Tensor
    axis: int = 0
    strength: float = 1.0

    def of(self, weight: Tensor) -> Tensor:
        """The changed parameter, computed in at least float32, in its own dtype and on its own device."""
        wide = weight.to(torch.promote_types(weight.dtype, torch.float32))
        value = self.value.to(wide)
        if self.kind == "new":
            return (self.strength * value).to(weight.dtype)
        if self.kind == "set":
            return (value if self.strength == 1 else wide.lerp(value, self.strength)).to(weight.dtype, copy=True)
        if self.kind == "add":
            return torch.add(wide, value, alpha=self.strength).to(weight.dtype)
        if self.kind == "scale":
            return (wide * (1 + self.strength * (value - 1)) if self.strength != 1 else wide * value).to(weight.dtype)
        whole = (wide.movedim(self.axis, -1) @ value.T).movedim(-1, self.axis)
        return (whole if self.strength == 1 else wide.lerp(whole, self.strength)).to(weight.dtype).contiguous()

    def digest(self) -> str:
        """Changes with anything in it."""
        raw = np.ascontiguousarray(self.value.detach().cpu().double().numpy()).tobytes()
        return hashlib.sha256(
            f"{self.kind} {self.axis} {self.strength} {tuple(self.value.shape)}".encode() + raw
        ).hexdigest()[:16]

    def on_disk(self, name: str, shape: tuple[int, ...], stored: tuple[int, ...]) -> "Edit":
        """The same change for a tensor of a file from which a parameter of the given shape is made, alone or as one of
        a pile.

        Raises:
            Refusal: the file holds it in another form.
        """
        if self.kind == "scale" or stored == shape:
            return self
        if self.kind == "map" and stored == shape[1:] and self.axis > 0:
            return replace(self, axis=self.axis - 1)
        raise Refusal(
            f"{name} is stored in another form ({list(stored)}) than it has in memory ({list(shape)}), so it "
            "cannot be changed there"
        )


Patch = dict[str, Edit]  # a parameter's full name in memory, in the numbering of the dense model -> its change


@contextmanager
def patched(module: nn.Module, patch: Patch) -> Iterator[None]:
    """Change a loaded model while inside; a layered one changes its layers whenever it reads them."""
    loader = getattr(module, "onloader", None)
    if loader is not None:
        with loader.patched(patch):
            yield
        return
    fresh = {name: edit for name, edit in patch.items() if edit.kind == "new"}
    before = {name: module.get_parameter(name).data for name in patch if name not in fresh}
    try:
        for name, edit in patch.items():
            if name in fresh:
                add_bias(module, name, edit)
            else:
                module.get_parameter(name).data = edit.of(before[name])
        yield
    finally:
        for name, data in before.items():
            module.get_parameter(name).data = data
        for name in fresh:
            drop_bias(module, name)


def add_bias(module: nn.Module, name: str, edit: Edit) -> None:
    """Give a module within another a bias that it has not yet."""
    owner, _, key = name.rpartition(".")
    inner = module.get_submodule(owner)
    setattr(inner, key, nn.Parameter(edit.of(next(inner.parameters(recurse=False)).data), requires_grad=False))


def drop_bias(module: nn.Module, name: str) -> None:
    """Take such a bias away again."""
    owner, _, key = name.rpartition(".")
    setattr(module.get_submodule(owner), key, None)
