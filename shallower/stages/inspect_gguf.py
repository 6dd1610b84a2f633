"""Inspection of a .gguf file from its header alone: no weight is read, and no model is built."""

from pathlib import Path

from ..artifacts import Inspection, published, save
from ..errors import Refusal
from ..storage.gguf import SUFFIX, GgufHeader, check_sizes, fingerprint_of, known_origin, read_gguf
from ..storage.ownership import artifact_place
from ..storage.paths import place
from ..surgery.gguf_rules import LAYER, RECURRENT, WINDOW, layer_count, layer_patterns, metadata_without
from .prune_gguf import gguf_record

STACK, HEAD = "blk", "output.weight"
PARTS = {  # what a layer has, by the tensor that it is known by
    "attn_q": "attention", "attn_qkv": "attention", "attn_q_a": "attention", "ssm_in": "state space",
    "ssm_out": "state space", "shortconv": "convolution", "time_mix_output": "time mixing",
    "ffn_down_exps": "experts", "ffn_down": "MLP",
}  # fmt: skip


def inspect_gguf(model: str | Path, *, out: str | Path | None = None) -> Inspection:
    """What a .gguf file is and which single layers may go, from its header.

    What may go is meant for ``prune_gguf``: llama.cpp would still compute the others as before. The fingerprint is
    empty where the file has not been hashed before, since that reads all of it.

    Example: ``shallower.inspect("model.gguf").removable``.

    Raises:
        UserError: no .gguf file, a cut or split one, one of an encoder, or of no decoder that is known.
    """
    out = artifact_place(out, "inspection")
    header = read_gguf(place(model))
    check_sizes(header)
    count = layer_count(header)
    origin = known_origin(header)
    refusals = {}
    for index in range(count):
        try:
            if count == 1:
                raise Refusal("it is the only layer")
            metadata_without(header, [index])
        except Refusal as refusal:
            refusals[str(index)] = str(refusal)
    result = Inspection(
        model=gguf_record(header, fingerprint_of(origin) if origin else ""),
        architecture=f"{SUFFIX} file, {header.architecture}",
        stack=STACK,
        dtype=header.storage,
        tied_embeddings=HEAD not in header.names,
        layer_kinds=_kinds(header, count),
        removable=[index for index in range(count) if str(index) not in refusals],
        refusals=refusals,
    )
    if out is not None:
        save(published(result), out)
    return result


def _kinds(header: GgufHeader, count: int) -> list[str]:
    """Kind of each layer: its parts, and whether it has a window; a number where layers differ otherwise."""
    shapes: list[set[tuple]] = [set() for _ in range(count)]
    for tensor in header.tensors:
        if match := LAYER.match(tensor.name):
            shapes[int(match[1])].add((match[2], tensor.shape))
    patterns = layer_patterns(header)
    found: dict[str, list[frozenset]] = {}
    kinds = []
    for index, own in enumerate(shapes):
        stems = {name.partition(".")[0] for name, _ in own}
        parts = [*dict.fromkeys(said for stem, said in PARTS.items() if stem in stems)]
        windowed, recurrent = (patterns[name][index] if name in patterns else False for name in (WINDOW, RECURRENT))
        parts[:1] = [f"{'sliding ' if windowed else 'recurrent ' if recurrent else ''}{one}" for one in parts[:1]]
        text = " + ".join(parts) or "layer"
        same = found.setdefault(text, [])
        if own not in same:
            same.append(frozenset(own))
        number = same.index(frozenset(own)) + 1
        kinds.append(text if number == 1 else f"{text} ({number})")
    return kinds
