"""Inspection: what a model is, and which single layers may go."""

from pathlib import Path
from typing import Any

from ..anatomy.model import Model
from ..artifacts import Inspection
from ..errors import Refusal
from ..runtime.progress import track
from ..settings.compute import Compute
from ..storage.gguf import is_gguf
from ..storage.ownership import artifact_place
from .common import ModelSource, resolve_settings, save_artifact
from .inspect_gguf import inspect_gguf


def inspect(
    model: ModelSource, *, compute: Compute | None = None, out: str | Path | None = None, **plain: Any
) -> Inspection:
    """What a model is and which single layers may go, without loading its weights.

    Of a Hub id only headers are fetched, of a .gguf file the header is read (see ``inspect_gguf``).

    Example: ``shallower.inspect("my-model").removable``.
    """
    out = artifact_place(out, "inspection")
    (compute,) = resolve_settings(plain, "inspect", compute=(Compute, compute))
    if not isinstance(model, Model) and is_gguf(model):
        return inspect_gguf(model, out=out)
    model = model if isinstance(model, Model) else Model(model, **vars(compute), whole=False)
    record = model.record
    kinds = model.solver.kinds()
    refusals = {}
    alike = len(set(kinds)) == 1  # then whichever goes, the same layers are built
    for index in track(
        range(1 if alike else record.layers), "checking which layers can go", 1 if alike else record.layers
    ):
        try:
            model.solver.solve((index,), deep=False)
        except Refusal as refusal:
            refusals |= {str(layer): str(refusal) for layer in (range(record.layers) if alike else [index])}
    config = model.checkpoint.config
    result = Inspection(
        model=record,
        architecture=(config.architectures or [type(config).__name__])[0],
        stack=model.outline.name,
        dtype=record.storage or str(config.dtype).removeprefix("torch."),
        tied_embeddings=model.tied,
        layer_kinds=kinds,
        removable=[index for index in range(record.layers) if str(index) not in refusals],
        refusals=refusals,
    )
    return save_artifact(result, out)
