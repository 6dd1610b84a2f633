"""Quantities as people write them: layers and ranges, sizes, parameters, tokens, bytes, shares, factors and times."""

import math
import re
from collections.abc import Iterable
from typing import Any

from ..errors import UserError, argument

THOUSANDS = {"K": 1e3, "M": 1e6, "B": 1e9, "T": 1e12}
BYTES = {"KB": 1e3, "MB": 1e6, "GB": 1e9, "TB": 1e12, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30, "TIB": 2**40, "B": 1}
TIME_UNITS = {"S": 1.0, "SEC": 1.0, "M": 60.0, "MIN": 60.0, "H": 3600.0}
LONGEST = 6  # digits of a layer's number
PART = re.compile(r"(\d+(?:-\d+)?)\.([a-z]+(?::\d[\d+-]*)?)")
RANGE = re.compile(r"(\d+)\s*(?:-|–|\.\.\.?|:)\s*(\d+)")


def numbers_of(value: Any, name: str, what: str = "layer numbers") -> tuple[int, ...]:
    """Whole numbers from text such as ``3,4,5``, ``3, 8-10``, ``8..10`` or ``3 4 5``, or from a sequence.

    In the order given.

    Raises:
        UserError: not such a list.
    """
    if isinstance(value, int) and not isinstance(value, bool):
        return (value,)
    if not isinstance(value, str) and isinstance(value, Iterable):
        return tuple(number for item in value for number in numbers_of(item, name, what))
    numbers: list[int] = []
    text = str(value).strip().strip("[]()")
    for part in RANGE.sub(r"\1-\2", text).replace(",", " ").replace(";", " ").split():
        low, dash, high = part.partition("-")
        sound = low.isascii() and low.isdigit() and len(low) <= LONGEST
        sound = sound and (
            not dash or (high.isascii() and high.isdigit() and len(high) <= LONGEST and int(high) >= int(low))
        )
        if not sound:
            raise UserError(f"give {what} such as 3,4,5 or 8-10", **{name: repr(str(value))})
        numbers += range(int(low), int(high) + 1) if dash else [int(low)]
    if not numbers:
        raise UserError(f"give {what} such as 3,4,5 or 8-10", **{name: repr(str(value))})
    return tuple(numbers)


def unit_names(value: Any, name: str) -> tuple[str, ...]:
    """Names of layers, of parts of layers and of groups of parts from text such as ``3,8-10``, ``5.mlp, 9.attention``,
    ``3-5.mlp`` or ``3-5.mlp:0-7+9``, or from a sequence; each once, in the order given.

    Raises:
        UserError: not such a list, or a unit that is named twice, or beside the layer that it is a part of.
    """
    if not isinstance(value, str) and isinstance(value, Iterable):
        names = [one for item in value for one in unit_names(item, name)]
    else:
        names = []
        for item in RANGE.sub(r"\1-\2", str(value).strip().strip("[]()")).replace(",", " ").replace(";", " ").split():
            match = PART.fullmatch(item.lower())
            if not match and "." in item:
                raise UserError(f"{argument(name)}: {item!r} is no unit; write 12, 12.attention or 3-5.mlp")
            layers = numbers_of(match[1] if match else item, name)
            names += [f"{layer}.{match[2]}" if match else str(layer) for layer in layers]
        names = names or [str(layer) for layer in numbers_of(value, name)]
    for one in names:
        layer, dot, _ = one.partition(".")
        part, colon, _ = one.partition(":")
        what = one if dot else f"layer {one}"
        if names.count(one) > 1:
            raise UserError(f"{argument(name)} names {what} twice; name each {'unit' if dot else 'layer'} once")
        if dot and layer in names:
            raise UserError(
                f"{argument(name)} names {one} beside layer {layer}, of which it is a part; name one of them"
            )
        if colon and part in names:
            raise UserError(f"{argument(name)} names {one} beside {part}, which holds it; name one of them")
    return tuple(names)


