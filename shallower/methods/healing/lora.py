"""Lora: low-rank changes are trained beside every matrix of the layers, cheap in memory, and merged into plain weights
at the end.

    W' = W + alpha / rank · B A,   A of (rank, in), B of (out, rank), B = 0 at the start

The recipe is that of Shortened LLaMA: rank 8, alpha 16, dropout 0.05, the products of attention and MLP as targets,
AdamW, learning rate 1e-4, 100 steps of warm-up, linear decay, 64 examples of at most 256 tokens a batch, on
instruction data with the prompt masked, or on plain text. Two passes over the data are ``--train-tokens`` of twice its
size. All linear modules within the layers are targets unless ``targets`` names some (``q_proj+v_proj``);
``rslora=true`` divides by the square root of the rank (arXiv 2312.03732), ``dora=true`` trains magnitudes apart (arXiv
2402.09353). Betas 0.9 and 0.999 and no weight decay are our reconstruction; the last weights are kept, where the paper
takes the best by validation loss.

Source: Shortened LLaMA (arXiv 2402.02834), LoRA (arXiv 2106.09685), through peft.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from ...artifacts import Recipe
from ...errors import UserError
from ._adapters import add_adapters, merge_adapters


@dataclass(frozen=True)
class Settings:
    rank: int = 8
    alpha: float = 16.0
    dropout: float = 0.05
    targets: str = "all"
    rslora: bool = False
    dora: bool = False


def recipe(settings: Settings) -> Recipe:
    return Recipe(1e-4, (0.9, 0.999), 0.0, 100, "linear", 0.0, 64 * 256)


def prepare(module: nn.Module, layers: str, settings: Settings) -> Any:
    """Put adapters into the module; only they are trained. ``layers`` is the name of the stack."""
    if settings.rank < 1 or not 0 <= settings.dropout < 1 or settings.alpha <= 0:
        raise UserError(f"lora: {settings}: rank 1 or more, alpha above 0, dropout from 0 to below 1")
    how = {"dropout": settings.dropout, "names": settings.targets, "rslora": settings.rslora, "dora": settings.dora}
    return add_adapters(module, layers, rank=settings.rank, alpha=settings.alpha, **how)


def finish(prepared: Any, folder: Path) -> None:
    """Keep the adapter, then merge it into the weights."""
    merge_adapters(prepared, folder)
