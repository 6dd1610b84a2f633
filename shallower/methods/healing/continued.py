"""Continued: all weights are trained on, on plain text, as in pre-training; it beats adapters where much was removed.

The loss is that of the next token,

    L = - 1/T sum_t log p(x_t | x_<t),

over documents packed into full sequences. ``recipe=shortened-llama``: AdamW (0.9, 0.95), learning rate 1e-4, weight
decay 0.1, 512 sequences of 2048 tokens a batch (the authors' model card); its warm-up of 2000 steps and the cosine
down to 10 % are our reconstruction. ``recipe=layerchop``: AdamW (0.9, 0.95), 3e-4, weight decay 0.1, 2000 steps of
warm-up, cosine down to 10 %, 4M tokens a batch (its 7B model). ``optimizer=lion`` is LayerCHOP's for smaller models:
2e-4, weight decay 1e-4, 2M tokens; its betas 0.9 and 0.99 are Lion's own. ``optimizer=adamw8bit`` keeps AdamW's state
in 8 bit (bitsandbytes). ``last_layers=k`` trains only the head, the norm before it and the last k layers.

Source: Shortened LLaMA (arXiv 2402.02834), Just CHOP (arXiv 2305.14864).
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from torch import nn

from ...artifacts import Recipe
from ._pretraining import recipe_of, train_last


@dataclass(frozen=True)
class Settings:
    recipe: Literal["shortened-llama", "layerchop"] = "shortened-llama"
    optimizer: Literal["adamw", "lion", "adamw8bit"] = "adamw"
    last_layers: int = 0


def recipe(settings: Settings) -> Recipe:
    return recipe_of(settings.recipe, settings.optimizer)


def prepare(module: nn.Module, layers: str, settings: Settings) -> None:
    """Everything is trained, or the last layers. ``layers`` is the name of the stack."""
    train_last(module, layers, settings.last_layers)


def finish(prepared: None, folder: Path) -> None:
    """It is plain already."""
