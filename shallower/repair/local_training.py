"""Local training: one layer learns to make the dense stream of what it is given; no gradient leaves the layer."""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from math import cos, isfinite, pi
from typing import Any, Literal

import torch
from jaxtyping import Int
from torch import Tensor, nn
from torch.nn.functional import cosine_similarity, huber_loss

from ..anatomy.patch import Edit, Patch
from ..runtime import distributed
from ..storage.journal import JournalPart
from .paired import LayerStep
from .writer_fit import TINY, Rows, rows_of

LossName = Literal["relative", "cosine", "huber"]
WATCHED = 16  # one sample in so many is not trained on; its error says which step is kept, and whether any
LOOKS = 8  # times that this error is asked for, the first and the last step included
WARM = 0.1  # of the steps, in which the learning rate rises
BETAS = (0.9, 0.95)
ROSE, SLOWER = (
    1.01,
    0.3,
)  # an error so many times the least one sends the weights back, and lowers the rate to that share
UNIT = 0.125  # root mean square of a matrix from which the rate is taken as it is; of smaller ones in proportion
CLIP = 1.0  # largest norm of all gradients together
PRIME = 1_000_003  # keeps the orders of layers and turns apart


def relative(stream: Rows, wanted: Rows) -> Tensor:
    """Squared distance as a share of the squared length of what is wanted, per token."""
    return (stream - wanted).square().sum(-1) / (wanted.square().sum(-1) + TINY)


def cosine(stream: Rows, wanted: Rows) -> Tensor:
    """1 - cosine, per token."""
    return 1 - cosine_similarity(stream, wanted, dim=-1)


def huber(stream: Rows, wanted: Rows) -> Tensor:
    """Huber loss of the distance in units of the root mean square of what is wanted, mean over features, per token."""
    unit = wanted.square().mean(-1, keepdim=True).sqrt() + TINY
    return huber_loss(stream / unit, wanted / unit, reduction="none").mean(-1)


LOSSES: dict[str, Callable[[Rows, Rows], Tensor]] = {"relative": relative, "cosine": cosine, "huber": huber}


@dataclass(frozen=True)
class LocalRecipe:
    """How a layer is trained.

    Attributes:
        rate: the largest learning rate of AdamW, with a warm-up, a cosine to zero and clipping.
        batch_tokens: tokens of a step.
        loss: name of one of ``LOSSES``.
        seed: of the order of the samples.
    """

    rate: float
    batch_tokens: int
    loss: LossName = "relative"
    seed: int = 0

    def rate_at(self, step: int, steps: int) -> float:
        """Learning rate of a step, the first one 0, of so many."""
        warm = max(1, round(WARM * steps))
        return self.rate * min(1.0, (step + 1) / warm) * 0.5 * (1 + cos(pi * step / steps))


def rate_share(weight: Tensor) -> float:
    """Share of the rate that a weight is trained at: a step of AdamW is as large as the rate, whatever the weight's
    size, and families differ tenfold in that (root mean squares of 0.2 and 0.015 are both common).
    """
    return min(1.0, float(weight.float().square().mean().sqrt()) / UNIT) if weight.dim() > 1 else 1.0


@dataclass
class Curve:
    """Errors while a layer is trained.

    Attributes:
        points: (step, mean error of the steps since the last point, error of the watched samples); the first has no
            error of steps.
        best: the place of the point whose weights are kept.
    """

    points: list[tuple[int, float | None, float]] = field(default_factory=list)
    best: int = 0

    @property
    def least(self) -> float:
        """Error of the watched samples with the weights that are kept."""
        return self.points[self.best][2]


