"""Continued: all weights are trained on, on plain text, as in pre-training; it beats adapters where much was removed.

The loss is that of the next token,

    L = - 1/T sum_t log p(x_t | x_<t),

over documents packed into full sequences. ``recipe=shortened-llama``: AdamW (0.9, 0.95), learning rate 1e-4, weight decay 0.1,
512 sequences of 2048 tokens a batch (the authors' model card); its warm-up of 2000 steps and the cosine down to 10 % are our
reconstruction. ``recipe=layerchop``: AdamW (0.9, 0.95), 3e-4, weight decay 0.1, 2000 steps of warm-up, cosine down to 10 %, 4M
tokens a batch (its 7B model). ``optimizer=lion`` is LayerCHOP's for smaller models: 2e-4, weight decay 1e-4, 2M tokens; its
betas 0.9 and 0.99 are Lion's own. ``last_layers=k`` trains only the head, the norm before it and the last k layers.

Source: Shortened LLaMA (arXiv 2402.02834), Just CHOP (arXiv 2305.14864).
"""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from torch import nn

from ..errors import UserError
from ..training.schedule import Recipe

RECIPES = {
    "shortened-llama": Recipe(1e-4, (0.9, 0.95), 0.1, 2000, "cosine", 0.1, 512 * 2048),
    "layerchop": Recipe(3e-4, (0.9, 0.95), 0.1, 2000, "cosine", 0.1, 4_000_000),
}


@dataclass(frozen=True)
class Settings:
    recipe: Literal["shortened-llama", "layerchop"] = "shortened-llama"
    optimizer: Literal["adamw", "lion"] = "adamw"
    last_layers: int = 0


def recipe(settings: Settings) -> Recipe:
    found = RECIPES[settings.recipe]
    if settings.optimizer == "lion":
        return replace(found, optimizer="lion", lr=2e-4, betas=(0.9, 0.99), weight_decay=1e-4, batch_tokens=2_000_000)
    return found


def prepare(module: nn.Module, layers: str, settings: Settings) -> None:
    """Everything is trained, or what lies from the k-th last layer on. ``layers`` is the name of the stack."""
    if not settings.last_layers:
        module.requires_grad_(True)
        return
    stack = module.get_submodule(layers)
    if not 0 < settings.last_layers <= len(stack):
        raise UserError(f"continued: last_layers={settings.last_layers}: give 1 to {len(stack)}, the number of layers, or 0 for all")
    for layer in stack[-settings.last_layers :]:
        layer.requires_grad_(True)
    module.get_output_embeddings().requires_grad_(True)
    around = module.get_submodule(layers.rpartition(".")[0])
    names = [name for name, _ in around.named_children()]
    for name in names[names.index(layers.rpartition(".")[2]) + 1 :]:
        around.get_submodule(name).requires_grad_(True)


def finish(prepared: None, folder: Path) -> None:
    """It is plain already."""
