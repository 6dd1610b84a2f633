"""Amount of removal: a share or target as a number of layers, and the layers that are protected."""

import importlib
import math
from collections.abc import Sequence
from types import ModuleType

from ..artifacts import ModelRecord, Units
from ..errors import UserError, argument
from ..settings.amount import Amount


def resolve_amount(amount: Amount, record: ModelRecord, dtype: str) -> tuple[Amount, str]:
    """(the amount with a target of memory or speed as one of parameters, what that rests on)."""
    if amount.target_memory is not None:
        torch = importlib.import_module("torch")  # which nothing else here needs
        each = torch.empty(0, dtype=getattr(torch, dtype)).element_size()
        name = argument("target_memory", f"{amount.target_memory / 1e9:g}GB")
        basis = f"weights in {dtype}, {each} bytes each; the cache and activations come on top"
        return Amount(target_params=amount.target_memory / each, said=name), basis
    if amount.target_speedup is not None:
        parameters_read = record.parameters - record.lookup_parameters
        target = parameters_read / amount.target_speedup + record.lookup_parameters
        basis = (
            "the time of decoding one sequence is that of reading every weight once per token (memory-bound, "
            "short context): "
            f"{parameters_read} parameters read before, at most {target - record.lookup_parameters:.0f} after; "
            "measure it with shallower bench"
        )
        return Amount(target_params=target, said=argument("target_speedup", f"{amount.target_speedup:g}")), basis
    return amount, ""


def protection(
    layers: int, selection: ModuleType | None = None, first: int | None = None, last: int | None = None
) -> tuple[int, int]:
    """How many layers at each end never go: as given, else the selection's own, else 4 and 2 scaled down below 24
    layers.

    Raises:
        UserError: nothing would be left to remove.
    """
    own = getattr(selection, "PROTECT", None)
    scale = min(1.0, layers / 24)
    auto = own or (max(1, round(4 * scale)), max(1, round(2 * scale)))
    first, last = (value if value is not None else usual for value, usual in zip((first, last), auto, strict=True))
    if first < 0 or last < 0:
        raise UserError(f"{argument('keep_first')} and {argument('keep_last')} are numbers of layers, 0 or more")
    if first + last >= layers:
        both = f"{argument('keep_first', first)} and {argument('keep_last', last)}"
        raise UserError(f"{both} protect all {layers} layers; lower them")
    return first, last


def check_amount(amount: Amount, record: ModelRecord, units: Units, allowed: Sequence[int]) -> tuple[int, float]:
    """(the number of layers or units to start with, parameters that have to go where units are not alike).

    With parameters that have to go, the number is the most that may.

    Raises:
        UserError: more than may go, or less than half a unit.
    """
    most = units.most(allowed)
    if not units.whole and amount.remove is None:
        return most, _wanted(amount, record, units, allowed)
    size = _first_size(amount, record, most)
    if size > most:
        protected = len(units) - len(allowed)
        raise UserError(
            f"{size} {units.word}s cannot go: {len(units)} {units.word}s, of which {protected} are protected, "
            f"leave at most {most}; lower the amount, {argument('keep_first')} or "
            f"{argument('keep_last')}"
        )
    return size, 0


def allowed_numbers(units: Units, protected: tuple[int, int]) -> tuple[int, ...]:
    """Numbers of the units of layers that are not protected.

    Args:
        protected: how many layers at each end never go.
    """
    inner = range(protected[0], units.layers - protected[1])
    return tuple(number for number, one in enumerate(units.listing) if one.unit.layer in inner)


def _wanted(amount: Amount, record: ModelRecord, units: Units, allowed: Sequence[int]) -> float:
    """Parameters that have to go: a target's surplus, or a share less half of the smallest unit, so the nearest."""
    smallest = min((units.listing[number].parameters for number in allowed), default=0)
    if amount.ratio is not None:
        wanted = amount.ratio * record.parameters - smallest / 2
        if wanted <= 0:
            raise UserError(
                f"{argument('ratio', f'{amount.ratio:g}')} is less than half a unit (the smallest is "
                f"{smallest / record.parameters:.1%} of the parameters); raise it"
            )
        return wanted
    return _surplus(amount, record)


def _surplus(amount: Amount, record: ModelRecord) -> float:
    """Parameters above a target.

    Raises:
        UserError: there are none.
    """
    if amount.target_params >= record.parameters:
        raise UserError(
            f"{amount.name}: the model has {record.parameters} parameters already, which meets it; ask for less"
        )
    return record.parameters - amount.target_params


def _first_size(amount: Amount, record: ModelRecord, most: int) -> int:
    if amount.remove is not None:
        return amount.remove
    mean = sum(record.layer_parameters) / record.layers
    if amount.ratio is not None:
        size = round(amount.ratio * record.parameters / mean)
        if size == 0:
            share = mean / record.parameters
            raise UserError(
                f"{argument('ratio', f'{amount.ratio:g}')} is less than half a layer (one layer is {share:.1%} of the "
                "parameters); raise it"
            )
        return size
    return min(max(1, math.ceil(_surplus(amount, record) / max(record.layer_parameters))), most)
