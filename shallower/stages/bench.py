"""Speed: prefill and decode apart, memory, and the share of the memory's bandwidth."""

import time
from pathlib import Path
from typing import Any

import torch

from ..artifacts import Speed
from ..evaluation.speed import check_resident, measure
from ..runtime.provenance import device_name
from ..settings.compute import Compute
from ..settings.speed import Grid
from ..storage.ownership import artifact_place
from ..walk.run import dtype_name, load_weights
from .common import ModelSource, open_model, resolve_settings, save_artifact


def bench(
    model: ModelSource,
    *,
    against: ModelSource | None = None,
    grid: Grid | str | None = None,
    compute: Compute | None = None,
    out: str | Path | None = None,
    **plain: Any,
) -> Speed:
    """Prefill and decode speed, memory, and how close decoding is to the memory's bandwidth; see ``evaluation.speed``.

    Example: ``shallower.bench("pruned", against="my-model", batches=[1, 8], new=64)``.

    Args:
        against: the model to compare with; its runs alternate with those of ``model``.
        grid: batches, lengths and repeats, or the name of a protocol; its fields are keywords too.
    """
    grid = Grid(grid) if isinstance(grid, str) else grid
    grid, compute = resolve_settings(plain, "bench", grid=(Grid, grid), compute=(Compute, compute))
    out = artifact_place(out, "speed")
    models = {
        name: open_model(source, compute)
        for name, source in (("model", model), ("against", against))
        if source is not None
    }
    check_resident(models)
    for opened in models.values():
        load_weights(opened)
    started = time.monotonic()
    figures = measure(models, grid)
    result = Speed(
        model=models["model"].record,
        against=models["against"].record if against is not None else None,
        protocol=grid.protocol,
        device=device_name(models["model"].device),
        threads=torch.get_num_threads(),
        seconds=time.monotonic() - started,
        dtype=dtype_name(models["model"]),
        **figures,
    )
    return save_artifact(result, out)