def sizes_of(value: Any, name: str) -> tuple[int, ...]:
    """Numbers of layers from text such as ``1..12``, ``1-12`` or ``3,6,9``, in order, each once.

    Raises:
        UserError: not numbers of layers, or one below 1.
    """
    sizes = sorted(set(numbers_of(value, name, "numbers of layers")))
    if sizes[0] < 1:
        raise UserError("every size is a number of layers, 1 or more", **{name: repr(str(value))})
    return tuple(sizes)


def count_of(value: Any, name: str, example: str = "5.5B or 110M") -> int | float:
    """A number from text such as ``5.5B``, ``110M`` or ``100000000``.

    Raises:
        UserError: not a number.
    """
    return _number(value, THOUSANDS, f"{_argument_text(name, value)}: give a number such as {example}")


def tokens_of(value: Any, name: str) -> int:
    """A number of tokens from text such as ``20M`` or ``500000``.

    Raises:
        UserError: not a positive number.
    """
    return _whole(value, THOUSANDS, f"{_argument_text(name, value)}: give a number of tokens such as 500K or 20M")


def bytes_of(value: Any, name: str) -> int:
    """Bytes of a size such as ``5GB``, ``500 MB`` (decimal) or ``8GiB``, or of a plain number.

    Raises:
        UserError: not a positive size.
    """
    return _whole(value, BYTES, f"{_argument_text(name, value)} is not a size; write for example 5GB or 500MB")


def share_of(value: Any, name: str) -> int | float:
    """A share from text such as ``0.2``, ``20%`` or ``20 %``.

    Raises:
        UserError: not a number.
    """
    number = _number(value, {"%": 1.0}, f"{_argument_text(name, value)}: give a share such as 0.2 or 20%")
    return number / 100 if isinstance(value, str) and "%" in value else number


def factor_of(value: Any, name: str) -> int | float:
    """A factor from text such as ``1.3`` or ``1.3x``.

    Raises:
        UserError: not a number.
    """
    return _number(value, {"X": 1.0, "×": 1.0}, f"{_argument_text(name, value)}: give a factor such as 1.25 or 1.25x")


def seconds_of(value: Any, name: str) -> int | float:
    """Seconds from text such as ``120s``, ``10m``, ``1h30m`` or ``120``.

    Raises:
        UserError: not a time.
    """
    wrong = f"{_argument_text(name, value)}: give a time such as 120s, 10m or 2h"
    parts = re.findall(r"[\d.]+\s*[a-z]+", value.lower()) if isinstance(value, str) else []
    if len(parts) > 1 and "".join(parts).replace(" ", "") == value.lower().replace(" ", ""):
        return sum(_number(part, TIME_UNITS, wrong) for part in parts)
    return _number(value, TIME_UNITS, wrong)


def _argument_text(name: str, value: Any) -> str:
    return argument(name, repr(str(value)))


def _number(value: Any, units: dict[str, float], wrong: str) -> int | float:
    """A number with one of the units, or without."""
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        raise UserError(wrong)
    if not isinstance(value, str):
        return value
    number = value.strip().upper()
    unit = next((unit for unit in sorted(units, key=len, reverse=True) if number.endswith(unit)), "")
    digits = number.removesuffix(unit).strip()
    if not re.fullmatch(r"[+-]?(\d+\.?\d*|\.\d+)(E[+-]?\d+)?", digits) or not digits.isascii():
        raise UserError(wrong)
    quantity = float(digits) * units.get(unit, 1)
    return int(quantity) if quantity.is_integer() and not unit and "." not in digits and "E" not in digits else quantity


def _whole(value: Any, units: dict[str, float], wrong: str) -> int:
    """A whole number above 0, with one of the units, or without."""
    number = _number(value, units, wrong)
    if not 1 <= number < math.inf:
        raise UserError(wrong)
    return round(number)
