"""Amount of removal: a share or target as a number of layers, and the layers that are protected."""

import math
from collections.abc import Sequence
from types import ModuleType

import torch

from ..artifacts import ModelRecord
from ..errors import UserError, argument
from ..settings.amount import Amount


def resolve_amount(amount: Amount, record: ModelRecord, dtype: str) -> tuple[Amount, str]:
    """(the amount with a target of memory or speed as one of parameters, what that rests on)."""
    if amount.target_memory is not None:
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


def check_amount(amount: Amount, record: ModelRecord, allowed: Sequence[int]) -> int:
    """The number of layers to start with.

    Raises:
        UserError: more than may go, or less than half a layer.
    """
    most = min(len(allowed), record.layers - 1)
    size = _first_size(amount, record, most)
    if size > most:
        raise UserError(
            f"{size} layers cannot go: {record.layers} layers, of which {record.layers - len(allowed)} are protected, "
            f"leave at most {most}; lower the amount, {argument('keep_first')} or "
            f"{argument('keep_last')}"
        )
    return size


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
    if amount.target_params >= record.parameters:
        raise UserError(
            f"{amount.name}: the model has {record.parameters} parameters already, which meets it; ask for less"
        )
    surplus = record.parameters - amount.target_params
    return min(max(1, math.ceil(surplus / max(record.layer_parameters))), most)
