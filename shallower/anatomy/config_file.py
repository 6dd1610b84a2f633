"""Editing the source's config.json: only what speaks of layers is changed; all else stays as it was spelt.

The file is read by many programs: older transformers, llama.cpp, vLLM, MLX. A field in a spelling that only they know
(``rope_scaling``, ``torch_dtype``, ``n_layer``), sampling defaults and whatever else is unknown here stay; what speaks
of layers is changed in every spelling that is there. The edited file must be read as the config that was found to be
right; if it is not, fields that the reader makes from others are written out, and at last it is written anew beside
what only others know.
"""

import copy
import inspect
import re
from collections.abc import Iterator
from typing import Any

import torch
from transformers import PreTrainedConfig
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from ..errors import Refusal
from .edits import cut_value
from .loading import VOLATILE, quiet
from .quantised import FIELDS, StackNames, renumber_modules

DEPTH_FIELD = re.compile(r"(num|n)_(hidden_)?(layers?|blocks?)|num_decoder_layers|decoder_layers")
PREDICTED = "num_nextn_predict_layers"
DTYPE_FIELDS = ("torch_dtype", "dtype")


def say_stored_as(content: dict[str, Any], dtype: torch.dtype) -> None:
    """Say in the content of a config.json what the weights are stored in, in every spelling that is there."""
    name = str(dtype).removeprefix("torch.")
    spelt = [(part, key) for part in _parts(content) for key in DTYPE_FIELDS if key in part]
    for part, key in spelt or [(content, key) for key in DTYPE_FIELDS]:
        part[key] = name


class Edited:
    """A config.json for the kept layers.

    Args:
        raw: the source's file as parsed.
        dense: transformers' reading of it.
        pruned: the config that describes the kept layers.
        section: names that lead to the part that the pruned stack is built from.
        kept, layers: the layers that stay, and how many there were.
    """

    def __init__(
        self,
        raw: dict[str, Any],
        dense: PreTrainedConfig,
        pruned: PreTrainedConfig,
        section: tuple[str, ...],
        kept: list[int],
        layers: int,
    ):
        self.raw = raw
        self.kind = type(dense)
        self.section = section
        self.kept = kept
        self.layers = layers
        self.before, self.wanted = dense.to_dict(), pruned.to_dict()
        self.aliases = {path: _aliases(one) for path, one in _sections(dense)}
        self.changes: list[str] = []
        self.own = _own_fields(type(dict(_sections(dense)).get(section, dense)))
        self.content = self._edit()

    def renumber(self, names: StackNames) -> None:
        """Renumber the module names in every quantisation config of the file."""
        for part in _parts(self.content):
            for key in FIELDS:
                if key in part:
                    part[key] = renumber_modules(part[key], names, self.kept)

    def drop_predicted(self) -> None:
        """Say that no prediction layers follow the stack."""
        for part in _parts(self.content):
            if part.get(PREDICTED):
                part[PREDICTED] = 0

    def store_as(self, dtype: torch.dtype) -> None:
        """Say what the weights are stored in, in every spelling that is there."""
        say_stored_as(self.content, dtype)

    def _edit(self) -> dict[str, Any]:
        content = copy.deepcopy(self.raw)
        for path, key, value in _differences(self.before, self.wanted):
            self._set(content, path, key, value)
        self._cut_unknown(content)
        if not (wrong := self._wrong(content)):
            return content
        for path, key, value in wrong:  # made by the reader from fields of other names
            self._set(content, path, key, value)
        if not self._wrong(content):
            return content
        content = {key: value for key, value in content.items() if key not in self.before} | copy.deepcopy(self.wanted)
        if wrong := self._wrong(content):
            raise Refusal(
                f"the edited config.json would be read otherwise than it was meant ({wrong[0][1]} becomes "
                f"{str(wrong[0][2])[:60]})"
            )
        self.changes.append("config.json written anew, in the spelling of this transformers")
        return content

    def _set(self, content: dict[str, Any], path: tuple[str, ...], key: str, value: Any) -> None:
        """Set a field under each of its names that is there, or under its own."""
        part = content
        for name in path:
            inner = part.get(name)
            part[name] = part = inner if isinstance(inner, dict) else {}
        names = [name for name in self.aliases.get(path, {}).get(key, (key,)) if name in part] or [key]
        for name in names:
            if value is _ABSENT:
                part.pop(name, None)
            else:
                part[name] = copy.deepcopy(value)

    def _cut_unknown(self, content: dict[str, Any]) -> None:
        """Fields that this transformers does not know, but others do.

        The depth by another name, and lists of its length.
        """
        part, wanted, before = content, self.wanted, self.before
        for name in self.section:
            part, wanted, before = part.get(name), wanted.get(name, {}), before.get(name, {})
            if not isinstance(part, dict):
                return
        for key, value in list(part.items()):
            if before.get(key) != wanted.get(key):  # cut already
                continue
            if key in self.own or any(key in names for names in self.aliases.get(self.section, {}).values()):
                continue
            new = cut_value(key, value, self.kept, self.layers)
            if new is None and type(value) is int and value == self.layers and DEPTH_FIELD.fullmatch(key):
                new = len(self.kept)
            if new is not None:
                part[key] = new
                if key in wanted:  # it is carried along, though nobody here reads it
                    wanted[key] = copy.deepcopy(new)
                self.changes.append(f"{key}, which this transformers does not know, cut to the kept layers")

    def _wrong(self, content: dict[str, Any]) -> list[tuple[tuple[str, ...], str, Any]]:
        """Where transformers reads the content otherwise than it is meant."""
        try:
            with quiet():
                reading = self.kind.from_dict(copy.deepcopy(content)).to_dict()
        except Exception:  # validation errors come in many classes
            return list(_differences(self.before, self.wanted)) or [((), "config", _ABSENT)]
        return [item for item in _differences(reading, self.wanted) if item[1] not in VOLATILE]


