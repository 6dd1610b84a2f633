"""What a layer is built like: module classes, plain attributes, parameter and buffer shapes, small buffer values."""

import hashlib
import math
import re

import torch
from torch import nn

INDEX_NAME = re.compile(r"(layer|block)_?(idx|index|id|number|num)$|^(idx|index)$")
SMALL_BUFFER = 1 << 16
Fingerprint = dict[str, object]
Shared = frozenset[tuple[int, str]]  # (layer, name in the layer) of all places of one tensor


def layer_fingerprints(layers: nn.ModuleList) -> list[Fingerprint]:
    """One dictionary per layer of everything that tells layers apart, without what merely counts them."""
    raw = [_fingerprint(layer) for layer in layers]
    keys = {key for item in raw for key in item}
    counting = {key for key in keys if _counts(key, raw)}
    return [{key: value for key, value in item.items() if key not in counting} for item in raw]


def _fingerprint(layer: nn.Module) -> Fingerprint:
    found: Fingerprint = {}
    for name, module in layer.named_modules():
        found[f"{name}:class"] = type(module).__qualname__
        for key, value in vars(module).items():
            if not key.startswith("_") and key != "training" and _plain(value):
                found[f"{name}.{key}".lstrip(".")] = value
        for key, parameter in module._parameters.items():
            found[f"{name}.{key}:shape".lstrip(".")] = tuple(parameter.shape) if parameter is not None else None
        for key, buffer in module._buffers.items():
            found[f"{name}.{key}:buffer".lstrip(".")] = _buffer(buffer)
    return found


def _plain(value: object) -> bool:
    if isinstance(value, (list, tuple)):
        return len(value) <= 64 and all(map(_plain, value))
    return value is None or isinstance(value, (bool, int, float, str))


def _buffer(buffer: torch.Tensor | None) -> object:
    if buffer is None or buffer.is_meta or buffer.numel() > SMALL_BUFFER:
        return None if buffer is None else tuple(buffer.shape)
    return tuple(buffer.shape), hashlib.sha256(buffer.detach().float().cpu().numpy().tobytes()).hexdigest()[:12]


def _counts(key: str, raw: list[Fingerprint]) -> bool:
    """Whether an attribute only tells a layer's place: the layer's index, or a constant more, in every layer that has it."""
    places = [(index, item[key]) for index, item in enumerate(raw) if key in item]
    if not all(isinstance(value, int) and not isinstance(value, bool) for _, value in places):
        return False
    gaps = {value - index for index, value in places}
    named = INDEX_NAME.search(key.rsplit(".", 1)[-1]) is not None
    return len(gaps) == 1 and ((named and (len(places) > 1 or gaps <= {0, 1})) or (len(places) > 1 and gaps <= {0, 1}))


def same(one: Fingerprint, other: Fingerprint) -> bool:
    """Whether two layers are built alike, floats compared with a tolerance."""
    return one.keys() == other.keys() and all(_equal(one[key], other[key]) for key in one)


def _equal(one: object, other: object) -> bool:
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
    """The tensors that serve several layers, each as the set of its (layer, name in the layer); ties have to be tied."""
    owners: dict[int, set[tuple[int, str]]] = {}
    for index, layer in enumerate(model.get_submodule(stack_name)):
        for name, parameter in layer.named_parameters(remove_duplicate=False):
            owners.setdefault(id(parameter), set()).add((index, name))
    return frozenset(frozenset(places) for places in owners.values() if len({index for index, _ in places}) > 1)


def shared_after(shared: frozenset[Shared], kept: list[int]) -> frozenset[Shared]:
    """The same among the kept layers, with their new numbers."""
    left = (frozenset((kept.index(index), name) for index, name in places if index in kept) for places in shared)
    return frozenset(places for places in left if len({index for index, _ in places}) > 1)


def index_lists(fields: dict, kinds: list[str]) -> dict[str, list[int]]:
    """Config fields that list layers by their numbers: those that hold all layers of some kinds, and none of the others.

    Args:
        kinds: a letter per layer.
    """
    found = {}
    for key, value in fields.items():
        if isinstance(value, list) and 0 < len(value) < len(kinds) and all(type(item) is int for item in value):
            listed = {kinds[index] for index in value if 0 <= index < len(kinds)}
            if value == [index for index, kind in enumerate(kinds) if kind in listed]:
                found[key] = value
    return found


def remapped(indices: list[int], kept: list[int]) -> list[int]:
    """Those of the listed layers that are kept, by their new numbers."""
    return [kept.index(index) for index in indices if index in kept]
