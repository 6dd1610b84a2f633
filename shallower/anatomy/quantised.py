"""Quantised checkpoints: whether they can be loaded here, and the module names inside their configs, renumbered for
the pruned stack.

Names of modules that stay unquantised, or have settings of their own, stand in quantisation configs in many ways: as
they are, without what stands in front of the stack, as regular expressions, as shell patterns. What an entry says is
the set of modules that it matches; after a removal it must match the same ones of those that stay, and modules of
other stacks as before.
"""

import fnmatch
import json
import re
from dataclasses import dataclass
from typing import Any

from torch import nn
from transformers.quantizers.auto import AutoHfQuantizer, AutoQuantizationConfig

from ..errors import UserError, argument
from .names import NUMBER, TensorName

PREFIX = re.compile(r"(re:|[+-]:)?(.*)", re.S)  # compressed-tensors and GPTQModel mark their patterns
SPECIAL = re.compile(r"[\\^$*+?\[\](){}|]")
FIELDS = ("quantization_config", "compression_config", "quantization")


def quantisation_method(quantised: dict[str, Any]) -> str:
    """The name of the method, such as fp8, gptq or bitsandbytes."""
    return str(quantised.get("quant_method") or "an unknown method")


def unpacking_of(quantised: dict[str, Any]) -> Any:
    """Settings with which transformers makes plain weights of packed ones while it reads them; None where the method
    knows no such thing.

    What is loaded is then a model like any other. Roundings of activations are not made. Of several groups with
    settings of their own transformers unpacks by those of one, so such a model is loaded as it is.
    """
    config = AutoQuantizationConfig.from_dict(dict(quantised))
    groups = list((quantised.get("config_groups") or {}).values())
    alike = all(
        (one.get("weights"), one.get("format")) == (groups[0].get("weights"), groups[0].get("format")) for one in groups
    )
    if not hasattr(config, "dequantize") or not alike:
        return None
    config.dequantize = True
    return config


def loading_of(source: str, quantised: dict[str, Any] | None) -> dict[str, Any]:
    """What ``from_pretrained`` is told, so that it loads such weights, unpacked where the method can do that.

    Raises:
        UserError: transformers cannot load them on this machine; says what is missing.
    """
    if quantised is None:
        return {}
    try:
        _check_known(quantised)
        unpacking = unpacking_of(quantised)
        AutoHfQuantizer.from_config(unpacking or dict(quantised), pre_quantized=True).validate_environment(
            device_map=None, weights_only=True
        )
    except Exception as error:  # each method raises its own kinds for absent packages and devices
        message = f"its settings lack {error}" if isinstance(error, KeyError) else str(error)
        message = " ".join(message.split())[:200].rstrip(".")
        raise UserError(
            f"{source} is quantised ({quantisation_method(quantised)}) and cannot be loaded here ({message}): install "
            "what it needs, or give the unquantised model; prune removes layers by number from the files alone, "
            f"unproven, with {argument('verify', False)}"
        ) from error
    return {} if unpacking is None else {"quantization_config": unpacking}


def _check_known(quantised: dict[str, Any]) -> None:
    """Raise a ValueError for a method that transformers does not know, or that has no name."""
    named = quantised.get("quant_method") or quantised.get("load_in_4bit") or quantised.get("load_in_8bit")
    if not named or not AutoHfQuantizer.supports_quant_method(dict(quantised)):
        raise ValueError("no method that transformers knows")


def check_plain(source: str, quantised: dict[str, Any] | None, *, unpacked: bool, what: str, instead: str) -> None:
    """Raise a UserError where weights are looked at that stay packed numbers when they are loaded.

    Args:
        what: what would look at the weights.
        instead: what does not.
    """
    if quantised is not None and not unpacked:
        method = quantisation_method(quantised)
        raise UserError(
            f"{what} looks at weights, and those of {source} are packed ({method}): {instead}, or give the unquantised "
            "model"
        )


