"""Shapes of tensors, checked while testing: every function whose signature names one, as it is imported.

jaxtyping's own import hook would check all functions of a module, and decorate those inside others at every call.
"""

import importlib.abc
import importlib.machinery
import inspect
import sys
from collections.abc import Callable, Sequence
from types import ModuleType
from typing import Any

from beartype import beartype
from jaxtyping import AbstractArray, jaxtyped


def check_shapes(package: str) -> None:
    """Check the shapes of a package's functions from its next import on."""
    sys.meta_path.insert(0, _Finder(package))


class _Finder(importlib.abc.MetaPathFinder):
    def __init__(self, package: str):
        self.package = package

    def find_spec(self, name: str, path: Sequence[str] | None, target: ModuleType | None = None) -> Any:
        if name.split(".")[0] != self.package:
            return None
        spec = importlib.machinery.PathFinder.find_spec(name, path, target)
        if spec is not None and isinstance(spec.loader, importlib.machinery.SourceFileLoader):
            spec.loader.exec_module = _checking(spec.loader.exec_module)
        return spec


def _checking(run: Callable[[ModuleType], None]) -> Callable[[ModuleType], None]:
    def exec_module(module: ModuleType) -> None:
        run(module)
        owners = [module, *(item for item in vars(module).values() if inspect.isclass(item))]
        for owner in owners:
            for name, item in list(vars(owner).items()):
                if inspect.isfunction(item) and item.__module__ == module.__name__ and _shaped(item):
                    setattr(owner, name, jaxtyped(typechecker=beartype)(item))

    return exec_module


def _shaped(function: Callable) -> bool:
    """Whether its signature names the shape of a tensor."""
    hints = function.__annotations__.values()
    return any(inspect.isclass(hint) and issubclass(hint, AbstractArray) for hint in hints)
