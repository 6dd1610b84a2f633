"""Amounts as they are written on the command line: layers, sizes, parameters, tokens, bytes, shares and times."""

from .errors import UserError

THOUSANDS = {"K": 1e3, "M": 1e6, "B": 1e9, "T": 1e12}
BYTES = {"KB": 1e3, "MB": 1e6, "GB": 1e9, "TB": 1e12}
SECONDS = {"S": 1.0, "M": 60.0, "H": 3600.0}


def layers_of(text: str) -> tuple[int, ...]:
    """Layer indices from text such as ``3,4,5`` or ``3,8-10``.

    Raises:
        UserError: not a list of layers.
    """
    found: list[int] = []
    try:
        for part in text.split(","):
            low, dash, high = part.strip().partition("-")
            if len(high) > 6 or (dash and int(high) < int(low)):
                raise ValueError("not a number of layers")
            found += range(int(low), int(high) + 1) if dash else [int(low)]
    except ValueError as error:
        raise UserError(f"--drop {text!r}: give layer numbers such as 3,4,5 or 8-10") from error
    return tuple(found)


def sizes_of(text: str) -> tuple[int, ...]:
    """Numbers of layers from text such as ``1..12`` or ``3,6,9``, in order, each once.

    Raises:
        UserError: not numbers of layers, or none.
    """
    found: set[int] = set()
    try:
        for part in text.split(","):
            low, dots, high = part.strip().partition("..")
            if max(len(low), len(high)) > 6 or (dots and int(high) < int(low)):
                raise ValueError("not a number of layers")
            found |= set(range(int(low), int(high) + 1)) if dots else {int(low)}
    except ValueError as error:
        raise UserError(f"--remove {text!r}: give numbers of layers such as 1..12 or 3,6,9") from error
    if not found or min(found) < 1:
        raise UserError(f"--remove {text!r}: every size is a number of layers, 1 or more")
    return tuple(sorted(found))


def parameters_of(text: str) -> float:
    """A number of parameters from text such as ``5.5B``, ``110M`` or ``100000000``.

    Raises:
        UserError: not a number.
    """
    return _number(text, THOUSANDS, f"--target-params {text!r}: give a number such as 5.5B or 110M")


def tokens_of(text: str | int) -> int:
    """A number of tokens from text such as ``20M`` or ``500000``.

    Raises:
        UserError: not a positive number.
    """
    return _count(str(text), THOUSANDS, f"--train-tokens {str(text)!r}: give a number of tokens such as 500K or 20M")


def bytes_of(text: str) -> int:
    """Bytes of a size such as ``5GB`` or ``500MB`` (decimal units), or of a plain number.

    Raises:
        UserError: not a positive size.
    """
    return _count(text, BYTES, f"{text!r} is not a size; write for example 5GB or 500MB")


def share_of(text: str) -> float:
    """A share from text such as ``0.2`` or ``20%``.

    Raises:
        UserError: not a number.
    """
    number = _number(text, {"%": 1.0}, f"--max-ppl-increase {text!r}: give a share such as 0.2 or 20%")
    return number / 100 if "%" in text else number


def seconds_of(text: str) -> float:
    """Seconds from text such as ``120s``, ``10m``, ``2h`` or ``120``.

    Raises:
        UserError: not a time.
    """
    return _number(text, SECONDS, f"--budget {text!r}: give a time such as 120s, 10m or 2h")


def _number(text: str, units: dict[str, float], wrong: str) -> float:
    """A number with one of the units, or without."""
    number = text.strip().upper()
    unit = next((unit for unit in units if number.endswith(unit)), "")
    try:
        return float(number.removesuffix(unit)) * units.get(unit, 1)
    except ValueError as error:
        raise UserError(wrong) from error


def _count(text: str, units: dict[str, float], wrong: str) -> int:
    """A whole number above 0, with one of the units, or without."""
    number = _number(text, units, wrong)
    if not 1 <= number < float("inf"):
        raise UserError(wrong)
    return round(number)