def refuse(source: str, quantised: dict[str, Any] | None, why: str) -> None:
    """Raise a UserError for what cannot be done to quantised files."""
    if quantised is not None:
        raise UserError(f"{source} is quantised ({quantisation_method(quantised)}): {why}")


def check_rewritable(source: str, quantised: dict[str, Any] | None, *, repaired: bool, converted: bool) -> None:
    """Raise a UserError for weights that are to be written otherwise than they are stored, where they are packed.

    Args:
        repaired: some are to be changed.
        converted: they are to be stored in another dtype.
    """
    if converted:
        why = (
            f"its packed weights and their scales belong together, so {argument('save_dtype')} cannot store them "
            "otherwise: prune without it"
        )
        refuse(source, quantised, why)
    if repaired:
        why = "what is stored cannot be refitted: repair the unquantised model, and quantise the result"
        refuse(source, quantised, why)


def check_room(source: str, quantised: dict[str, Any] | None, needed: int, total: int) -> None:
    """Raise a UserError where quantised weights take more bytes when they are loaded than there are."""
    if needed > total:
        why = f"its weights take {needed / 1e9:.1f} GB when loaded, and there are {total / 1e9:.1f} GB of memory"
        only = "only plain weights are read layer by layer: take a larger machine, or give the unquantised model"
        refuse(source, quantised, f"{why}; {only}")


@dataclass(frozen=True)
class StackNames:
    """Module names of a model: those of the pruned stack by layer, and all others.

    Attributes:
        inside: name -> (layer, the name in another layer: head and tail around its number, the number less what).
        outside: every other name.
    """

    inside: dict[str, TensorName]
    outside: frozenset[str]


def stack_names(model: nn.Module, stack_name: str, places: dict[str, TensorName]) -> StackNames:
    """The names of all modules, as they are called in memory and in the files.

    Args:
        model: the dense model; its tensors may be on the meta device.
        places: of the tensors in the files that belong to a layer.
    """
    inside = {}
    outside = set()
    head = f"{stack_name}."
    for name, _ in model.named_modules():
        match = NUMBER.match(name, len(head)) if name.startswith(head) else None
        if match:
            inside[name] = TensorName(int(match[0]), head, name[match.end() :])
        elif name:
            outside.add(name)
    for place in places.values():
        parts = place.tail.split(".")
        for count in range(1, len(parts)):
            tail = ".".join(parts[:count])
            own = TensorName(place.layer, place.head, tail, place.offset)
            inside.setdefault(own.name(place.layer), own)
    return StackNames(inside, frozenset(outside))


def renumber_modules(value: Any, names: StackNames, kept: list[int]) -> Any:
    """A quantisation config for the kept layers.

    Entries that name modules of removed layers go, the others get the new numbers.
    """
    new = {old: number for number, old in enumerate(kept)}
    if isinstance(value, dict):
        return {
            one: renumber_modules(item, names, kept) for key, item in value.items() for one in _entry(key, names, new)
        }
    if isinstance(value, list):
        entries = []
        for item in value:
            entries += _entry(item, names, new) if isinstance(item, str) else [renumber_modules(item, names, kept)]
        return [item for place, item in enumerate(entries) if not isinstance(item, str) or item not in entries[:place]]
    if isinstance(value, str):
        return (_entry(value, names, new) or [value])[0]
    return value


def renumber_metadata(metadata: dict[str, str], names: StackNames, kept: list[int]) -> dict[str, str]:
    """The metadata of safetensors files for the kept layers: names of weights are its keys, or stand in lists of it."""
    new = {old: number for number, old in enumerate(kept)}

    def renamed(text: str) -> str | None:
        own = next((names.inside[above] for above in _above(text) if above in names.inside), None)
        if own is None:
            return text
        tail = text.removeprefix(own.name(own.layer))
        return own.name(new[own.layer]) + tail if own.layer in new else None

    found = {}
    for key, value in metadata.items():
        listed = parse_list(value)
        if listed is not None:
            value = json.dumps([one for item in listed if (one := renamed(item)) is not None])
        if (name := renamed(key)) is not None:
            found[name] = value
    return found


