"""Recipes of continued pre-training, and which weights that is where only the last layers are trained."""

from dataclasses import replace

from torch import nn

from ...artifacts import Recipe
from ...errors import UserError

RECIPES = {
    "shortened-llama": Recipe(1e-4, (0.9, 0.95), 0.1, 2000, "cosine", 0.1, 512 * 2048),
    "layerchop": Recipe(3e-4, (0.9, 0.95), 0.1, 2000, "cosine", 0.1, 4_000_000),
}


def recipe_of(name: str, optimizer: str) -> Recipe:
    """The recipe of that name; Lion comes with LayerCHOP's own figures for it."""
    recipe = RECIPES[name]
    if optimizer == "lion":
        return replace(recipe, optimizer="lion", lr=2e-4, betas=(0.9, 0.99), weight_decay=1e-4, batch_tokens=2_000_000)
    return replace(recipe, optimizer=optimizer)


def train_last(module: nn.Module, layers: str, count: int) -> None:
    """Everything is trained (``count`` 0), or what lies from the count-th last layer on. ``layers`` is the name of the
    stack.
    """
    if not count:
        module.requires_grad_(True)
        return
    stack = module.get_submodule(layers)
    if not 0 < count <= len(stack):
        raise UserError(f"last_layers={count}: give 1 to {len(stack)}, the number of layers, or 0 for all")
    for layer in stack[-count:]:
        layer.requires_grad_(True)
    module.get_output_embeddings().requires_grad_(True)
    around = module.get_submodule(layers.rpartition(".")[0])
    names = [name for name, _ in around.named_children()]
    for name in names[names.index(layers.rpartition(".")[2]) + 1 :]:
        around.get_submodule(name).requires_grad_(True)