class SampleStreams:
    """The streams of single samples, out of those of batches of them, whichever process has them.

    Args:
        batches: of this process's share.
        axis: of the samples.
        count: how many samples all processes have.
    """

    def __init__(self, batches: Sequence[Tensor], axis: int, count: int):
        self.batches = batches
        self.axis = axis
        places = [(i, row) for i, batch in enumerate(batches) for row in range(batch.shape[axis])]
        self.places = dict(zip(distributed.share(torch.arange(count)).tolist(), places, strict=True))

    def __getitem__(self, samples: Sequence[int]) -> Tensor:
        """All processes must ask for the same samples, in the same order."""
        return distributed.all_sum(torch.cat([self._own(sample) for sample in samples], self.axis))

    def _own(self, sample: int) -> Tensor:
        """A sample's stream; zeros where another process has it."""
        if sample not in self.places:
            return torch.zeros_like(self.batches[0].narrow(self.axis, 0, 1))
        i, row = self.places[sample]
        return self.batches[i].narrow(self.axis, row, 1)


@contextmanager
def trained(step: LayerStep, names: frozenset[str]) -> Iterator[dict[str, nn.Parameter]]:
    """Weights of a layer by these names within it, copies with the changes so far, to be trained in place."""
    layer = step.walk.model.layer(step.index)
    with step.applied():
        weights = {name: weight for name, weight in layer.named_parameters() if name in names}
        before = {name: weight.data for name, weight in weights.items()}
        try:
            for weight in weights.values():
                weight.data = weight.data.clone()
                weight.requires_grad_(True)
            yield weights
        finally:
            for name, weight in weights.items():
                weight.requires_grad_(False)
                weight.grad = None
                weight.data = before[name]


