"""Export in the form of a .gguf file: what no repair or training has changed is copied from the file that the model was
made of, with its header and its tokenizer, and only the rest is stored anew. No converter is needed.
"""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from ..anatomy.model import Model
from ..artifacts.exported import Copied
from ..errors import Refusal, UserError
from ..runtime.progress import say
from ..storage.gguf import SUFFIX, GgufHeader, is_gguf, read_gguf
from ..storage.gguf_writer import GgufValue, write_gguf
from ..surgery.gguf_changes import changed_weights
from ..surgery.gguf_proof import prove
from ..surgery.gguf_repair import GgufRepair, remade_by
from ..surgery.gguf_rules import kept_tensors, marks, metadata_without
from .prune_gguf import gguf_record, shortened

PASSING = {  # fields of a config that change nothing that a file computes
    *("_name_or_path", "architectures", "dtype", "torch_dtype", "transformers_version", "use_cache", "model_type"),
    *("bos_token_id", "eos_token_id", "pad_token_id", "id2label", "label2id", "auto_map", "name_or_path"),
}


class Written(NamedTuple):
    """What was written: where it was copied from, metadata that changed, and by the name of each weight that was stored
    anew, how far rounding takes it.
    """

    copied: Copied
    changes: list[str]
    roundings: dict[str, float]


def written_like(model: Model, like: Path, out: Path, kind: str | None, *, verify: bool) -> Written:
    """Write a checkpoint as a .gguf file by copying from the one that it was made of.

    Args:
        like: a .gguf file that has all its layers.
        out: where to.
        kind: type of tensors that changed; None: as ``remade_by`` says.
        verify: prove that the layers which went add nothing else (see ``prove``).
    Raises:
        UserError: the model is not made of the file.
    """
    if not is_gguf(like):
        raise UserError(f"the name of the {SUFFIX} file is needed that the model was made of", like=like)
    header = read_gguf(like)
    kept, original = _kept(model, header)
    removed = [index for index in range(len(original)) if index not in {*kept}]
    base = Model(like, dtype="fp32", device="cpu", layered=False)
    _check_words(model, base, like)
    _check_config(model, base, removed)
    changes = changed_weights(base, model, kept)
    say(f"{len(changes)} weights differ from those of {like.name}")
    repair = remade_by(header, base, changes, kind)
    tensors = kept_tensors(header, kept, repair.remade)
    metadata = metadata_without(header, removed) if removed else {}
    said = _proven(header, removed, out, repair, metadata) if removed and verify else "none"
    metadata |= marks(removed, [original[index] for index in kept], said)
    write_gguf(header, out, tensors, metadata)
    copied = Copied(
        of=like.name,
        copied=sum(tensor.remade is None for tensor in tensors),
        remade=sum(tensor.remade is not None for tensor in tensors),
        types=sorted({tensor.kind for tensor in tensors if tensor.remade is not None}),
        rounding=repair.rounding,
    )
    said = [f"{key} = {shortened(value.value)}" for key, value in metadata.items()]
    numbers = {f"{base.outline.name}.{old}.": f"{base.outline.name}.{new}." for new, old in enumerate(kept)}
    roundings = {_renumbered(name, numbers): error for name, error in repair.roundings.items()}
    return Written(copied, said, roundings)


def _renumbered(name: str, numbers: dict[str, str]) -> str:
    """A weight's name in the model that is left."""
    head = next((one for one in numbers if name.startswith(one)), None)
    return name if head is None else numbers[head] + name.removeprefix(head)


def _kept(model: Model, header: GgufHeader) -> tuple[list[int], list[int]]:
    """(the file's layers that a model has, the numbers of all the file's layers in the first model)."""
    original = gguf_record(header, "").original
    known = {number: index for index, number in enumerate(original)}
    own = model.record.original
    if missing := [number for number in own if number not in known]:
        raise Refusal(
            f"layer {missing[0]} of the first model is in {model.checkpoint.source} and not in {header.file.name}: "
            "give the file that the model was made of"
        )
    if len(own) > len(original) or (own == [*range(len(own))] and len(own) < len(original) and not _pruned(model)):
        raise Refusal(
            f"{model.checkpoint.source} has {len(own)} layers and {header.file.name} {len(original)}, and no "
            "shallower.json says which are the same"
        )
    return [known[number] for number in own], original


def _pruned(model: Model) -> bool:
    return (model.checkpoint.folder / "shallower.json").is_file()


def _check_words(model: Model, base: Model, like: Path) -> None:
    """Raise a Refusal unless both have the same vocabulary, since the file's own is written."""
    one, other = (each.tokenizer.get_vocab() for each in (model, base))
    if one != other:
        raise Refusal(
            f"{model.checkpoint.source} has another vocabulary than {like.name} ({len(one)} and {len(other)} words): "
            "give the file that the model was made of"
        )


def _check_config(model: Model, base: Model, removed: Sequence[int]) -> None:
    """Raise a Refusal unless both configs compute alike, since the file's own settings are written."""
    wanted = base.solver.solve(tuple(removed)).config.to_dict()
    own = model.checkpoint.config.to_dict()
    other = [key for key in sorted(wanted.keys() & own.keys() - PASSING) if wanted[key] != own[key]]
    if other:
        name, mine, theirs = other[0], str(own[other[0]])[:60], str(wanted[other[0]])[:60]
        raise Refusal(
            f"{model.checkpoint.source} has {name} {mine} in its config, and what it was made of {theirs}, which would "
            "be written: export it by the converter"
        )


def _proven(
    header: GgufHeader, removed: Sequence[int], out: Path, repair: GgufRepair, metadata: dict[str, GgufValue]
) -> str:
    """What a proof of the removal says; the file lies beside its place for it."""
    kept = [index for index in range(len(gguf_record(header, "").original)) if index not in {*removed}]
    unproven = out.with_name(f".{out.stem}.{os.getpid()}.unproven{SUFFIX}")
    try:
        write_gguf(header, unproven, kept_tensors(header, kept, repair.remade), metadata)
        proof = prove(header, removed, unproven, repair.remade)
    finally:
        unproven.unlink(missing_ok=True)
    return f"{proof.by} {proof.version}, largest difference {proof.difference:.3g}"
