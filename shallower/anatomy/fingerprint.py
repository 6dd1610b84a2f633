"""Layer fingerprint, what a layer is built like.

Module classes, plain attributes, parameter and buffer shapes, small buffer values.
"""

import hashlib
import math
import re

import torch
from torch import nn

from .modeling_shallower import OWN_LAYER

INDEX_NAME = re.compile(r"(layer|block)_?(idx|index|id|number|num)$|^(idx|index)$")
DEPTH_NAME = re.compile(r"^(num|n)_(\w+_)?(layers|blocks)$")
SMALL_BUFFER = 1 << 16
Fingerprint = dict[str, object]
Shared = frozenset[tuple[int, str]]  # (layer, name in the layer) of all places of one tensor


class Listed:
    """A list about all layers that a layer holds whole; only its own entry, or its place in the list, speaks of it."""

    def __init__(self, items: list, own: object):
        self.items = items
        self.own = own

    def __repr__(self) -> str:
        return repr(self.own)


def layer_fingerprints(layers: nn.ModuleList) -> list[Fingerprint]:
    """One dictionary per layer of everything that tells layers apart, without what merely counts them."""
    raw = [_fingerprint(layer) for layer in layers]
    for key in {key for item in raw for key, value in item.items() if isinstance(value, list)}:
        holders = [index for index, item in enumerate(raw) if key in item]
        for index in holders:
            value = raw[index][key]
            if value == holders:  # the layers that hold it
                raw[index][key] = Listed(value, holders.index(index))
            elif isinstance(value, list) and len(value) == len(raw):
                raw[index][key] = Listed(value, value[index])
    keys = {key for item in raw for key in item}
    counting = {key for key in keys if _counts(key, raw)}
    return [{key: value for key, value in item.items() if key not in counting} for item in raw]


def _fingerprint(layer: nn.Module) -> Fingerprint:
    attributes: Fingerprint = {}
    for name, module in layer.named_modules():
        attributes[f"{name}:class"] = type(module).__qualname__
        for key, value in vars(module).items():
            if key == "layer_idx":
                value = getattr(module, OWN_LAYER, value)
            if not key.startswith("_") and key != "training" and _plain(value):
                attributes[f"{name}.{key}".lstrip(".")] = list(value) if isinstance(value, tuple) else value
        for key, parameter in module._parameters.items():
            attributes[f"{name}.{key}:shape".lstrip(".")] = tuple(parameter.shape) if parameter is not None else None
        for key, buffer in module._buffers.items():
            stored = (
                key not in module._non_persistent_buffers_set
            )  # its values come from the file, whatever the config says
            attributes[f"{name}.{key}:buffer".lstrip(".")] = _buffer(buffer, stored)
    return attributes


def _plain(value: object) -> bool:
    if isinstance(value, (list, tuple)):
        return len(value) <= 64 and all(map(_plain, value))
    return value is None or isinstance(value, (bool, int, float, str))


def _buffer(buffer: torch.Tensor | None, stored: bool) -> object:
    if buffer is None or stored or buffer.is_meta or buffer.numel() > SMALL_BUFFER:
        return None if buffer is None else tuple(buffer.shape)
    return tuple(buffer.shape), hashlib.sha256(buffer.detach().float().cpu().numpy().tobytes()).hexdigest()[:12]


def _counts(key: str, raw: list[Fingerprint]) -> bool:
    """Whether an attribute only tells a layer's place or the depth, in every layer that has it.

    A place is the layer's index, or a constant more, or steps of a constant where the name says that it is an index.
    """
    places = [(index, item[key]) for index, item in enumerate(raw) if key in item]
    if not all(isinstance(value, int) and not isinstance(value, bool) for _, value in places):
        return False
    name = key.rsplit(".", 1)[-1]
    gaps = {value - index for index, value in places}
    if len(gaps) == 1 and len(places) > 1 and gaps <= {0, 1}:
        return True
    if INDEX_NAME.search(name):
        other = len(places) == 1 and not gaps <= {0, 1} and places[0][1] > 0  # perhaps another layer's index
        return (len(gaps) == 1 and not other) or _steps(places)
    return DEPTH_NAME.match(name) is not None and {value for _, value in places} == {len(raw)}


def _steps(places: list[tuple[int, int]]) -> bool:
    """Whether the values are a multiple of the layer's index, plus a constant below the multiple (parts of a layer are
    counted too).
    """
    (first, start), (last, end) = places[0], places[-1]
    step = (end - start) // max(last - first, 1)
    return (
        step > 1
        and all(0 <= value - step * index < step for index, value in places)
        and len({v - step * i for i, v in places}) == 1
    )


def same(one: Fingerprint, other: Fingerprint) -> bool:
    """Whether two layers are built alike, floats compared with a tolerance."""
    return one.keys() == other.keys() and all(_equal(one[key], other[key]) for key in one)


def _equal(one: object, other: object) -> bool:
    if isinstance(one, Listed) and isinstance(other, Listed):
        return _equal(one.own, other.own)
    if isinstance(one, Listed) or isinstance(other, Listed):  # a list that had that length by chance
        one, other = (
            list(getattr(value, "items", value)) if isinstance(value, (Listed, list, tuple)) else value
            for value in (one, other)
        )
    if isinstance(one, float) and isinstance(other, float):
        return math.isclose(one, other, rel_tol=1e-6, abs_tol=1e-9) or (math.isnan(one) and math.isnan(other))
    return one == other


def difference(wanted: Fingerprint, got: Fingerprint) -> tuple[str, object, object]:
    """The first attribute that differs, what was wanted and what is there."""
    for key in [*wanted, *got]:
        if key not in wanted or key not in got or not _equal(wanted[key], got[key]):
            return key, wanted.get(key, "absent"), got.get(key, "absent")
    raise AssertionError("the fingerprints are equal")


def digest(fingerprint: Fingerprint) -> str:
    """A hash of a fingerprint."""
    return hashlib.sha256(repr(sorted(fingerprint.items(), key=lambda item: item[0])).encode()).hexdigest()


def shared_tensors(model: nn.Module, stack_name: str) -> frozenset[Shared]:
    """The tensors that serve several layers, each as the set of its (layer, name in the layer).

    Ties have to be tied.
    """
    owners: dict[int, set[tuple[int, str]]] = {}
    for index, layer in enumerate(model.get_submodule(stack_name)):
        for name, parameter in layer.named_parameters(remove_duplicate=False):
            owners.setdefault(id(parameter), set()).add((index, name))
    return frozenset(frozenset(places) for places in owners.values() if len({index for index, _ in places}) > 1)


def shared_after(shared: frozenset[Shared], kept: list[int]) -> frozenset[Shared]:
    """The same among the kept layers, with their new numbers."""
    among_kept = (frozenset((kept.index(index), name) for index, name in places if index in kept) for places in shared)
    return frozenset(places for places in among_kept if len({index for index, _ in places}) > 1)
