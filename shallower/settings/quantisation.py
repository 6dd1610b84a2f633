"""Quantisation settings: by which method, to how many bits, in which environment."""

from dataclasses import dataclass
from os import PathLike

from ..errors import UserError
from .fields import option

GROUP = "Quantisation"
METHODS = {"gptq": "rounds column by column and lets later columns make up for the error; needs calibration text"}
BITS = (4, 8)
GROUP_SIZES = (128, 64, 32)  # that are tried where none is given: the larger, the fewer scales


@dataclass(frozen=True)
class Quantisation:
    """How a model is quantised.

    Attributes:
        method: a name from ``METHODS``.
        bits: of a weight, symmetric around zero.
        group_size: inputs that share a scale; None: the largest of ``GROUP_SIZES`` that divides all input widths.
        python: the interpreter of the environment that has llm-compressor; None: $SHALLOWER_QUANTIZE_PYTHON, else the
            one that runs now.
    """

    method: str = option(" | ".join(METHODS), "gptq", metavar="NAME")
    bits: int = option(f"bits of a weight: {' | '.join(map(str, BITS))}", 4, metavar="N")
    group_size: int | None = option(
        f"inputs that share a scale; by default the largest of {', '.join(map(str, GROUP_SIZES))} that divides all "
        "input widths",
        None,
        metavar="N",
    )
    python: str | PathLike | None = option(
        "interpreter of an environment that has llm-compressor; by default $SHALLOWER_QUANTIZE_PYTHON, else this one",
        None,
        kind=str,
        metavar="PATH",
    )
    overwrite: bool = option("replace an older output in --out", False)

    def __post_init__(self) -> None:
        if self.method not in METHODS:
            raise UserError(f"unknown; allowed are {', '.join(METHODS)}", method=self.method)
        if self.bits not in BITS:
            raise UserError(f"allowed are {' and '.join(map(str, BITS))}", bits=self.bits)
        if self.group_size is not None and self.group_size < 1:
            raise UserError("a number of inputs, 1 or more", group_size=self.group_size)
