"""Distill: the pruned model learns from the dense one, whose every token tells more than which one came next.

    L = lm NLL + kl T² KL(p_T || q_T)                                                              objective=logits
      + hidden sum_l MSE(M_l h_l, h_l') + attention sum_l MSE(a_l, a_l') + embedding MSE(e, e')     objective=layerchop

p is the teacher's distribution of the next token, q the student's, T the temperature; ``top_k`` keeps the teacher's
largest logits only. NLL and KL, weight 1 each, are the default: SlimQwen found both together better than either alone.
h and a are the stream behind a retained layer and the output of its attention, primes are the teacher's, at the layer
of the same original index; M_l are linear maps that are learned along, the identity at the start, and thrown away.
``layerchop`` is what Just CHOP compares with plain training, all weights 1; it found that it gives less per hour. That
an MSE is the mean over the width, that it is taken where the next token bears a loss, and ``relative=true`` (each
divided by the teacher's mean square) are our reconstruction.

All weights are trained, by the recipes of ``continued``; or only ``last_layers``, or adapters of ``rank`` (alpha is
twice that), and then both models share the frozen weights that they have in common. The teacher is the model that was
pruned, or ``teacher`` (as ``--teacher``).

Source: Just CHOP (arXiv 2305.14864), distillation (arXiv 1503.02531), SlimQwen (arXiv 2605.08738).
"""

from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

from torch import nn

from ...artifacts import Recipe
from ...errors import UserError
from ...training.distillation import Teaching
from ...training.objective import Soft
from . import continued
from ._adapters import add_adapters, merge_adapters
from ._pretraining import recipe_of, train_last


@dataclass(frozen=True)
class Settings:
    objective: Literal["logits", "layerchop"] = "logits"
    lm: float = 1.0
    kl: float = 1.0
    hidden: float = 1.0
    attention: float = 1.0
    embedding: float = 1.0
    temperature: float = 1.0
    top_k: int = 0
    relative: bool = False
    recipe: Literal["shortened-llama", "layerchop"] = "shortened-llama"
    optimizer: Literal["adamw", "lion", "adamw8bit"] = "adamw"
    last_layers: int = 0
    rank: int = 0
    teacher: str = ""


def recipe(settings: Settings) -> Recipe:
    return recipe_of(settings.recipe, settings.optimizer)


def teaching(settings: Settings) -> Teaching:
    """The objective.

    Raises:
        UserError: a weight below zero, no weight above it, or a temperature that is not above zero.
    """
    weights = [getattr(settings, name) for name in ("lm", "kl", "hidden", "attention", "embedding")]
    used = weights[: 2 if settings.objective == "logits" else 5]
    if min(weights) < 0 or not max(used) > 0 or settings.top_k < 0 or not 0 < settings.temperature < float("inf"):
        raise UserError(
            "distill: weights are 0 or more with one above it, temperature is above 0, top_k is 0 (all) or more"
        )
    soft = Soft(settings.lm, settings.kl, settings.temperature, settings.top_k)
    return Teaching(soft) if settings.objective == "logits" else Teaching(soft, *weights[2:], settings.relative)


def freezes(settings: Settings) -> bool:
    """Whether weights stay as they are, so that the teacher can share them."""
    return bool(settings.rank or settings.last_layers)


def control(settings: Settings) -> tuple[ModuleType, continued.Settings]:
    """How the dense model is trained as the control: nobody teaches the teacher."""
    return continued, continued.Settings(settings.recipe, settings.optimizer, settings.last_layers)


def prepare(module: nn.Module, layers: str, settings: Settings) -> Any:
    """Everything is trained, the last layers, or adapters. ``layers`` is the name of the stack."""
    if settings.rank and settings.last_layers:
        raise UserError(f"distill: rank={settings.rank} and last_layers={settings.last_layers}: give one of them")
    if settings.rank:
        return add_adapters(module, layers, rank=settings.rank, alpha=2.0 * settings.rank, dropout=0.05, names="all")
    return train_last(module, layers, settings.last_layers)


def finish(prepared: Any, folder: Path) -> None:
    """Adapters are kept and merged."""
    if prepared is not None:
        merge_adapters(prepared, folder)
