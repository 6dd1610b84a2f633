"""Which modules get adapters."""

from torch import nn

from ..errors import UserError


def targets(module: nn.Module, layers: str, given: str) -> list[str]:
    """Full names of the linear modules within the layers, all or those whose last name is given."""
    found = [name for name, part in module.named_modules() if name.startswith(f"{layers}.") and _linear(part)]
    known = sorted({name.rpartition(".")[2] for name in found})
    wanted = known if given == "all" else given.split("+")
    if missing := [name for name in wanted if name not in known] or ["of any name"] * (not known):
        raise UserError(f"lora: targets={given}: no linear module {missing[0]} in the layers; there are {', '.join(known) or 'none'}")
    return [name for name in found if name.rpartition(".")[2] in wanted]


def _linear(part: nn.Module) -> bool:
    """A linear module, or the older one that keeps its matrix transposed."""
    return isinstance(part, nn.Linear) or (type(part).__name__ == "Conv1D" and hasattr(part, "nf"))
