"""Changes of a checkpoint against the .gguf file that it was made of: which weights have moved, and how far what was
written is from what is meant.
"""

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from ..anatomy.model import Model
from ..errors import Refusal
from ..runtime.progress import track

Change = Callable[[Tensor], Tensor]
LEAST, SLACK = 1e-30, 1e-4  # of a norm; of an error that was measured before


def changed_weights(base: Model, model: Model, kept: Sequence[int]) -> dict[str, Change]:
    """Weights that differ, by their names in the base -> what reads them from the checkpoint.

    Args:
        base: that the .gguf file was unpacked to.
        model: a checkpoint of some of its layers.
        kept: layers of the base that it has.
    Raises:
        Refusal: weights that the other has not, or of other shapes.
    """
    numbers = {old: new for new, old in enumerate(kept)}
    places, plain = base.solver.places(), base.checkpoint.names.plain
    tensors, found = {*model.checkpoint.tensors}, {}
    seen = set()
    for disk, memory in track(base.checkpoint.names.memory.items(), "comparing weights", len(base.checkpoint.tensors)):
        place = places.get(disk)
        if place is not None and place.layer not in numbers:
            continue
        name = place.name(numbers[place.layer]) if place is not None else disk
        if name not in tensors:
            where = f"{base.checkpoint.source} has: only whole layers may be gone"
            raise Refusal(f"{model.checkpoint.source} has no {name}, which {where}")
        seen.add(name)
        before, after = base.checkpoint.tensor(disk), model.checkpoint.tensor(name)
        if before.shape != after.shape:
            raise Refusal(
                f"{name} is {list(after.shape)} in {model.checkpoint.source} and {list(before.shape)} in "
                f"{base.checkpoint.source}: only whole layers may be gone"
            )
        if not torch.equal(before.to(after.dtype), after):
            if disk not in plain:
                raise Refusal(f"{disk} was changed, and lies in the files in another form: it cannot be put back")
            found[memory] = _reader(model, name)
    if more := sorted(tensors - seen):
        raise Refusal(
            f"{model.checkpoint.source} has {more[0]}, which {base.checkpoint.source} has not: only weights that are "
            "there may have changed"
        )
    return found


def check_same(written: Model, model: Model, roundings: Mapping[str, float]) -> None:
    """Raise a Refusal unless a written checkpoint has another one's weights.

    Args:
        roundings: by the name in memory of each weight that was rounded, its relative error; all others have to be
            equal, in the dtype of ``model``.
    """
    memory = model.checkpoint.names.memory
    for name in track([*model.checkpoint.tensors], "comparing weights", len(model.checkpoint.tensors)):
        found, wanted = written.checkpoint.tensor(name), model.checkpoint.tensor(name)
        allowed = roundings.get(memory[name])
        if allowed is None and torch.equal(found.to(wanted.dtype), wanted):
            continue
        error = float((found.float() - wanted.float()).norm() / wanted.float().norm().clamp_min(LEAST))
        if allowed is None or not error <= allowed * (1 + SLACK) + SLACK:
            raise Refusal(
                f"{name} would not be the model's own in the file (relative error {error:.3g}): export the folder "
                "without a file that it is like"
            )


def _reader(model: Model, disk: str) -> Change:
    """Reads a weight when it is asked for, so that a model's changes are not kept."""
    return lambda before: model.checkpoint.tensor(disk).float()
