"""Evidence for a choice of layers: scores, losses of removals, scores anew, and perplexities, each made once when it
is first asked for.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from ..anatomy.model import Model
from ..anatomy.patch import Patch
from ..artifacts import NOTHING, CalibrationRecord, Compensation, ModelRecord, Perplexity, Removal, Scores, Units
from ..artifacts.units import LAYER
from ..errors import UserError, argument
from ..evaluation.perplexity import Segments, evaluation_segments
from ..evaluation.removals import removals_perplexity
from ..planning.problem import Choice
from ..repair.gap_fits import GapFits
from ..settings.calibration import Calibration, Paths
from ..settings.evaluation import Protocol
from ..walk.removals import LossWalk
from ..walk.replay import replay_of
from ..walk.run import dtype_name, journal_of, load_weights, samples_of
from .repair import fit_repair
from .repair_options import RepairOptions
from .score import rescorer, score
from .selection_options import default_criterion

FITTED = 64  # samples of a repair that only compares


@dataclass
class Evidence:
    """What a choice rests on (``planning.choice.ChoiceEvidence``): of a model, or only of scores that were given.

    Attributes:
        model: None where only scores were given.
        given: those scores.
        kind: what may go, where a model is given: ``layer``, ``attention``, ``mlp`` or ``sublayer``.
        texts, protocol: what perplexities are measured on.
        repaired: whether losses and perplexities are those of repaired models: losses by ``GapFits``, perplexities by
            ``sequential``.
        refit: the compensation in whose model units are scored anew and perplexities are measured, or None.
    """

    model: Model | None
    given: Scores | None = None
    criterion: str | None = None
    settings: dict[str, Any] | None = None
    kind: str = LAYER
    calibration: Calibration = field(default_factory=Calibration)
    texts: Paths = ()
    protocol: Protocol | None = None
    repaired: bool = False
    refit: str | None = None

    @property
    def record(self) -> ModelRecord:
        """Of the model, or the one that the scores are of."""
        return self.model.record if self.model is not None else self.given.model

    @property
    def dtype(self) -> str:
        """The dtype of the weights, by its long name."""
        return dtype_name(self.model) if self.model is not None else self.given.dtype

    @cached_property
    def units(self) -> Units:
        """What may go."""
        if self.model is None:
            return Units.named(self.given.units, self.given.model.layer_parameters)
        return self.model.units(self.kind)

    @cached_property
    def scores(self) -> Scores:
        """One number per unit, and of runs where the criterion tells."""
        if self.given is not None:
            return self.given
        how = {
            "criterion": self.criterion or default_criterion(self.kind),
            "settings": self.settings,
            "units": self.kind,
        }
        return score(self.model, **how, calibration=self.calibration)

    @cached_property
    def samples(self) -> Any:
        """The calibration tokens of the losses, and of the repairs where these are of repaired models."""
        samples = self.calibration.samples + (FITTED if self.repaired else 0)
        return samples_of(self.model, replace(self.calibration, samples=samples, at_most=self.repaired))

    @cached_property
    def losses(self) -> Callable[..., Tensor]:
        """Removals -> mean of the objective over all predicted tokens, one each."""
        tokens, fitted = self._split(self.samples.tokens)
        load_weights(self.model)
        steps = GapFits(self.model, fitted).steps if self.repaired else None
        about = {"losses": True} | ({"compared": len(tokens)} if self.repaired else {})
        walk = LossWalk(self.model, tokens, journal_of(self.model, self.samples.record, **about), steps)

        def losses(removals: Sequence[Removal], label: str, **how: Any) -> Tensor:
            with self.model.check_length(tokens.shape[1]):
                return walk(removals, label, **how) / walk.predictions

        return losses

    def _split(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """(what losses are of, what repairs are fitted on): spread evenly over all samples, and so over the texts."""
        if not self.repaired:
            return tokens, tokens[:0]
        if len(tokens) < 2:
            raise UserError(f"a choice for the repaired model needs 2 samples at least: raise {argument('samples')}")
        count = min(self.calibration.samples, len(tokens) // 2)
        places = torch.arange(len(tokens))
        compared = (places + 1) * count // len(tokens) > places * count // len(tokens)
        return tokens[compared], tokens[~compared]

    @cached_property
    def rescore(self) -> Callable[[Removal], dict[int, float]]:
        """Removal -> scores of the units that stay, in the model as ``refit`` has repaired it, where that is asked for.

        Raises:
            UserError: nothing can be repaired in this model.
        """
        anew = rescorer(
            self.model, self.criterion or default_criterion(self.kind), self.settings, self.units, self.calibration
        )
        if self.refit is None:
            return anew
        self.model.check_plain(self.refit)
        if replay_of(self.model) is None:
            raise UserError(
                f"{self.model.checkpoint.source}: its layers hand more than the stream to each other, so nothing can "
                f"be repaired: leave out {argument('refit')}"
            )
        return lambda removal: anew(removal, self.repair_of(removal)[0])

    def used(self, needs: str) -> CalibrationRecord | None:
        """The tokens behind what a selection needs."""
        return self.scores.calibration if needs == "scores" else self.samples.record if needs == "losses" else None

    @cached_property
    def segments(self) -> dict[str, Segments]:
        """The texts that perplexity is measured on."""
        return evaluation_segments(self.model, self.texts, None, self.protocol or Protocol())

    def perplexities(self, removals: Sequence[Removal], label: str) -> list[dict[str, Perplexity]]:
        """Perplexity by text, for every removal."""
        return removals_perplexity(self.model, self.segments, removals, label)

    @cached_property
    def _dense(self) -> dict[str, Perplexity]:
        return self.perplexities([NOTHING], "dense")[0]

    def repair_of(self, removal: Removal) -> tuple[Patch, Compensation]:
        """The repair by ``refit``, or else by ``sequential``, fitted on as many samples as the others."""
        tokens = replace(self.calibration, samples=max(FITTED, self.calibration.samples), at_most=True)
        return fit_repair(self.model, removal, RepairOptions(self.repair_name, calibration=tokens))

    @property
    def repair_name(self) -> str:
        """The compensation of ``repair_of``."""
        return self.refit or RepairOptions().method

    @property
    def growth_basis(self) -> str:
        """The texts of ``growth``, and how they are cut."""
        repaired = f", repaired by {self.repair_name}" if self.repaired or self.refit else ""
        return f"{', '.join(self.segments)}, {next(iter(self._dense.values())).length} tokens{repaired}"

    def growth(self, choice: Choice) -> float:
        """The share by which the perplexity of some text grows without these layers, at most."""
        before = self._dense
        removal = self.units.removal(choice.order)
        patch = self.repair_of(removal)[0] if self.repaired or self.refit else {}
        with self.model.patched(patch):
            after = self.perplexities([removal], f"without {len(removal)}")[0]
        return max(after[name].value / before[name].value - 1 for name in before)
