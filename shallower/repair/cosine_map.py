"""Cosine map of a gap: a map of what a writer adds that turns the stream towards a target, whatever its length.

    min_P  E [ 1 - cos(target, b + P m) ]  +  λ s ‖ P - I ‖² / 2        s = E ‖ m ‖² / ‖ target ‖² / width

m is what the writer adds and b the stream without it. For small errors 1 - cos is half the squared part of the error
that lies across the target, as a share of its squared length, so that λ pulls as it does in least squares.
"""

from collections.abc import Callable
from math import ceil
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from ..storage.journal import JournalPart
from .batch import PairedBatch
from .local_training import PRIME, cosine
from .writer_fit import TINY, Rows

KEPT = 1 << 30  # bytes of rows in memory; where all take more, every second one, every third … is looked at
BATCH = 1024  # rows of a step
PASSES = 10  # over the rows, at most
RATE = 1e-3  # learning rate of Adam; halved after a pass that raised the objective
ENOUGH = 1e-3  # the pass that lowers it by a smaller share is the last one
MOMENTS = ("exp_avg", "exp_avg_sq")  # of Adam

Map = Float[Tensor, "width width"]


class CosineMap:
    """Rows of batches, and the map that they give.

    Args:
        tokens: how many rows will be added.
        seed: of the order of the rows in each pass.
    """

    def __init__(self, tokens: int, seed: int = 0):
        self.tokens = tokens
        self.seed = seed
        self.passed = 0
        self.kept = 0
        self.store: Float[Tensor, "3 row width"] | None = None

    def add(self, batch: PairedBatch) -> None:
        """Add the rows of a batch, or as many of them, evenly spread, as keep all rows within ``KEPT``."""
        count, width = batch.after.shape
        stride = ceil(self.tokens * 3 * 4 * width / KEPT)
        if self.store is None:
            self.store = torch.empty(3, ceil(self.tokens / stride), width, device=batch.after.device)
        own = slice(-self.passed % stride, None, stride)
        added, after, target = (rows[own].float() for rows in (batch.output, batch.after, batch.wanted))
        place = slice(self.kept, self.kept + len(added))
        for kept, rows in zip(self.store, (added, after - added, target), strict=True):
            kept[place] = rows
        self.passed += count
        self.kept += len(added)

    def rows(self) -> tuple[Rows, Rows, Rows]:
        """What the writer adds, the stream without it, and the target."""
        return tuple(self.store[:, : self.kept])

    def pull(self, strength: float) -> float:
        """What ``‖ P - I ‖²`` counts: λ s / 2."""
        added, _, target = self.rows()
        shares = added.square().sum(1) / target.square().sum(1).clamp_min(TINY)
        return strength * float(shares.mean()) / added.shape[1] / 2

    def objective(self, change: Map, pull: float) -> float:
        """The objective for ``P = I + change``."""
        parts = zip(*(rows.split(BATCH) for rows in self.rows()), strict=True)
        total = sum(float(turned(change, *part).double().sum()) for part in parts)
        return total / len(self.rows()[0]) + pull * float(change.double().square().sum())

    def lowered(
        self, start: Map, strength: float, part: JournalPart, told: Callable[[float], None]
    ) -> tuple[Map, list[float]]:
        """P by Adam, and the objective before and after the passes. It never rises: a pass that raises it is undone.

        Args:
            start: P to begin with.
            part: of a journal, which keeps each pass; a killed fit goes on there.
            told: is given the share of the passes that is done.
        """
        eye = torch.eye(len(start), device=start.device)
        pull = self.pull(strength)
        with part:
            state = part.resume()
            moments = {name: state.tensors[name] for name in ("step", *MOMENTS) if name in state.tensors}
            change = state.tensors.get("change", start - eye).to(eye.device)
            rate = state.notes.get("rate", RATE)
            curve = state.notes.get("curve") or [self.objective(change, pull)]
            for number in range(state.step, PASSES):
                if len(curve) > 1 and curve[-2] - curve[-1] < ENOUGH * curve[-2]:
                    break
                after, moved = self._pass(change, moments, pull, rate, number)
                value = self.objective(after, pull)
                if value <= curve[-1]:
                    change, moments = after, moved
                    curve.append(value)
                else:
                    rate, moments = rate / 2, {}
                part.keep(number + 1, {"change": change} | moments, {"curve": curve, "rate": rate})
                told((number + 1) / PASSES)
        return eye + change, curve

    def _pass(
        self, change: Map, moments: dict[str, Tensor], pull: float, rate: float, number: int
    ) -> tuple[Map, dict[str, Tensor]]:
        """The change and Adam's moments after a pass over all rows, in an order of its own."""
        weight = change.clone().requires_grad_(True)
        optimizer = torch.optim.Adam([weight], lr=rate)
        if moments:
            optimizer.state[weight] = {"step": moments["step"].clone()}
            optimizer.state[weight] |= {name: moments[name].to(weight.device, copy=True) for name in MOMENTS}
        added = self.rows()[0]
        generator = torch.Generator().manual_seed(self.seed * PRIME + number)
        with torch.enable_grad():
            for chosen in torch.randperm(len(added), generator=generator).to(added.device).split(BATCH):
                optimizer.zero_grad()
                error = turned(weight, *(rows[chosen] for rows in self.rows())).mean()
                (error + pull * weight.square().sum()).backward()
                optimizer.step()
        state: dict[str, Any] = optimizer.state[weight]
        return weight.detach(), {name: state[name] for name in ("step", *MOMENTS)}


def turned(change: Map, added: Rows, rest: Rows, target: Rows) -> Float[Tensor, " token"]:
    """1 - cosine of the target and of what the writer adds, mapped by ``I + change``, on the rest."""
    return cosine(rest + added + added @ change.T, target)
