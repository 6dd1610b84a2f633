"""Contents of the files to write: tensors of the dense model, cut, converted and changed."""

import torch

from ..anatomy.config import Solved
from ..anatomy.disk import stored_parts
from ..anatomy.loading import FLOATS
from ..anatomy.model import Model
from ..anatomy.patch import Edit, Patch
from ..artifacts import Plan
from ..errors import Refusal
from ..storage.index import ITEM_BYTES
from ..storage.writer import Content, Cut, stored_content
from .form import Form, Place
from .width import cut_edit, cuts_on_disk, new_biases, zero_biases


def changed_contents(
    model: Model,
    plan: Plan,
    solved: Solved,
    sources: dict[str, str],
    form: Form,
    changes: tuple[Patch, torch.dtype | None],
) -> tuple[dict[str, Content], dict[str, Edit]]:
    """(tensors to write by their new names, the edits that they have had).

    Args:
        sources: new name -> name in the dense model's files.
        changes: of weights, and the dtype to store them in.
    """
    patch, save_dtype = changes
    cuts = cuts_on_disk(model, plan)
    contents = kept_contents(model, plan, solved, sources, save_dtype, cuts) | form.added
    contents |= bias_contents(model, plan, solved, patch, save_dtype, form)
    edits = edits_on_disk(model, patch, sources)
    edits = {name: cut_edit(edit, cuts.get(sources[name])) for name, edit in edits.items()}
    return contents | {name: edit_content(contents[name], edit) for name, edit in edits.items()}, edits


def kept_contents(
    model: Model,
    plan: Plan,
    solved: Solved,
    sources: dict[str, str],
    save_dtype: torch.dtype | None,
    narrower: dict[str, Cut],
) -> dict[str, Content]:
    """Tensors to write by their new names, cut and converted, but not yet edited.

    Args:
        narrower: name in the files -> what stays of a tensor that becomes smaller with groups that go.
    """
    cuts = narrower | {
        name: Cut(axis, plan.model.layers, tuple(plan.kept))
        for name, axis in model.solver.on_disk(solved.tables).items()
    }
    wide = model.kept_wide(save_dtype) if save_dtype else set()
    contents = {}
    for new, old in sources.items():
        content = stored_content(model.checkpoint.tensors[old], cuts.get(old))
        contents[new] = content if old in wide else convert_content(content, save_dtype)
    return contents


def bias_contents(
    model: Model, plan: Plan, solved: Solved, patch: Patch, save_dtype: torch.dtype | None, form: Form
) -> dict[str, Content]:
    """Biases that the dense model has not: those that a patch gives, and zeros where a plain config builds more."""
    given = new_biases(model, plan, patch)
    if not given:
        return {}
    more = zero_biases(model, plan, solved, given) if form.name == "plain" else {}
    contents: dict[str, Content] = {}
    for new, old in enumerate(plan.kept):
        place = Place.of(model, old, new, save_dtype)
        names = {name: f"{model.outline.name}.{old}.{name}" for name in given.get(old, ())}
        contents |= place.values({name: patch[whole].strength * patch[whole].value for name, whole in names.items()})
        contents |= place.zeros(more.get(old, {}))
    return contents


def edits_on_disk(model: Model, patch: Patch, sources: dict[str, str]) -> dict[str, Edit]:
    """The changes by the names of the tensors to write.

    Raises:
        Refusal: a changed weight is not in the files, or in another form than in memory.
    """
    if not patch:
        return {}
    tensors = model.checkpoint.tensors
    shapes = {name: tuple(weight.shape) for name, weight in model.solver.dense.state_dict().items()}
    known = model.checkpoint.names.memory
    new = {old: name for name, old in sources.items()}
    patch = {name: edit for name, edit in patch.items() if edit.kind != "new"}
    edits: dict[str, Edit] = {}
    edited_names: set[str] = set()
    parts = stored_parts(model.checkpoint, model.solver.dense, patch)
    for old, name in known.items():
        if old in parts and old in new:
            edits[new[old]] = parts[old]
            edited_names.add(name)
        elif name in patch and old in new:
            edits[new[old]] = patch[name].on_disk(old, shapes[name], tensors[old].shape)
            edited_names.add(name)
    if missing := sorted(patch.keys() - edited_names):
        raise Refusal(
            f"{missing[0]} is not in the weight files under a name that tells it apart, so it cannot be changed there"
        )
    return edits


def edit_content(content: Content, edit: Edit) -> Content:
    """The same tensor with an edit applied; it is in memory as a whole while it is written."""
    kind = FLOATS[content.dtype]

    def pieces():
        raw = bytearray().join(content.pieces())
        yield edit.of(torch.frombuffer(raw, dtype=kind).view(content.shape)).view(torch.uint8).numpy().tobytes()

    return Content(content.dtype, content.shape, content.bytes, pieces)


def convert_content(content: Content, dtype: torch.dtype | None) -> Content:
    """The same tensor in another floating dtype, a piece at a time.

    None, and tensors that are no floats, stay as they are.
    """
    target = next((name for name, kind in FLOATS.items() if kind == dtype), content.dtype)
    if target == content.dtype or content.dtype not in FLOATS:
        return content
    kind = FLOATS[content.dtype]

    def pieces():
        for raw in content.pieces():
            yield torch.frombuffer(bytearray(raw), dtype=kind).to(dtype).view(torch.uint8).numpy().tobytes()

    return Content(target, content.shape, content.bytes // ITEM_BYTES[content.dtype] * ITEM_BYTES[target], pieces)
