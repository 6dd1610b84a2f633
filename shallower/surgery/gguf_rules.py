"""GGUF rules: what llama.cpp decides by a layer's number, or by how many there are, and what that means without some
of them.

Arrays with a value per layer are cut. Where llama.cpp counts layers (which of them have a sliding window, which are
recurrent), the pattern is written out. Where it counts and nothing in a file can say otherwise, the removal is refused.
Read in the llama.cpp of llama-cpp-python 0.3.36 (src/models); an architecture that is not named here needs a proof.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ..errors import Refusal, UserError
from ..storage.gguf import ARRAY, ORIGINAL, PATTERNS, STRING, GgufHeader
from ..storage.gguf_writer import UINT32, GgufValue, Remade, Renamed, bools, stored_value

LAYER = re.compile(r"blk\.(\d{1,7})\.(.+)")
# writers of the stream by their names in a layer: with zero bytes there the layer adds nothing
WRITERS = re.compile(
    r"(attn_output|attn_out|ffn_down|ffn_down_exps|ffn_down_shexp|ffn_down_chexps|ssm_out|shortconv\.out_proj)"
    r"\.(weight|bias)"
)
NONE: Mapping[str, Remade] = {}
WINDOW, RECURRENT = PATTERNS
# architecture -> (period, whether the first of each period is the odd one out instead of the last)
WINDOWS = {
    **{"gemma2": (2, False), "gemma3": (6, False), "gpt-oss": (2, False), "cohere2": (4, False), "olmo2": (4, False)},
    **{"llama4": (4, False), "mellum": (4, False), "afmoe": (4, False), "exaone-moe": (4, False)},
    **{"plamo3": (8, False), "cohere2moe": (4, True), "laguna": (4, True), "smallthinker": (4, True)},
}
ALWAYS = ("gemma2",)  # has windows without a key that says so
RECURRING = {"qwen3next": 4, "qwen35": 4, "qwen35moe": 4, "minimax-01": 8}  # every so many layers attend to all
UNROTATED = {"smollm3": 4, "llama4": 4, "afmoe": 4, "smallthinker": 4}  # every so many layers have no rotary embedding
FIRST = ("smallthinker",)  # of which it is the first of each period
ROUTED = ("llama4", "ernie4_5-moe")  # every so many layers have experts: interleave_moe_layer_step
# architecture -> numbers of layers that mean other arithmetic: an attention scale, windows, norms
DEPTHS: dict[str, Callable[[int], Any]] = {
    "gemma2": lambda depth: depth == 46,
    "gemma3": lambda depth: depth == 62,
    "exaone4": lambda depth: depth == 64,
    "command-r": lambda depth: depth >= 64,
    "deepseek2": lambda depth: depth if depth in (26, 27, 47, 48) else 0,
    "baichuan": lambda depth: depth if depth in (32, 40) else 0,
}
NO_LAYERS = ("rope.dimension_sections",)  # arrays of other things, which may be as many as there are layers
PLAIN = {
    *("llama", "qwen2", "qwen3", "qwen2moe", "qwen3moe", "phi2", "phi3", "gemma", "gpt2", "gptneox", "bloom"),
    *("falcon", "starcoder2", "mpt", "olmo", "olmoe", "granite", "granitemoe", "stablelm", "internlm2", "minicpm"),
    *("dbrx", "deepseek", "exaone", "nemotron", "lfm2", "falcon-h1", "jamba", "granitehybrid", "mamba", "mamba2"),
    *("nemotron_h", "seed_oss", "glm4", "ernie4_5", "mistral3", "apertus", "arcee", "hunyuan-dense"),
}
KNOWN = PLAIN | WINDOWS.keys() | RECURRING.keys() | UNROTATED.keys() | DEPTHS.keys() | {"ernie4_5-moe"}


def layer_count(header: GgufHeader) -> int:
    """How many layers the file says that it has.

    Raises:
        UserError: it does not say, or its tensors are of others.
    """
    count = header.own("block_count")
    numbers = {int(match[1]) for tensor in header.tensors if (match := LAYER.match(tensor.name))}
    known = isinstance(count, int) and not isinstance(count, bool)
    if not known or len(numbers) != count or max(numbers, default=-1) + 1 != count:
        raise UserError(
            f"{header.file}: {header.architecture or 'its architecture'}.block_count is {count}, and its tensors are "
            f"of {len(numbers)} layers: it is no decoder that can be pruned, or not whole"
        )
    return count


def original_layers(header: GgufHeader) -> list[int]:
    """Numbers that the layers had in the first model: as an earlier pruning has noted them, else their own."""
    return header.original_layers or list(range(layer_count(header)))


def kept_tensors(header: GgufHeader, kept: Sequence[int], remade: Mapping[str, Remade] = NONE) -> list[Renamed]:
    """The tensors that stay, layers numbered anew, some of them made anew by their names in the file."""
    numbers = {old: new for new, old in enumerate(kept)}
    found = []
    for tensor in header.tensors:
        match = LAYER.match(tensor.name)
        if match is None:
            found.append(Renamed(tensor.name, tensor, remade=remade.get(tensor.name)))
        elif int(match[1]) in numbers:
            name = f"blk.{numbers[int(match[1])]}.{match[2]}"
            found.append(Renamed(name, tensor, remade=remade.get(tensor.name)))
    return found


def silenced_tensors(header: GgufHeader, removed: Sequence[int], remade: Mapping[str, Remade] = NONE) -> list[Renamed]:
    """All tensors, some of them made anew, with zero bytes in those by which the removed layers write into the stream.

    Raises:
        Refusal: a layer has none that is known.
    """
    gone = {*removed}
    found = []
    silent: set[int] = set()
    for tensor in header.tensors:
        match = LAYER.match(tensor.name)
        writes = match is not None and int(match[1]) in gone and bool(WRITERS.fullmatch(match[2]))
        silent |= {int(match[1])} if match is not None and writes else set()
        found.append(Renamed(tensor.name, tensor, writes, remade.get(tensor.name)))
    if missing := sorted(gone - silent):
        raise Refusal(f"layer {missing[0]} has no tensor that is known to write into the stream: it cannot be proven")
    return found


def metadata_without(header: GgufHeader, removed: Sequence[int]) -> dict[str, GgufValue]:
    """The metadata that changes where layers go.

    Raises:
        Refusal: llama.cpp would count layers where nothing in a file can say otherwise.
    """
    count = layer_count(header)
    gone = {*removed}
    kept = [index for index in range(count) if index not in gone]
    _check(header, kept, count)
    _written_patterns(header, count)  # of which none may be of another model
    arch = header.architecture
    changes = {f"{arch}.block_count": stored_value(header, f"{arch}.block_count", len(kept))}
    for key, value in header.metadata.items():
        own = key.removeprefix(f"{arch}.")
        if own != key and own not in NO_LAYERS and isinstance(value, list) and len(value) == count:
            changes[key] = stored_value(header, key, [value[index] for index in kept])
    leading = header.own("leading_dense_block_count")
    if isinstance(leading, int) and leading:
        changes[f"{arch}.leading_dense_block_count"] = stored_value(
            header, f"{arch}.leading_dense_block_count", sum(index < leading for index in kept)
        )
    return changes | _patterns(header, kept)


def _patterns(header: GgufHeader, kept: list[int]) -> dict[str, GgufValue]:
    """Patterns that are counted, written out where the layers that stay no longer follow them."""
    arch = header.architecture
    found = {}
    for name, rule in ((WINDOW, _windowed(header)), (RECURRENT, _recurrent(header))):
        if rule is None or isinstance(header.own(name), list):  # an array was cut with the others
            continue
        flags = [rule(index) for index in kept]
        if flags != [rule(index) for index in range(len(kept))]:
            found[f"{arch}.{name}"] = bools(flags)
    return found


def counted_patterns(header: GgufHeader) -> dict[str, list[bool]]:
    """Pattern -> what llama.cpp counts for every layer, of those that the file does not write out."""
    count = layer_count(header)
    rules = {WINDOW: _windowed(header), RECURRENT: _recurrent(header)}
    counted = {name: rule for name, rule in rules.items() if rule is not None and header.pattern(name) is None}
    return {name: [rule(index) for index in range(count)] for name, rule in counted.items()}


def layer_patterns(header: GgufHeader) -> dict[str, list[bool]]:
    """Pattern -> its value for every layer, written out or counted; without those that the model does not have.

    Raises:
        UserError: one is of another number of layers.
    """
    return counted_patterns(header) | _written_patterns(header, layer_count(header))


def _written_patterns(header: GgufHeader, count: int) -> dict[str, list[bool]]:
    """Pattern -> its value for each of so many layers, of those that the file writes out."""
    written = {name: flags for name in PATTERNS if (flags := header.pattern(name)) is not None}
    for name, flags in written.items():
        if len(flags) != count:
            raise UserError(
                f"{header.file}: {name} is of {len(flags)} layers, and there are {count}: convert the model anew"
            )
    return written


def _windowed(header: GgufHeader) -> Callable[[int], bool] | None:
    """Whether a layer has a sliding window, where llama.cpp counts."""
    arch = header.architecture
    if arch not in WINDOWS or not (arch in ALWAYS or header.own("attention.sliding_window")):
        return None
    period, first = WINDOWS[arch]
    period = header.own(WINDOW, period)
    if not isinstance(period, int) or isinstance(period, bool) or period < 1:
        return None
    return lambda index: index % period != (0 if first else period - 1)


def _recurrent(header: GgufHeader) -> Callable[[int], bool] | None:
    arch = header.architecture
    period = header.own("full_attention_interval", RECURRING.get(arch))
    if arch not in RECURRING or not isinstance(period, int) or period < 1:
        return None
    return lambda index: (index + 1) % period != 0


def _check(header: GgufHeader, kept: list[int], count: int) -> None:
    """Refuse what llama.cpp would get wrong whatever the file says."""
    arch = header.architecture
    tables = sorted(name for name in header.names if name.startswith("per_layer"))
    if tables or header.own("attention.shared_kv_layers"):
        what = tables[0] if tables else "attention.shared_kv_layers"
        raise Refusal(f"{arch}: {what} has a part for every layer, which cannot be cut here: prune the original model")
    if header.own("attention.causal") is False:
        raise Refusal(f"{arch} is an encoder; shallower works on decoders only")
    ahead = header.own("nextn_predict_layers", 0)
    ahead = ahead if isinstance(ahead, int) else 0
    if lost := [index for index in range(count - ahead, count) if index not in kept]:
        raise Refusal(f"layer {lost[0]} predicts further tokens, so it cannot go: leave the last {ahead} in")
    same = DEPTHS.get(arch)
    if same is not None and same(count) != same(len(kept)):
        raise Refusal(
            f"llama.cpp computes {arch} with {len(kept)} layers otherwise than with {count} (it knows models by how "
            "many they have), and no metadata say which: remove another number of layers, or prune the original model"
        )
    step = UNROTATED.get(arch, 0)
    if step and arch != "smollm3":
        step = header.own("no_rope_layer_step", step)
    last = 0 if arch in FIRST else 1
    _check_period(header, kept, step, last, "have no rotary embedding")
    if arch in ROUTED:
        _check_period(header, kept, header.own("interleave_moe_layer_step", 1), 1, "have experts")


def _check_period(header: GgufHeader, kept: list[int], step: Any, last: int, what: str) -> None:
    if not isinstance(step, int) or step < 2:
        return
    for new, old in enumerate(kept):
        if ((old + last) % step == 0) != ((new + last) % step == 0):
            raise Refusal(
                f"llama.cpp counts which layers of {header.architecture} {what} (every {step}th), and layer {old} "
                f"would be counted as {new}: remove runs of {step} layers, or prune the original model"
            )


def marks(removed: Sequence[int], original: Sequence[int], proof: str) -> dict[str, GgufValue]:
    """Metadata of our own: which layers went, which stay by their numbers in the first model, and what was proven."""
    return {
        "shallower.removed_layers": GgufValue(ARRAY, list(removed), UINT32),
        ORIGINAL: GgufValue(ARRAY, list(original), UINT32),
        "shallower.proof": GgufValue(STRING, proof),
    }
