"""Run of a training: what the method changes in the model, the objective, and trained weights put back whole."""

from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from ..anatomy.model import Model
from ..anatomy.stack import parameter_count
from ..runtime.format import millions
from ..runtime.progress import say
from ..training.checkpoints import Checkpointer
from ..training.distillation import Distillation, share_weights
from ..training.loop import TrainingRun
from ..training.objective import Objective
from ..training.setup import Setup, run_of
from ..training.sharding import shard_layers
from ..walk.run import load_weights


def reload_whole(model: Model, way: ModuleType, own: Any, weights: dict[str, Tensor]) -> Any:
    """The trained weights, which had been split, put into the model as it was loaded.

    Returns what the method needs to finish.
    """
    load_weights(model)
    prepared = way.prepare(model.module, model.outline.name, own)
    named = {f"model.{name}": parameter for name, parameter in model.module.named_parameters()}
    with torch.no_grad():
        for name, tensor in weights.items():
            if name.startswith("model."):  # else what the objective alone has learned
                named[name].copy_(tensor)
    return prepared


def prepare_run(
    model: Model, way: ModuleType, own: Any, setup: Setup, checkpointer: Checkpointer, teacher: Model | None = None
) -> tuple[Any, TrainingRun]:
    """What the method needs to finish, and the run."""
    torch.manual_seed(setup.training.seed)  # adapters start at random
    prepared = way.prepare(model.module, model.outline.name, own)
    if setup.training.gradient_checkpointing:
        model.module.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    objective = Objective(model.module)
    if teacher:
        load_weights(teacher)
        same = share_weights(model, teacher) if way.freezes(own) and not setup.training.shard else 0
        total = parameter_count(teacher.module)
        say(
            f"the teacher {teacher.checkpoint.source} shares {millions(same)} of its {millions(total)} "
            "parameters with the student"
        )
        objective = Distillation(model, teacher, way.teaching(own))
        if setup.training.shard:
            shard_layers(teacher.module, teacher.module.get_submodule(teacher.outline.name), setup.device)
    return prepared, run_of(model, objective, setup, checkpointer)
