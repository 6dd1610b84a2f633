"""Amount: how much goes, by a number of layers, a share, or a target of parameters, memory, speed or quality."""

import math
from dataclasses import dataclass, fields
from typing import Any

from ..errors import UserError, argument
from .fields import option, set_field
from .quantities import bytes_of, count_of, factor_of, share_of

GROUP = "How much goes"


@dataclass(frozen=True)
class Amount:
    """How much goes; give one.

    Example: ``Amount(remove=6)``, ``Amount(ratio="20%")``, ``Amount(target_memory="400MB")``.

    Attributes:
        remove: a number of layers.
        ratio: a share of the parameters, to the nearest number of layers.
        target_params: parameters that may be left.
        target_memory: bytes that the weights may take.
        target_speedup: how many times faster decoding should be.
        max_ppl_increase: share by which the perplexity of evaluation texts may grow: as many layers as stay within it.
        said: how a settled target was given, for messages.
    """

    remove: int | str | None = option("number of layers to remove", None, kind=str, metavar="N")
    ratio: float | int | str | None = option(
        "share of all parameters to remove, such as 20%, to the nearest layer", None, kind=str, metavar="SHARE"
    )
    target_params: float | int | str | None = option(
        "parameters that may be left, such as 5.5B", None, kind=str, metavar="COUNT"
    )
    target_memory: float | int | str | None = option(
        "what the weights may take, such as 200MB or 8GB", None, kind=str, metavar="SIZE"
    )
    target_speedup: float | int | str | None = option(
        "times faster that decoding should be, such as 1.25", None, kind=str, metavar="FACTOR"
    )
    max_ppl_increase: float | int | str | None = option(
        "share by which the perplexity of --eval-text may grow, such as 20%; as many layers go as stay within it",
        None,
        kind=str,
        metavar="SHARE",
    )
    said: str = ""

    def __post_init__(self) -> None:
        amounts = [
            field for field in fields(self) if "help" in field.metadata and getattr(self, field.name) is not None
        ]
        if len(amounts) != 1:
            every = ", ".join(argument(field.name) for field in fields(self) if "help" in field.metadata)
            what = (
                f"{' and '.join(argument(field.name) for field in amounts)} were given; one says how much goes"
                if amounts
                else "say how much to remove"
            )
            raise UserError(f"{what}: one of {every}")
        self._understand()
        self._check()

    def _understand(self) -> None:
        readers = {
            "remove": _layers,
            "ratio": share_of,
            "target_params": count_of,
            "target_memory": bytes_of,
            "target_speedup": factor_of,
            "max_ppl_increase": share_of,
        }
        for name, read in readers.items():
            value = getattr(self, name)
            if value is not None:
                set_field(self, name, read(value, name))

    def _check(self) -> None:
        if self.target_speedup is not None and not 1 < self.target_speedup < math.inf:
            raise UserError(
                "how many times faster, more than 1 (1.25 is a quarter faster)",
                target_speedup=f"{self.target_speedup:g}",
            )
        if self.max_ppl_increase is not None and not 0 < self.max_ppl_increase < math.inf:
            raise UserError("a share above 0, such as 0.2 or 20%", max_ppl_increase=f"{self.max_ppl_increase:g}")
        if self.remove is not None and self.remove < 1:
            raise UserError("at least 1 layer", remove=self.remove)
        if self.ratio is not None and not 0 < self.ratio < 1:
            hint = f"; {self.ratio:g} % is {self.ratio:g}%" if 1 <= self.ratio < 100 else ""
            raise UserError(
                f"a share of the parameters between 0 and 1 (20 % is 0.2 or 20%){hint}", ratio=f"{self.ratio:g}"
            )
        if self.target_params is not None and not self.target_params > 0:
            raise UserError(f"{self.name}: a number of parameters such as 5.5B")

    @property
    def name(self) -> str:
        """How a target was given."""
        return self.said or argument("target_params", f"{self.target_params:g}")


def _layers(value: Any, name: str) -> int:
    number = count_of(value, name, "6")
    if number != int(number):
        hint = f"; a share is {argument('ratio', value)}" if 0 < number < 1 else ""
        raise UserError(f"a whole number of layers{hint}", **{name: value})
    return int(number)


def amount_of(value: Any) -> "Amount":
    """An amount from what a Python caller gave: an Amount, a number of layers, a share (0.2, ``20%``) or a mapping.

    Raises:
        UserError: anything else.
    """
    if isinstance(value, Amount):
        return value
    if isinstance(value, dict):
        return Amount(**value)
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        raise UserError("give Amount(...), a number of layers, or a share such as 0.2 or '20%'", amount=repr(value))
    if isinstance(value, str) and "%" in value:
        return Amount(ratio=value)
    number = count_of(value, "amount", "6, 0.2 or 20%")
    return Amount(ratio=number) if 0 < number < 1 else Amount(remove=number)
