"""Kinds of units that can be removed, a file each: which there are, and the model without some of them, virtually."""

from contextlib import AbstractContextManager
from typing import Protocol

from ...artifacts import ModelRecord
from ...artifacts.removal import Removal, Unit
from ..stack import Stack
from . import layer


class Kind(Protocol):
    """What a file of this folder offers."""

    def units(self, record: ModelRecord) -> dict[Unit, int]:
        """Every unit, in order, with the parameters that go with it."""

    def without(self, stack: Stack, removal: Removal) -> AbstractContextManager[None]:
        """Run the model without these units while inside; nothing is copied."""


KINDS: dict[str, Kind] = {"layer": layer}


def without(stack: Stack, removal: Removal) -> AbstractContextManager[None]:
    """Virtual removal: the model without these units while inside.

    Raises:
        Refusal: another layer looks for what a removed one should have left.
    """
    return KINDS[removal.kind].without(stack, removal)
