"""Compensation case: what a compensation is given, what it returns, and how candidates are held against each other."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from typing import Any

from jaxtyping import Int
from torch import Tensor

from ..anatomy.model import Model
from ..anatomy.patch import Edit, Patch
from ..artifacts.removal import Removal
from ..storage.journal import NO_JOURNAL, JournalPart
from .paired import PairedWalk
from .state import RepairState
from .suffix import SuffixLoss


@dataclass(frozen=True)
class Case:
    """What a compensation is given.

    Attributes:
        model: the dense model.
        removal: what goes.
        tokens: calibration tokens to fit on.
        held_out: calibration tokens that nothing is fitted on, to decide by.
        loss: changes -> mean NLL of the pruned model with them on the held-out tokens, in nats.
        before: that loss without changes.
        check_seconds: how long it took to find.
        settings: the method's own.
        state: what has been found so far; only ``walk`` and ``tail`` look at it.
        part: of a journal, which keeps it.
    """

    model: Model
    removal: Removal
    tokens: Int[Tensor, "sample position"]
    held_out: Int[Tensor, "held_out position"]
    loss: Callable[[Patch], float]
    before: float
    settings: Any = None
    check_seconds: float = 0.0
    state: RepairState = field(default_factory=RepairState)
    part: JournalPart = field(default_factory=lambda: NO_JOURNAL.part("", 0))

    def walk(self, **options: Any) -> PairedWalk:
        """The fitting tokens through both models, from where they were when a process was killed."""
        return PairedWalk(self.model, self.tokens, self.removal, state=self.state, part=self.part, **options)

    def tail(self) -> SuffixLoss:
        """The held-out tokens in front of where the walk begins, in the model changed so far."""
        tail = SuffixLoss(self.model, self.held_out, self.removal)
        tail.pass_on(self.state.step - 1, self.state.patch)
        return tail


@dataclass(frozen=True)
class Fitted:
    """Changes of weights, and what is worth telling about how they were found."""

    patch: Patch
    notes: dict[str, Any] = field(default_factory=dict)


def best_of(
    case: Case, before: tuple[Patch, float | None], candidates: Iterable[tuple[Any, Patch]]
) -> tuple[Patch, float, Any, list[dict]]:
    """The candidate with the lowest held-out loss on top of ``before``, or ``before`` itself.

    Args:
        before: changes taken so far, and their loss; None for that of the model without changes.
        candidates: (label, further changes).
    Returns:
        The changes, their loss, the chosen label or None, and every candidate's loss.
    """
    patch, loss_before = before
    best = case.before if loss_before is None else loss_before
    chosen = None
    tried = []
    for label, further in candidates:
        changes = before[0] | further
        loss = case.loss(changes)
        tried.append({"candidate": label, "loss": loss})
        if loss < best:
            patch = changes
            best = loss
            chosen = label
    return patch, best, chosen, tried


def edits(kind: str, value: Tensor, weights: Iterable[tuple[str, int]]) -> Patch:
    """One change for all weights of a writer, (full name, axis) each."""
    return {name: Edit(kind, value, axis) for name, axis in weights}


def half_strength(patch: Patch) -> Patch:
    """The same changes at half strength."""
    return {name: replace(edit, strength=edit.strength / 2) for name, edit in patch.items()}


def at_first(
    patch: Patch, shares: Iterable[float], word: str = "", group: Callable[[str], Any] = str
) -> list[tuple[str, Patch]]:
    """Candidates for ``best_of``: the changes at half strength, and those of the first such shares of their groups.

    Args:
        word: for the groups, in the labels.
        group: name of a weight -> what it is taken or left with; by default each by itself.
    """
    groups = list(dict.fromkeys(map(group, patch)))
    found = [("half strength", half_strength(patch))] if patch else []
    for count in sorted({max(1, round(len(groups) * share)) for share in shares}) if patch else ():
        taken = {*groups[:count]}
        some = {name: edit for name, edit in patch.items() if group(name) in taken}
        found.append((f"first {count} {word}".rstrip(), some))
    return found
