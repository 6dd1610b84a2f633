"""Edits of config fields for removed layers: values cut, remapped, written out, rescaled.

And other removals to try.
"""

import itertools
import math
import re
from collections.abc import Iterator

from transformers import PreTrainedConfig

_GENERAL = frozenset(
    PreTrainedConfig().to_dict()
)  # fields of every config: token ids, labels, names; none is per layer


def cut_value(key: str, value: object, kept: list[int], layers: int) -> object:
    """The value cut to the kept layers where it is a list, string or dict by layer, else None."""
    if key in _GENERAL or "token" in key or layers < 2:
        return None
    if isinstance(value, (list, tuple)) and len(value) == layers:
        return list(range(len(kept))) if _every_index(value, layers) else [value[index] for index in kept]
    if isinstance(value, str) and len(value) == layers and "pattern" in key:
        return "".join(value[index] for index in kept)
    if isinstance(value, dict) and value and all(str(name).isdigit() and int(name) < layers for name in value):
        return {type(name)(kept.index(int(name))): item for name, item in value.items() if int(name) in kept}
    return None


def _every_index(value: list | tuple, layers: int) -> bool:
    """Whether a list holds the index of every layer, as one of the indices of a kind does where there is one kind
    only.
    """
    return list(value) == list(range(layers)) and not any(isinstance(item, bool) for item in value)


def perturbations(value: object, kinds: list[str]) -> list:
    """Other values of a field that may be a layer rule; none for fields that cannot be one."""
    layers = len(kinds)
    if isinstance(value, bool):
        return []
    if isinstance(value, int):
        return [other for other in (value + 1, value - 1) if other >= 0] if value <= layers + 1 else []
    if isinstance(value, (list, tuple)) and all(
        isinstance(i, int) and not isinstance(i, bool) and 0 <= i <= layers for i in value
    ):
        first = {kind: index for index, kind in reversed(list(enumerate(kinds))) if index not in value}
        return [list(value[:-1])] * bool(value) + [sorted([*value, index]) for index in first.values()]
    return []


def expansions(value: object, kept: list[int], layers: int) -> list:
    """A repeating pattern written out for every layer and cut.

    A list of numbers by layer that looked like one of indices, cut.
    """
    if isinstance(value, (list, tuple)) and _every_index(value, layers):
        return [[value[index] for index in kept]]
    if isinstance(value, (list, tuple)) and 1 < len(value) < layers and all(isinstance(item, str) for item in value):
        return [[value[index % len(value)] for index in kept]]
    return []


def rescalings(key: str, value: object, ratio: float) -> list:
    """A float that a constructor divides by a power of the depth, so that the constant in the layers stays."""
    if isinstance(value, float) and value and key not in _GENERAL and re.search("scale|depth|mult", key):
        return [value * math.sqrt(ratio), value * ratio, value / math.sqrt(ratio), value / ratio]
    return []


def neighbours(removed: tuple[int, ...], layers: int) -> Iterator[tuple[int, ...]]:
    """Other removals: of the same size by growing distance, then one more, one fewer, up to half the stack away."""
    size = len(removed)
    seen = {tuple(sorted(removed))}
    for distance in range(1, layers):
        moves = []
        for place, shift in itertools.product(range(size), (distance, -distance)):
            moves.append(tuple(sorted(set(removed[:place] + removed[place + 1 :]) | {removed[place] + shift})))
        moves.append(tuple(index + distance for index in sorted(removed)))
        moves.append(tuple(index - distance for index in sorted(removed)))
        for move in moves:
            if len(move) == size and move not in seen and move[0] >= 0 and move[-1] < layers:
                seen.add(move)
                yield move
    for other in sorted(range(1, layers), key=lambda count: (abs(count - size), count)):
        for start in sorted(range(layers - other + 1), key=lambda s: abs(s - min(removed))):
            window = tuple(range(start, start + other))
            if window not in seen:
                seen.add(window)
                yield window
