"""Adapters: which modules get them, and how they are put in and merged, through peft."""

import warnings
from pathlib import Path
from typing import Any

from torch import nn

from ...anatomy.loading import unlogged
from ...errors import UserError, argument
from ...runtime.progress import say

UNREACHED = 0.01  # of the layers' weights, beyond which it is told


def targets(module: nn.Module, layers: str, given: str) -> list[str]:
    """Full names of the linear modules within the layers, all or those whose last name is given."""
    linear = [name for name, part in module.named_modules() if name.startswith(f"{layers}.") and _linear(part)]
    known = sorted({name.rpartition(".")[2] for name in linear})
    wanted = known if given == "all" else given.split("+")
    if missing := [name for name in wanted if name not in known] or ["of any name"] * (not known):
        raise UserError(
            f"lora: targets={given}: no linear module {missing[0]} in the layers; there are "
            f"{', '.join(known) or 'none'}"
        )
    return [name for name in linear if name.rpartition(".")[2] in wanted]


def _linear(part: nn.Module) -> bool:
    """A linear module, or the older one that keeps its matrix transposed."""
    return isinstance(part, nn.Linear) or (type(part).__name__ == "Conv1D" and hasattr(part, "nf"))


def add_adapters(
    module: nn.Module,
    layers: str,
    *,
    rank: int,
    alpha: float,
    dropout: float,
    names: str,
    rslora: bool = False,
    dora: bool = False,
) -> Any:
    """Put adapters into the module.

    Only they are trained. ``layers`` is the name of the stack, ``names`` as in ``targets``.
    """
    try:
        with unlogged("bitsandbytes.backends.cpu.ops"):  # of kernels that are not used here
            from peft import LoraConfig, get_peft_model
    except ImportError as error:
        raise UserError("adapters need the package peft; pip install 'shallower[heal]'") from error
    config = LoraConfig(
        r=rank,
        lora_alpha=alpha,
        lora_dropout=dropout,
        target_modules=targets(module, layers, names),
        use_rslora=rslora,
        use_dora=dora,
        task_type="CAUSAL_LM",
    )
    _say_unreached(module, layers)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it says that it turns transposed matrices by itself
        try:
            return get_peft_model(module, config, autocast_adapter_dtype=False)
        except ValueError as error:  # some modules of some models cannot take adapters
            reason = str(error).partition(". ")[0]
            raise UserError(
                f"lora: targets={names}: {reason}; name others, such as "
                f"{argument('settings', {'targets': 'q_proj+v_proj'})}"
            ) from error


def _say_unreached(module: nn.Module, layers: str) -> None:
    """Say which share of the layers' weights is in experts, which lie in piles that adapters do not reach."""
    sizes = {name: one for name, one in module.named_parameters() if name.startswith(f"{layers}.")}
    every = sum(one.numel() for one in sizes.values())
    piled = sum(one.numel() for one in sizes.values() if one.dim() > 2)
    if piled > UNREACHED * every:
        other = f"{argument('method', 'continued')} trains them"
        say(
            f"warning: {piled / every:.0%} of the layers' weights are experts, which adapters do not reach and which "
            f"stay as they are; {other}, and a model that prune wrote with single experts can be written with "
            f"{argument('format', 'custom')} instead"
        )


def merge_adapters(prepared: Any, folder: Path) -> None:
    """Keep the adapter, then merge it into the weights."""
    prepared.save_pretrained(folder / "adapter", save_embedding_layers=False)
    (folder / "adapter" / "README.md").unlink(missing_ok=True)  # a form to fill in; the model has a card of its own
    prepared.merge_and_unload()
