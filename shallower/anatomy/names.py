"""Tensor names: which layer each tensor on disk belongs to, told by the rules by which transformers itself reads the
files.
"""

import re
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property

from torch import nn
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import WeightConverter, WeightRenaming, rename_source_key

NUMBER = re.compile(r"(?:^|(?<=\.))\d+(?=\.|$)")


@dataclass(frozen=True)
class TensorName:
    """A tensor's layer, and how its name is made from that: ``head``, the layer's number less ``offset``, ``tail``."""

    layer: int
    head: str
    tail: str
    offset: int = 0

    def name(self, layer: int) -> str:
        """The tensor's name in another layer."""
        return f"{self.head}{layer - self.offset}{self.tail}"


@dataclass(frozen=True)
class Names:
    """Names of tensors in the files -> in the model (``memory``); ``plain`` are those that go there as they are."""

    memory: dict[str, str]
    plain: frozenset[str]

    @cached_property
    def stored(self) -> dict[str, str]:
        """Name in the model -> in the files, of tensors that go there as they are."""
        return {self.memory[disk]: disk for disk in self.plain}

    def tied_names(self, model: nn.Module) -> set[str]:
        """Names in the model of weights that are tied to one that the files hold."""
        pairs = dict(getattr(model, "all_tied_weights_keys", None) or {})
        there = set(self.memory.values())
        groups: dict[str, set[str]] = defaultdict(set)
        for one, other in pairs.items():
            groups[other] |= {one, other}
        return {name for group in groups.values() if group & there for name in group}


def places(model: nn.Module, stack_name: str, tensors: dict[str, int]) -> dict[str, TensorName]:
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
    owners = {
        name: int(match[1]) for name, new in names_in_model(model, tensors).items() if (match := layer.match(new))
    }
    by_owner = _by_owner(owners)
    return by_owner if {place.layer for place in by_owner.values()} >= set(range(layers)) else _by_size(tensors, layers)


def names_in_model(model: nn.Module, names: Iterable[str]) -> dict[str, str]:
    """Tensor names in the files -> in the model, by transformers' own renaming; names that it does not know stay."""
    return read_names(model, names).memory


def read_names(model: nn.Module, names: Iterable[str]) -> Names:
    """Where transformers' own renaming and converting puts each tensor of the files."""
    transforms = get_model_conversion_mapping(model)
    renamings = [item for item in transforms if isinstance(item, WeightRenaming)]
    converters = [item for item in transforms if isinstance(item, WeightConverter)]
    state = model.state_dict()
    prefix = model.base_model_prefix

    def rename(name: str) -> tuple[str, bool]:
        new, converter = rename_source_key(name, renamings, converters, prefix, state)
        if new not in state and name in state:
            return rename_source_key(name, [], [], prefix, state)[0], True
        return new, converter is None

    targets = {name: rename(name) for name in sorted(names)}
    return Names(
        {name: new for name, (new, _) in targets.items()},
        frozenset(name for name, (_, plain) in targets.items() if plain),
    )


def _by_owner(owners: dict[str, int]) -> dict[str, TensorName]:
    """The first number of each name that differs from the owner's by a constant, over all names that agree up to
    there.
    """
    offsets = defaultdict(set)
    for name, owner in owners.items():
        for match in NUMBER.finditer(name):
            offsets[name[: match.start()]].add(owner - int(match[0]))
    entries = {}
    for name, owner in owners.items():
        matches = [match for match in NUMBER.finditer(name) if len(offsets[name[: match.start()]]) == 1]
        if matches:
            head, tail = name[: matches[0].start()], name[matches[0].end() :]
            entries[name] = TensorName(owner, head, tail, owner - int(matches[0][0]))
    return entries


def _by_size(tensors: dict[str, int], layers: int) -> dict[str, TensorName]:
    """Where transformers' rules say nothing.

    The stack is the prefix with the numbers 0 … layers-1 that holds most bytes.
    """
    numbers = defaultdict(set)
    sizes = defaultdict(int)
    for name, size in tensors.items():
        for match in NUMBER.finditer(name):
            numbers[name[: match.start()]].add(int(match[0]))
            sizes[name[: match.start()]] += size
    prefixes = [prefix for prefix, indices in numbers.items() if set(range(layers)) <= indices]
    if not prefixes:
        return {}
    head = max(prefixes, key=lambda prefix: (sizes[prefix], -len(prefix)))
    matches = ((name, NUMBER.match(name, len(head))) for name in tensors if name.startswith(head))
    return {name: TensorName(int(match[0]), head, name[match.end() :]) for name, match in matches if match}
