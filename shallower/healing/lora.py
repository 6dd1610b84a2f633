"""Lora: low-rank changes are trained beside every matrix of the layers, cheap in memory, and merged into plain weights at the end.

    W' = W + alpha / rank · B A,   A of (rank, in), B of (out, rank), B = 0 at the start

The recipe is that of Shortened LLaMA: rank 8, alpha 16, dropout 0.05, the products of attention and MLP as targets, AdamW,
learning rate 1e-4, 100 steps of warm-up, linear decay, 64 examples of at most 256 tokens a batch, on instruction data with the
prompt masked, or on plain text. Two passes over the data are ``--train-tokens`` of twice its size. All linear modules within
the layers are targets unless ``targets`` names some (``q_proj+v_proj``); ``rslora=true`` divides by the square root of the
rank (arXiv 2312.03732), ``dora=true`` trains magnitudes apart (arXiv 2402.09353). Betas 0.9 and 0.999 and no weight decay are
our reconstruction; the last weights are kept, where the paper takes the best by validation loss.

Source: Shortened LLaMA (arXiv 2402.02834), LoRA (arXiv 2106.09685), through peft.
"""

import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from ..errors import UserError
from ..training.schedule import Recipe
from ._targets import targets


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
    try:
        from peft import LoraConfig, get_peft_model
    except ImportError as error:
        raise UserError("--method lora needs the package peft; pip install 'shallower[heal]'") from error
    if settings.rank < 1 or not 0 <= settings.dropout < 1 or settings.alpha <= 0:
        raise UserError(f"lora: {settings}: rank 1 or more, alpha above 0, dropout from 0 to below 1")
    config = LoraConfig(
        r=settings.rank,
        lora_alpha=settings.alpha,
        lora_dropout=settings.dropout,
        target_modules=targets(module, layers, settings.targets),
        use_rslora=settings.rslora,
        use_dora=settings.dora,
        task_type="CAUSAL_LM",
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it says that it turns transposed matrices by itself
        try:
            return get_peft_model(module, config, autocast_adapter_dtype=False)
        except ValueError as error:  # some modules of some models cannot take adapters
            reason = str(error).partition(". ")[0]
            raise UserError(f"lora: targets={settings.targets}: {reason}; name others, such as --set targets=q_proj+v_proj") from error


def finish(prepared: Any, folder: Path) -> None:
    """Keep the adapter, then merge it into the weights."""
    prepared.save_pretrained(folder / "adapter", save_embedding_layers=False)
    (folder / "adapter" / "README.md").unlink(missing_ok=True)  # a form to fill in; the model has a card of its own
    prepared.merge_and_unload()
