"""Export in the form of a .gguf file: what no repair or training has changed is copied from the file that the model was
made of, with its header and its tokenizer, and only the rest is stored anew. No converter is needed.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

from ..anatomy.model import SIDE_FILE, Model
from ..artifacts.exported import Copied
from ..errors import Refusal, UserError
from ..runtime.progress import say
from ..storage.gguf import SUFFIX, GgufHeader, is_gguf, read_gguf
from ..surgery.gguf_changes import changed_weights
from ..surgery.gguf_repair import remade_by
from ..surgery.gguf_rules import layer_count, original_layers
from ..surgery.gguf_writing import write_without

PASSING = {  # fields of a config that change nothing that a file computes
    *("_name_or_path", "architectures", "dtype", "torch_dtype", "transformers_version", "use_cache", "model_type"),
    *("bos_token_id", "eos_token_id", "pad_token_id", "id2label", "label2id", "auto_map", "name_or_path"),
}


class Written(NamedTuple):
    """What was written: metadata that changed or was added, and of a copy where it was copied from, and by the name of
    each weight that was stored anew, how far rounding takes it.
    """

    changes: list[str]
    copied: Copied | None = None
    roundings: Mapping[str, float] = MappingProxyType({})


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
    kept = _kept(model, header)
    removed = [index for index in range(layer_count(header)) if index not in {*kept}]
    base = Model(like, dtype="fp32", device="cpu", layered=False)
    _check_words(model, base, like)
    _check_config(model, base, removed)
    changes = changed_weights(base, model, kept)
    say(f"{len(changes)} weights differ from those of {like.name}")
    repair = remade_by(header, base, changes, kind)
    written = write_without(header, removed, out, repair.remade, verify=verify)
    anew = [tensor for tensor in written.tensors if tensor.remade is not None]
    copied = Copied(
        of=like.name,
        copied=len(written.tensors) - len(anew),
        remade=len(anew),
        types=sorted({tensor.kind for tensor in anew}),
        rounding=repair.rounding,
    )
    numbers = {f"{base.outline.name}.{old}.": f"{base.outline.name}.{new}." for new, old in enumerate(kept)}
    roundings = {_renumbered(name, numbers): error for name, error in repair.roundings.items()}
    return Written(written.changes, copied, roundings)


def _renumbered(name: str, numbers: dict[str, str]) -> str:
    """A weight's name in the model that is left."""
    head = next((one for one in numbers if name.startswith(one)), None)
    return name if head is None else numbers[head] + name.removeprefix(head)


def _kept(model: Model, header: GgufHeader) -> list[int]:
    """The file's layers that a model has."""
    original = original_layers(header)
    known = {number: index for index, number in enumerate(original)}
    own = model.record.original
    if missing := [number for number in own if number not in known]:
        raise Refusal(
            f"layer {missing[0]} of the first model is in {model.checkpoint.source} and not in {header.file.name}: "
            "give the file that the model was made of"
        )
    told = (model.checkpoint.folder / SIDE_FILE).is_file()
    if len(own) < len(original) and own == [*range(len(own))] and not told:
        raise Refusal(
            f"{model.checkpoint.source} has {len(own)} layers and {header.file.name} {len(original)}, and no "
            f"{SIDE_FILE} says which are the same"
        )
    return [known[number] for number in own]


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
