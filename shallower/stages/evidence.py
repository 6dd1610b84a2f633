"""Evidence for a choice of layers: scores, losses of removals, scores anew, and perplexities, each made once when it
is first asked for.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from torch import Tensor

from ..anatomy.model import Model
from ..artifacts import NOTHING, CalibrationRecord, ModelRecord, Perplexity, Removal, Scores, Units
from ..artifacts.units import LAYER
from ..evaluation.perplexity import Segments, evaluation_segments
from ..evaluation.removals import removals_perplexity
from ..planning.problem import Choice
from ..settings.calibration import Calibration, Paths
from ..settings.evaluation import Protocol
from ..walk.removals import LossWalk
from ..walk.run import dtype_name, journal_of, load_weights, samples_of
from .score import rescorer, score
from .selection_options import default_criterion


@dataclass
class Evidence:
    """What a choice rests on (``planning.choice.ChoiceEvidence``): of a model, or only of scores that were given.

    Attributes:
        model: None where only scores were given.
        given: those scores.
        kind: what may go, where a model is given: ``layer``, ``attention``, ``mlp`` or ``sublayer``.
        texts, protocol: what perplexities are measured on.
    """

    model: Model | None
    given: Scores | None = None
    criterion: str | None = None
    settings: dict[str, Any] | None = None
    kind: str = LAYER
    calibration: Calibration = field(default_factory=Calibration)
    texts: Paths = ()
    protocol: Protocol | None = None

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
        """The calibration tokens of the losses."""
        return samples_of(self.model, self.calibration)

    @cached_property
    def losses(self) -> Callable[..., Tensor]:
        """Removals -> mean of the objective over all predicted tokens, one each."""
        tokens = self.samples.tokens
        load_weights(self.model)
        walk = LossWalk(self.model, tokens, journal_of(self.model, self.samples.record, losses=True))

        def losses(removals: Sequence[Removal], label: str, **how: Any) -> Tensor:
            with self.model.check_length(tokens.shape[1]):
                return walk(removals, label, **how) / walk.predictions

        return losses

    @cached_property
    def rescore(self) -> Callable[[Removal], dict[int, float]]:
        """Removal -> scores of the layers that stay."""
        return rescorer(
            self.model, self.criterion or default_criterion(self.kind), self.settings, self.units, self.calibration
        )

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

    @property
    def growth_basis(self) -> str:
        """The texts of ``growth``, and how they are cut."""
        return f"{', '.join(self.segments)}, {next(iter(self._dense.values())).length} tokens"

    def growth(self, choice: Choice) -> float:
        """The share by which the perplexity of some text grows without these layers, at most."""
        before = self._dense
        removal = self.units.removal(choice.order)
        after = self.perplexities([removal], f"without {len(removal)}")[0]
        return max(after[name].value / before[name].value - 1 for name in before)
