"""Per-layer config fields: slice the lists, solve the rules, or refuse; judged by what the pruned config would build.

Every layer gets a fingerprint (module classes, plain attributes, parameter and buffer shapes, small buffer values). The
pruned config is right when the layers that it builds have the fingerprints of the kept layers. Which fields speak of
layers is found by trying: a field is a layer rule when changing it changes some layers and not all. So no table of
families or field names is needed.
"""

import copy
import itertools
import re
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cached_property

from torch import nn
from transformers import PreTrainedConfig

from ..errors import Refusal
from .edits import cut_value, expansions, neighbours, perturbations, rescalings
from .fingerprint import difference, digest, layer_fingerprints, same, shared_after, shared_tensors
from .layer_tables import layer_tables, moved_on_disk, outside_shapes, tables_on_disk
from .loading import Checkpoint, one_line, quiet
from .names import TensorName, places

OUTSIDE_TEXT = "outside the layers"
NEAREST_SECONDS = 5.0


@dataclass(frozen=True)
class Solved:
    """A config for the kept layers, what was changed in it, in words, and the tables that have to be cut.

    tables: name in the model of each tensor outside the layers that has a part per layer -> the axis along which they
        lie.
    """

    config: PreTrainedConfig
    changes: tuple[str, ...]
    tables: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Mismatch:
    """Where a candidate config first builds something else than the kept layers."""

    layer: int
    attribute: str
    wanted: object
    got: object
    wrong: int

    def __str__(self) -> str:
        return f"layer {self.layer}: {self.attribute} is {self.got!r} instead of {self.wanted!r}"