def fresh_content(model_type: str, fields: dict[str, Any]) -> dict[str, Any]:
    """The content of a config.json of another model type with these fields."""
    return CONFIG_MAPPING[model_type](**copy.deepcopy(fields)).to_dict()


def _own_fields(kind: type[PreTrainedConfig]) -> set[str]:
    """Fields that a class of configs reads itself; others are only carried along."""
    return {
        *inspect.signature(kind.__init__).parameters,
        *getattr(kind, "__dataclass_fields__", ()),
        *PreTrainedConfig().to_dict(),
    }


class _Absent:
    def __repr__(self) -> str:
        return "absent"


_ABSENT = _Absent()


def _differences(before: dict, after: dict, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], str, Any]]:
    """(path, field, new value) of everything that differs; parts are gone into."""
    for key in [*after, *(key for key in before if key not in after)]:
        one, other = before.get(key, _ABSENT), after.get(key, _ABSENT)
        if isinstance(one, dict) and isinstance(other, dict) and ("model_type" in one or "model_type" in other):
            yield from _differences(one, other, (*path, key))
        elif _plain(one) != _plain(other):
            yield path, key, other


def _plain(value: Any) -> Any:
    """Equal for what JSON makes equal: tuples and lists, numbers and texts as keys."""
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, (list, tuple)) else value


def _parts(content: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The config and every part of it."""
    yield content
    for value in content.values():
        if isinstance(value, dict) and "model_type" in value:
            yield from _parts(value)


def _sections(
    config: PreTrainedConfig, path: tuple[str, ...] = ()
) -> Iterator[tuple[tuple[str, ...], PreTrainedConfig]]:
    yield path, config
    for name in config.sub_configs:
        below = getattr(config, name, None)
        if isinstance(below, PreTrainedConfig):
            yield from _sections(below, (*path, name))


def _aliases(config: PreTrainedConfig) -> dict[str, tuple[str, ...]]:
    """Field -> every name that it may have in a file."""
    names: dict[str, set[str]] = {}
    for common, own in config.attribute_map.items():
        names.setdefault(own, {own}).add(common)
    return {key: tuple(sorted(group)) for own, group in names.items() for key in group}
