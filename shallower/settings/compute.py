"""Compute settings: where and in what to compute."""

from dataclasses import dataclass

from ..errors import UserError
from .fields import option

GROUP = "Computing"
DTYPES = ("fp32", "bf16", "fp16")
LONG_DTYPES = {"float32": "fp32", "bfloat16": "bf16", "float16": "fp16"}


@dataclass(frozen=True)
class Compute:
    """Where and in what to compute.

    Attributes:
        dtype: fp32, bf16 or fp16; None is the stored one.
        device: None is CUDA where there is one.
        trust_remote_code: run code that comes with the model.
        layered: keep one layer in memory, the others on disk; None does so where the weights would not fit.
        max_batch_tokens: tokens that run through a layer at once; None follows from the device and its total memory.
    """

    dtype: str | None = option("compute in fp32, bf16 or fp16; by default as stored", None, metavar="DTYPE")
    device: str | None = option("cpu, cuda, cuda:0 ...; by default CUDA where there is one", None, metavar="DEVICE")
    trust_remote_code: bool = option("run code that comes with the model", False)
    layered: bool | None = option(
        "one layer in memory, the others on disk; by default where the weights would not fit",
        None,
        flag="--layered/--resident",
    )
    max_batch_tokens: int | None = option("tokens run through a layer at once; by default by device", None, metavar="N")

    def __post_init__(self) -> None:
        check_dtype(self.dtype)
        if self.max_batch_tokens is not None and self.max_batch_tokens < 1:
            raise UserError("a number of tokens, 1 or more", max_batch_tokens=self.max_batch_tokens)


def check_dtype(name: object) -> None:
    """Raise a UserError unless a dtype is named as it can be understood; None, auto and torch's own are."""
    if isinstance(name, str) and name != "auto" and LONG_DTYPES.get(name, name) not in DTYPES:
        raise UserError(f"unknown dtype {name!r}; allowed are {', '.join(DTYPES)}")