def parse_list(text: str) -> list[str] | None:
    """The texts of a JSON list; None for anything else."""
    try:
        found = json.loads(text) if text.startswith("[") else None
    except ValueError:
        return None
    return found if isinstance(found, list) and all(isinstance(one, str) for one in found) else None


def _above(name: str) -> list[str]:
    """The names of the modules that hold a weight, the innermost first."""
    parts = name.split(".")
    return [".".join(parts[:count]) for count in range(len(parts) - 1, 0, -1)]


def _entry(entry: str, names: StackNames, new: dict[int, int]) -> list[str]:
    """What stands for an entry in the pruned model's config.

    Itself, itself with other numbers, several names, or nothing.
    """
    if not re.search(r"\d", entry) or entry.isdigit():
        return [entry]  # what names no layer means the same as before
    matches = _matcher(entry)
    inside = {name for name in names.inside if matches(name)}
    if not inside:
        return [entry]
    outside = {name for name in names.outside if matches(name)}
    stays = {name: names.inside[name] for name in inside if names.inside[name].layer in new}
    wanted = {place.name(new[place.layer]) for place in stays.values()} | outside
    if not wanted:
        return []
    universe = {place.name(new[place.layer]) for place in names.inside.values() if place.layer in new} | names.outside
    candidates = [entry, *_with_other_numbers(entry, {names.inside[name].layer for name in inside}, new)]
    for candidate in candidates:
        again = _matcher(candidate)
        if {name for name in universe if again(name)} == wanted:
            return [candidate]
    mark, text = PREFIX.fullmatch(entry).groups()
    top = [name for name in sorted(wanted, key=_natural) if not any(name.startswith(other + ".") for other in wanted)]
    if not mark and not _is_pattern(text):
        return top
    found, shell = [], not mark and _is_shell_pattern(text)
    for name in top:
        below = {one for one in universe if one.startswith(f"{name}.")}
        alone = [name] if below <= wanted else sorted({name} | below & wanted, key=_natural)
        for one in alone:
            within = bool(below) and below <= wanted
            found += _shell_patterns(one, within) if shell else [_regex(mark, one, within)]
    return found


def _regex(mark: str | None, name: str, within: bool) -> str:
    """A regular expression for a module, and for what is within it."""
    return f"{mark or ''}^{re.escape(name)}" + (r"(\..*)?$" if within else "$")


def _shell_patterns(name: str, within: bool) -> list[str]:
    """The same in shell patterns."""
    return [name, f"{name}.*"] if within else [name]


def _with_other_numbers(entry: str, layers: set[int], new: dict[int, int]) -> list[str]:
    """The entry with each of its numbers that is the layer's own replaced by the new one."""
    if len(layers) != 1 or (old := next(iter(layers))) not in new:
        return []
    places = [
        match
        for match in re.finditer(r"\d+", entry)
        if int(match[0]) == old or old in (int(match[0]) - 1, int(match[0]) + 1)
    ]
    return [entry[: match.start()] + str(int(match[0]) - old + new[old]) + entry[match.end() :] for match in places]


def _is_pattern(text: str) -> bool:
    return SPECIAL.search(text) is not None


def _is_shell_pattern(text: str) -> bool:
    return "*" in text and "\\" not in text


def _matcher(entry: str):
    """name -> whether the entry speaks of the module, as the readers of such configs understand it."""
    mark, text = PREFIX.fullmatch(entry).groups()
    if mark or (_is_pattern(text) and not _is_shell_pattern(text)):
        try:
            pattern = re.compile(text)
        except re.error:
            return lambda name: False
        return lambda name: pattern.match(name) is not None
    if _is_pattern(text):
        pattern = re.compile(fnmatch.translate(text))
        return lambda name: pattern.match(name) is not None
    within = f".{text}."
    return lambda name: within in f".{name}."


def _natural(name: str) -> list:
    return [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", name)]
