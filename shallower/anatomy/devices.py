"""Devices: the one to compute on, checked to be here."""

import torch

from ..errors import UserError


def checked_device(name: str | None) -> str:
    """A device that exists; None chooses CUDA where there is one.

    Raises:
        UserError: no such device here.
    """
    if name is None or name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise UserError(f"unknown device {name!r}; give cpu, cuda or cuda:0") from error
    able = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if not able.get(device.type, False):
        raise UserError(
            f"not available here; use {' or '.join(kind for kind, there in able.items() if there)}", device=name
        )
    return name