class ConfigSolver:
    """Finds, for one model, the config that describes it with some layers removed.

    Args:
        checkpoint: the model; no weights are read.
        stack_name: dotted name of its decoder stack.
    """

    def __init__(self, checkpoint: Checkpoint, stack_name: str):
        self.checkpoint = checkpoint
        self.stack_name = stack_name
        self.dense = dense = checkpoint.shapes
        self.layers = len(dense.get_submodule(stack_name))
        self.fingerprints = layer_fingerprints(dense.get_submodule(stack_name))
        self.attribute_values = {(key, repr(value)) for item in self.fingerprints for key, value in item.items()}
        self.outside = outside_shapes(dense, stack_name)
        self.path = _config_path(dense, stack_name, checkpoint.config)
        self.shared = shared_tensors(dense, stack_name)
        self.content = checkpoint.config.to_dict()
        self.rules: dict[str, list[int]] | None = None

    def solve(self, removed: tuple[int, ...], *, deep: bool = True) -> Solved:
        """The config without the removed layers.

        Args:
            removed: 0-based indices.
            deep: also try pairs of edits, and look for the nearest legal removal when there is none.
        Raises:
            Refusal: no config builds the kept layers; names the field, the first layer that differs and a legal
                removal.
        """
        kept = [index for index in range(self.layers) if index not in removed]
        if not kept:
            raise Refusal("removing every layer leaves no model: keep at least one")
        base, changes = self._slice_config(kept)
        best = self._judge(base, kept)
        if isinstance(best, dict):
            return self._solution(base, changes, best)
        for edits in self._edits(base, kept, best, deep):
            candidate = copy.deepcopy(base)
            _section(candidate, self.path).update(edits)
            verdict = self._judge(candidate, kept)
            if isinstance(verdict, dict):
                return self._solution(
                    candidate, changes + [f"{key} -> {_short(value)}" for key, value in edits.items()], verdict
                )
        raise Refusal(self._refusal(removed, kept, best, deep))

    def kinds(self) -> list[str]:
        """A letter per layer; layers with the same letter are built alike."""
        letters: dict[str, str] = {}
        keys = [digest(fingerprint) for fingerprint in self.fingerprints]
        for key in keys:
            letters.setdefault(key, chr(ord("A") + min(len(letters), 25)))
        return [letters[key] for key in keys]

    def on_disk(self, tables: dict[str, int]) -> dict[str, int]:
        """The tables that have a part per layer under their names in the files.

        Raises a Refusal where they are not there.
        """
        return tables_on_disk(self.dense, tables, self.checkpoint.tensors) if tables else {}

    def places(self) -> dict[str, TensorName]:
        """The places of the tensors in the files that belong to a layer."""
        sizes = {name: entry.bytes for name, entry in self.checkpoint.tensors.items()}
        return places(self.dense, self.stack_name, sizes)

    def moved_tensors(self, kept: list[int]) -> dict[str, int]:
        """Names in the files of tensors that removed layers share with kept ones -> the kept layer that takes them
        over.
        """
        if not self.shared:
            return {}
        return moved_on_disk(self.dense, self.stack_name, self.shared, kept, self.checkpoint.tensors)

    @cached_property
    def _alike(self) -> list[frozenset[int]]:
        """Sets of layers that share a value of some attribute which other layers lack.

        Those that share every value come first.
        """
        kinds = self.kinds()
        sets = [frozenset(i for i, kind in enumerate(kinds) if kind == letter) for letter in sorted(set(kinds))]
        for key in dict.fromkeys(key for item in self.fingerprints for key in item):
            values = [repr(item.get(key, "absent")) for item in self.fingerprints]
            sets += [frozenset(i for i, value in enumerate(values) if value == one) for one in sorted(set(values))]
        return [item for item in dict.fromkeys(sets) if len(item) < self.layers]

    @cached_property
    def tables(self) -> dict[str, int]:
        """All tensors outside the layers that have a part per layer -> axis, told from a model with one layer less."""
        for removed in reversed(range(self.layers)):
            try:
                base, _ = self._slice_config([index for index in range(self.layers) if index != removed])
                model = self.checkpoint.build(self._config(base))
            except Exception:  # not every layer can go; what matters here is only the depth
                continue
            tables = layer_tables(self.outside, outside_shapes(model, self.stack_name), self.layers, self.layers - 1)
            if isinstance(tables, dict) and len(model.get_submodule(self.stack_name)) == self.layers - 1:
                return tables
        return {}

    def _solution(self, content: dict, changes: list[str], tables: dict[str, int]) -> Solved:
        return Solved(
            self._config(content),
            (*changes, *(f"{name} cut to the parts of the kept layers" for name in tables)),
            tables,
        )

    def _config(self, content: dict) -> PreTrainedConfig:
        with quiet():
            return type(self.checkpoint.config).from_dict(copy.deepcopy(content))

    def _slice_config(self, kept: list[int]) -> tuple[dict, list[str]]:
        """The config with the depth set and every per-layer list, string or index-keyed dict cut to the kept layers."""
        content = copy.deepcopy(self.content)
        section = _section(content, self.path)
        owner = _subconfig(self.checkpoint.config, self.path)
        depth = owner.attribute_map.get("num_hidden_layers", "num_hidden_layers")
        changes = []
        if depth in section:  # else it is made from other fields, which ``_depth_edits`` finds
            changes.append(f"{depth} {section[depth]} -> {len(kept)}")
            section[depth] = len(kept)
        for key, value in list(section.items()):
            new = cut_value(key, value, kept, self.layers)
            if new is None and self._names_a_kind(key, value):
                new = [kept.index(index) for index in value if index in kept]
            if new is not None:
                section[key] = new
                changes.append(f"{key} cut to the kept layers")
        return content, changes

    def _names_a_kind(self, key: str, value: object) -> bool:
        """Whether a field lists the indices of all layers that share some attribute which the others lack."""
        indices = isinstance(value, (list, tuple)) and bool(value) and all(type(item) is int for item in value)
        return indices and re.search("layer|block|ids|idx|indices", key) is not None and frozenset(value) in self._alike

    def _judge(self, content: dict, kept: list[int]) -> Mismatch | str | dict[str, int]:
        """The tables to cut if the config builds the kept layers, else the first difference or why it does
        not build.
        """
        try:
            model = self.checkpoint.build(self._config(content))
            fingerprints = layer_fingerprints(model.get_submodule(self.stack_name))
        except Exception as error:  # config validation and constructors raise anything
            return one_line(error)
        if len(fingerprints) != len(kept):
            return f"builds {len(fingerprints)} layers instead of {len(kept)}"
        wrong = [
            index for index, new in zip(kept, fingerprints, strict=True) if not same(self.fingerprints[index], new)
        ]
        if wrong:
            first = wrong[0]
            return Mismatch(first, *difference(self.fingerprints[first], fingerprints[kept.index(first)]), len(wrong))
        tables = layer_tables(self.outside, outside_shapes(model, self.stack_name), self.layers, len(kept))
        if isinstance(tables, str):
            return tables
        wrong_shares = shared_after(self.shared, kept) ^ shared_tensors(model, self.stack_name)
        return f"other layers would share the tensor {min(min(wrong_shares))[1]}" if wrong_shares else tables

    def _edits(self, base: dict, kept: list[int], first: Mismatch | str, deep: bool) -> Iterator[dict]:
        """Candidate edits: single fields first, then pairs."""
        section = _section(base, self.path)
        if isinstance(first, str):
            yield from self._depth_edits(section, len(kept))
        singles = [(key, value) for key in self._rules() for value in self._values(key, kept)]
        singles += [(key, value) for key in section for value in expansions(section[key], kept, self.layers)]
        singles += [(key, value) for key in section for value in rescalings(key, section[key], len(kept) / self.layers)]
        singles = [(key, value) for key, value in singles if section.get(key) != value]
        yield from ({key: value} for key, value in singles)
        if deep:
            pairs = itertools.combinations(singles, 2)
            yield from itertools.islice(({a[0]: a[1], b[0]: b[1]} for a, b in pairs if a[0] != b[0]), 2000)

    def _depth_edits(self, section: dict, depth: int) -> Iterator[dict]:
        """Depth fields under other names, alone or scaled with the usual one."""
        for key, value in section.items():
            speaks = isinstance(value, int) and not isinstance(value, bool) and re.search("layer|block|depth", key)
            if speaks and value and value % self.layers == 0:
                yield {key: depth * (value // self.layers)}
        for factor in (1, 2):
            keys = [key for key, value in section.items() if re.fullmatch(r"(num|n)_(hidden_)?(layers?|blocks?)", key)]
            yield {key: depth * (factor if key == "num_hidden_layers" else 1) for key in keys}

    def _rules(self) -> dict[str, list[int]]:
        """Fields that are layer rules, and the layers that each one decides, found by changing each field once."""
        if self.rules is None:
            self.rules = {}
            section = _section(self.content, self.path)
            for key, value in section.items():
                for other in perturbations(value, self.kinds()):
                    layers = self._decided_layers(key, other)
                    if 0 < len(layers) < self.layers:
                        self.rules.setdefault(key, layers)
        return self.rules

    def _decided_layers(self, key: str, value: object) -> list[int]:
        content = copy.deepcopy(self.content)
        _section(content, self.path)[key] = value
        try:
            model = self.checkpoint.build(self._config(content))
            fingerprints = layer_fingerprints(model.get_submodule(self.stack_name))
        except Exception:  # a value that does not build says nothing about layers
            return []
        if len(fingerprints) != self.layers:
            return []
        layers = [i for i, new in enumerate(fingerprints) if not same(self.fingerprints[i], new)]
        known = all(
            (key, repr(value)) in self.attribute_values for i in layers for key, value in fingerprints[i].items()
        )
        return (
            layers if known else []
        )  # a value that no layer had before is a size, not a choice between kinds of layers

    def _values(self, key: str, kept: list[int]) -> list:
        """Plausible values of a layer rule after the removal, the likeliest first."""
        value = _section(self.content, self.path)[key]
        if isinstance(value, int):
            below = sum(index < value for index in kept)
            last = sum(index >= self.layers - value for index in kept)
            return list(dict.fromkeys([below, last, 1, 0, *range(2, len(kept) + 1)]))
        offsets = (0, 1)
        values = [[kept.index(i - o) + o for i in value if i - o in kept] for o in offsets]
        for alike in self._alike:
            for offset in offsets:
                values.append([new + offset for new, old in enumerate(kept) if old in alike])
        values.append([])
        return [list(item) for item in dict.fromkeys(map(tuple, values))]

    def _refusal(self, removed: tuple[int, ...], kept: list[int], why: Mismatch | str, deep: bool) -> str:
        if isinstance(why, Mismatch):
            field = f"the config field {' / '.join(self._rules())}" if self._rules() else "the model's config"
            why = f"{field} cannot describe the layers that stay ({why})"
        text = f"cannot remove layer{'s' * (len(removed) > 1)} {_layers_text(removed)}: {why}"
        if not deep or (isinstance(why, str) and OUTSIDE_TEXT in why):
            return text  # a table with a part per layer stands in the way of every removal
        legal = self._nearest(removed)
        return text + (
            f"; nearest legal removal: {_layers_text(legal)}"
            if legal
            else "; no legal removal of that size was found nearby"
        )

    def _nearest(self, removed: tuple[int, ...]) -> tuple[int, ...] | None:
        """The legal removal of the same size that is closest, or of another size where there is none, within a time
        limit.
        """
        deadline = time.monotonic() + NEAREST_SECONDS
        for candidate in neighbours(removed, self.layers):
            if time.monotonic() > deadline:
                return None
            try:
                self.solve(candidate, deep=False)
                return candidate
            except Refusal:
                continue
        return None


def _config_path(model: nn.Module, stack_name: str, top: PreTrainedConfig) -> tuple[str, ...]:
    """Names that lead from the top config to the one that the stack's owner was built from.

    Where the model is only a part of what the top config describes, it holds a copy of that part's config.
    """
    owner = stack_name
    config = None
    while config is None and owner:
        owner = owner.rpartition(".")[0]
        config = getattr(model.get_submodule(owner), "config", None)

    def search(
        current: PreTrainedConfig, depth: int, fits: Callable[[PreTrainedConfig], bool]
    ) -> tuple[str, ...] | None:
        if fits(current):
            return ()
        for name in current.sub_configs if depth else ():
            below = getattr(current, name, None)
            if isinstance(below, PreTrainedConfig) and (path := search(below, depth - 1, fits)) is not None:
                return (name, *path)
        return None

    part = search(top, 3, lambda current: type(current) is type(model.config)) or ()
    return part + (search(model.config, 3, lambda current: current is config) or ())


def _section(content: dict, path: tuple[str, ...]) -> dict:
    for name in path:
        content = content[name]
    return content


def _subconfig(config: PreTrainedConfig, path: tuple[str, ...]) -> PreTrainedConfig:
    for name in path:
        config = getattr(config, name)
    return config


def _layers_text(indices) -> str:
    return indices if isinstance(indices, str) else ", ".join(map(str, indices))


def _short(value: object) -> str:
    text = str(value)
    return text if len(text) <= 60 else text[:57] + "..."
