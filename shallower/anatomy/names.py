"""Which layer each tensor on disk belongs to; told by the rules by which transformers itself reads the files."""

import re
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass

from torch import nn
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import WeightConverter, WeightRenaming, rename_source_key

NUMBER = re.compile(r"(?:^|(?<=\.))\d+(?=\.|$)")


@dataclass(frozen=True)
class Place:
    """A tensor's layer, and how its name is made from that: ``head``, the layer's number less ``offset``, ``tail``."""

    layer: int
    head: str
    tail: str
    offset: int = 0

    def name(self, layer: int) -> str:
        """The tensor's name in another layer."""
        return f"{self.head}{layer - self.offset}{self.tail}"


def places(model: nn.Module, stack_name: str, tensors: dict[str, int]) -> dict[str, Place]:
    """The places of all tensors that belong to a layer of the stack, or to a prediction layer numbered after it.

    Args:
        model: built from the config; its tensors may be on the meta device.
        stack_name: dotted name of the decoder stack in memory.
        tensors: names on disk and sizes in bytes.
    Returns:
        Empty where no layer can be told.
    """
    layers = len(model.get_submodule(stack_name))
    layer = re.compile(re.escape(stack_name) + r"\.(\d+)\.")
    owners = {name: int(match[1]) for name, new in names_in_model(model, tensors).items() if (match := layer.match(new))}
    found = _by_owner(owners)
    return found if {place.layer for place in found.values()} >= set(range(layers)) else _by_size(tensors, layers)


def names_in_model(model: nn.Module, names: Iterable[str]) -> dict[str, str]:
    """Tensor names in the files -> in the model, by transformers' own renaming; names that it does not know stay."""
    transforms = get_model_conversion_mapping(model)
    renamings = [item for item in transforms if isinstance(item, WeightRenaming)]
    converters = [item for item in transforms if isinstance(item, WeightConverter)]
    state, prefix = model.state_dict(), model.base_model_prefix

    def renamed(name: str) -> str:
        new = rename_source_key(name, renamings, converters, prefix, state)[0]
        return rename_source_key(name, [], [], prefix, state)[0] if new not in state and name in state else new

    return {name: renamed(name) for name in sorted(names)}


def _by_owner(owners: dict[str, int]) -> dict[str, Place]:
    """The first number of each name that differs from the owner's by a constant, over all names that agree up to there."""
    offsets = defaultdict(set)
    for name, owner in owners.items():
        for match in NUMBER.finditer(name):
            offsets[name[: match.start()]].add(owner - int(match[0]))
    found = {}
    for name, owner in owners.items():
        fitting = [match for match in NUMBER.finditer(name) if len(offsets[name[: match.start()]]) == 1]
        if fitting:
            head, tail = name[: fitting[0].start()], name[fitting[0].end() :]
            found[name] = Place(owner, head, tail, owner - int(fitting[0][0]))
    return found


def _by_size(tensors: dict[str, int], layers: int) -> dict[str, Place]:
    """Where transformers' rules say nothing: the stack is the prefix with the numbers 0 … layers-1 that holds most bytes."""
    numbers, sizes = defaultdict(set), defaultdict(int)
    for name, size in tensors.items():
        for match in NUMBER.finditer(name):
            numbers[name[: match.start()]].add(int(match[0]))
            sizes[name[: match.start()]] += size
    fitting = [prefix for prefix, found in numbers.items() if set(range(layers)) <= found]
    if not fitting:
        return {}
    head = max(fitting, key=lambda prefix: (sizes[prefix], -len(prefix)))
    matches = ((name, NUMBER.match(name, len(head))) for name in tensors if name.startswith(head))
    return {name: Place(int(match[0]), head, name[match.end() :]) for name, match in matches if match}
