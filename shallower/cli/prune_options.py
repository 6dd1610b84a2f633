"""Prune options besides those of the stages: a plan or layers in place of an amount, and what the methods are given."""

from dataclasses import dataclass

from ..errors import UserError
from ..planning.exchange import named_units
from ..settings.amount import Amount
from ..settings.calibration import Paths
from ..settings.fields import option
from ..stages.repair_options import FITTED
from ..storage.paths import place
from .options import EVAL_TEXT_HELP, SETTING_HELP

GROUP = "Options"


@dataclass(frozen=True)
class PruneOptions:
    """What prune takes by itself.

    Attributes:
        plan: a file of a plan that is made already.
        layers: the layers themselves, as text.
        texts: what ``max_ppl_increase`` is measured on.
        compensate_samples: samples that a repair is fitted on; None: as many as usual.
        settings: of the methods at work, as ``key=value``.
    """

    plan: str | None = option("a plan.json made for this model", None, metavar="FILE")
    layers: str | None = option(
        "exactly these layers or parts, such as 3,8-10 or 5.mlp,9.attention, or a list of another tool, such as "
        "block_order.csv:6; no protection",
        None,
        flag="--drop",
        metavar="LAYERS",
    )
    texts: Paths = option(EVAL_TEXT_HELP, (), flag="--eval-text", kind=list, metavar="FILE")
    compensate_samples: int | None = option(f"samples to fit --compensate on, at most [{FITTED}]", None, metavar="N")
    settings: list[str] | None = option(SETTING_HELP, None, flag="--set", kind=list, metavar="KEY=VALUE")

    def way(self, amount: Amount | None) -> str:
        """How it is said which layers go: by a plan, by their numbers, or by an amount.

        Raises:
            UserError: in no way or in several.
        """
        sources = (("--plan", self.plan), ("--drop", self.layers), ("an amount", amount))
        ways = [name for name, value in sources if value is not None]
        if len(ways) != 1:
            what = f"{' and '.join(ways)} were given" if ways else "say what to remove"
            raise UserError(f"{what}: give one of --plan, --drop, --remove, --ratio and the targets (see --help)")
        return ways[0]

    def unit_names(self) -> tuple[str, ...]:
        """The layers and parts of layers named by --drop, each once."""
        return named_units(self.layers) if self.layers is not None else ()

    def check_plan(self) -> None:
        """Raise a UserError where the plan's file is not there."""
        if self.plan is not None and not place(self.plan).is_file():
            raise UserError(f"no plan file at {self.plan}: give the file that plan wrote")