class LayerTraining:
    """The training of one layer of a paired walk, from the changes that it has taken so far.

    Of several processes each takes a part of every step's samples, and gradients are added over all of them: the steps
    are those of one process.

    Args:
        step: the layer; its weights are in memory while it is trained, with their gradients and two moments in float32.
        tokens: those that the walk goes through.
        recipe: how it is trained.
        dense: whether what enters is the dense stream instead of the repaired one.
        names: of the weights within the layer that are trained.
    """

    def __init__(
        self,
        step: LayerStep,
        tokens: Int[Tensor, "sample position"],
        recipe: LocalRecipe,
        *,
        names: frozenset[str],
        dense: bool = False,
    ):
        walk = step.walk
        self.step = step
        self.walk = walk
        self.tokens = tokens
        self.recipe = recipe
        self.names = names
        self.measure = LOSSES[recipe.loss]
        self.axis = walk.replay.axes[0]
        self.given = SampleStreams(step.entering if dense else walk.pruned, self.axis, len(tokens))
        self.wanted = SampleStreams(step.wanted, self.axis, len(tokens))
        watched = max(1, len(tokens) // WATCHED)
        self.watched = range(len(tokens) - watched, len(tokens))
        self.learned = range(max(1, len(tokens) - watched))
        self.rows = max(1, min(recipe.batch_tokens // tokens.shape[1], len(self.learned)))
        self.curve = Curve()
        self.steps = self.done = 0
        self.recent: list[float] = []
        self.scale = 0.0  # of the loss; 0 before the first step
        self.factor = 1.0  # of the rate

    def run(self, steps: int, part: JournalPart, told: Callable[[float], None]) -> Patch:
        """Train the layer; the weights with the least error of the watched samples, or none where no step helped.

        Args:
            steps: how many.
            part: of a journal, which keeps the weights, moments and the curve; a killed training goes on there.
            told: is given the share of the steps that is done.
        """
        self.steps = steps
        with trained(self.step, self.names) as weights, part:
            self._begin(weights, part)
            looks = {round(i * self.steps / (LOOKS - 1)) for i in range(LOOKS)}
            while self.done < self.steps:
                self._train(self.done)
                self.done += 1
                if self.done in looks:
                    self._look()
                part.keep(self.done, self._tensors(), self._notes())
                told(self.done / self.steps)
            if not self.curve.best:
                return {}
            best = {name: distributed.from_first(value) for name, value in self.best.items()}
            return {self.step.name(name): Edit("set", value) for name, value in best.items()}

    def error(self) -> float:
        """Error of the watched samples with the changes that the layer has taken."""
        with self.step.applied():
            return self._watched_error()

    def step_seconds(self) -> float:
        """Seconds of one step, without one."""
        samples = list(self._samples(0))
        with trained(self.step, self.names) as weights:
            for _ in range(2):  # the first one warms up
                started = time.monotonic()
                self._gradients(samples, weights)
        return time.monotonic() - started

    def _begin(self, weights: dict[str, nn.Parameter], part: JournalPart) -> None:
        """From the layer as it is, or as a journal has it."""
        self.weights = weights
        self.masters = {name: weight.detach().float() for name, weight in weights.items()}  # itself where it is float32
        fused = {"fused": True} if self.walk.model.device == "cpu" else {}
        self.optimizers = {
            name: torch.optim.AdamW([master], betas=BETAS, weight_decay=0.0, **fused)
            for name, master in self.masters.items()
        }
        self.best = {name: weight.detach().clone() for name, weight in weights.items()}
        self.shares = {name: rate_share(weight) for name, weight in self.best.items()}
        state = part.resume()
        if not state.step:
            self._look()
            return
        self.done = state.step
        self.curve.points = [tuple(point) for point in state.notes["points"]]
        self.curve.best = state.notes["best"]
        self.recent = state.notes["recent"]
        self.scale = state.notes["scale"]
        self.factor = state.notes.get("factor", 1.0)
        for key, tensor in state.tensors.items():
            kind, _, rest = key.partition("/")
            tensor = tensor.to(self.walk.model.device)
            if kind == "best":
                self.best[rest] = tensor
            elif kind == "master":
                self.masters[rest].copy_(tensor)
            else:
                moment = self.optimizers[rest].state.setdefault(self.masters[rest], {})
                moment[kind] = tensor.cpu() if kind == "step" else tensor
        self._install()

    def _tensors(self) -> dict[str, Tensor]:
        found = {f"master/{name}": master for name, master in self.masters.items()}
        found |= {f"best/{name}": value for name, value in self.best.items()}
        for name, optimizer in self.optimizers.items():
            found |= {f"{kind}/{name}": value for kind, value in optimizer.state[self.masters[name]].items()}
        return found

    def _notes(self) -> dict[str, Any]:
        kept = {"points": self.curve.points, "best": self.curve.best, "recent": self.recent}
        return kept | {"scale": self.scale, "factor": self.factor}

    def _train(self, number: int) -> None:
        """One step."""
        samples = list(self._samples(number))
        error, gradients = self._gradients(samples, self.weights)
        norm = sum(float(one.float().square().sum()) for one in gradients.values()) ** 0.5 / self.scale
        factor = min(1.0, CLIP / max(norm, TINY)) / self.scale
        if not isfinite(norm):  # the step is left out
            self.scale = max(1.0, self.scale / 2)
            gradients.clear()
        else:
            for name, optimizer in self.optimizers.items():
                master = self.masters[name]
                master.grad = gradients.pop(name).float() * factor
                optimizer.param_groups[0]["lr"] = (
                    self.factor * self.shares[name] * self.recipe.rate_at(number, self.steps)
                )
                optimizer.step()
                master.grad = None
            self._install()
        if isfinite(error):
            self.recent.append(error)

    def _gradients(self, samples: list[int], weights: dict[str, nn.Parameter]) -> tuple[float, dict[str, Tensor]]:
        """Mean error of some samples and its gradients, times the scale."""
        error = self._error(samples, backward=True)
        gradients = {}
        for name, weight in weights.items():
            own = torch.zeros_like(weight) if weight.grad is None else weight.grad  # experts that no token was sent to
            gradients[name] = own if distributed.size() == 1 else distributed.all_sum(own.float())
            weight.grad = None
        return error, gradients

    def _install(self) -> None:
        """Round the trained weights to the type that is computed in."""
        with torch.no_grad():
            for name, weight in self.weights.items():
                if weight.data_ptr() != self.masters[name].data_ptr():
                    weight.copy_(self.masters[name])

    def _look(self) -> None:
        """Ask for the error of the watched samples, and keep the weights where it is the least so far; go on from those
        with a lower rate where it has risen.
        """
        error = self._watched_error()
        self.curve.points.append((self.done, sum(self.recent) / len(self.recent) if self.recent else None, error))
        self.recent = []
        if error <= self.curve.least and self.done:
            self.curve.best = len(self.curve.points) - 1
            self.best = {name: weight.detach().clone() for name, weight in self.weights.items()}
        elif error > ROSE * self.curve.least or not isfinite(error):
            self.factor *= SLOWER
            for name, optimizer in self.optimizers.items():
                self.masters[name].copy_(self.best[name])
                optimizer.state.clear()
            self._install()

    def _watched_error(self) -> float:
        watched = self.watched
        parts = (list(watched[start : start + self.rows]) for start in range(0, len(watched), self.rows))
        return sum(self._error(samples) * len(samples) for samples in parts) / len(watched)

    def _samples(self, number: int) -> Iterator[int]:
        """The samples of a step: all in a drawn order, then in another one."""
        count = len(self.learned)
        for place in range(number * self.rows, (number + 1) * self.rows):
            turn, at = divmod(place, count)
            if at == 0 or place == number * self.rows:
                drawn = (self.recipe.seed * PRIME + self.step.index) * PRIME + turn
                generator = torch.Generator().manual_seed(drawn % 2**63)
                order = torch.randperm(count, generator=generator).tolist()
            yield order[at]

    def _error(self, samples: list[int], *, backward: bool = False) -> float:
        """Mean error over the tokens of some samples; the gradients of this process's part stay at the weights."""
        given, wanted = self.given[samples], self.wanted[samples]
        if backward and not self.scale:  # gradients of float16 would round to zero
            half = self.walk.model.module.dtype == torch.float16
            self.scale = max(1.0, float(self._rows(wanted).square().sum())) if half else 1.0
        own = torch.arange(len(samples)).tensor_split(distributed.size())[distributed.rank()].tolist()
        error = 0.0
        if own:  # none where there are more processes than samples
            entering, target = (one.narrow(self.axis, own[0], len(own)) for one in (given, wanted))
            with torch.set_grad_enabled(backward):
                leaving = self._leaving([samples[place] for place in own], entering)
                share = self.measure(leaving, self._rows(target)).mean() * (len(own) / len(samples))
                if backward:
                    (share * self.scale).backward()
            error = float(share)
        return float(distributed.all_sum(torch.tensor(error, dtype=torch.float64)))

    def _leaving(self, samples: list[int], given: Tensor) -> Rows:
        recording = self.walk.replay.record(self.tokens[samples].to(self.walk.model.device))
        return self._rows(self.walk.replay.step(recording, self.step.index, given))

    def _rows(self, stream: Tensor) -> Rows:
        return rows_of(self.walk.model.stack, stream).float()


def trained_names(step: LayerStep, which: str) -> frozenset[str]:
    """Names within the layer of the weights to train: all but those of parts that go, or some of them."""
    model, removal = step.walk.model, step.walk.removal
    weights = {name: one for name, one in model.layer(step.index).named_parameters() if one.is_floating_point()}
    parts = model.parts[step.index].parts if removal.parts(step.index) or which in ("attention", "mlp") else {}
    lost = {name for part in removal.parts(step.index) for name in parts[part].parameters}
    names = set(weights) - lost
    if which == "norms":
        owners = {name.rpartition(".")[0] for name, weight in weights.items() if weight.dim() > 1}
        names = {name for name in names if weights[name].dim() == 1 and name.rpartition(".")[0] not in owners}
    elif which != "all":
        names &= parts[which].parameters if which in parts else set()
    return frozenset(names)


def about(curve: Curve) -> dict[str, Any]:
    """A curve as JSON."""
    kept = {"error": curve.least, "kept_step": curve.points[curve.best][0]}
    return kept | {"curve": [list(point) for point in curve.points if isfinite(point[2])]}
