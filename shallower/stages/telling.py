"""What is told of it all: the report, the model card."""

from collections.abc import Sequence
from pathlib import Path

from ..anatomy.loading import hub_of
from ..anatomy.model import SIDE_FILE
from ..artifacts import load
from ..files import write_atomic
from ..reporting.card import CARD, Base, check_card
from ..reporting.card import card as card_text
from ..reporting.pages import write_report


def report(folder: str | Path, *, out: str | Path | None = None) -> Path:
    """One self-contained page, with its figures as SVG and PNG beside it, from the artifacts in a folder and below.

    Args:
        out: the page; by default ``report.html`` in the folder. An earlier report is replaced.
    Raises:
        UserError: no artifacts there, artifacts of different models, or something else at ``out``.
    """
    return write_report(Path(folder), Path(out) if out is not None else Path(folder) / "report.html")


def card(folder: str | Path, evaluations: Sequence[str | Path] = ()) -> Path:
    """Write the model card of a pruned model anew, with what was measured since.

    Args:
        evaluations: evaluation files of it and of its base.
    Raises:
        UserError: no pruned model there, a card that somebody else wrote, or an evaluation of another model.
    """
    folder = Path(folder)
    pruned = load(folder / SIDE_FILE, "pruned")
    found = {str(path): load(path, "evaluation") for path in evaluations}
    check_card(folder, pruned, found)
    base = Base.of(folder, hub_of(pruned.plan.model.source))
    text = card_text(pruned, folder.resolve().name, base, evaluations=list(found.values()), code=any(folder.glob("*.py")))
    return write_atomic(folder / CARD, text)
