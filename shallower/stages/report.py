"""Report and model card, as verbs."""

from pathlib import Path

from ..anatomy.loading import hub_of
from ..anatomy.model import SIDE_FILE
from ..artifacts import load
from ..errors import UserError
from ..reporting.card import CARD, Base, card_text, check_card
from ..reporting.html import write_report
from ..settings.calibration import Paths, listed_paths
from ..storage.files import write_atomic
from ..storage.paths import place


def report(folder: str | Path, *, out: str | Path | None = None, public: bool = False) -> Path:
    """One self-contained page, with its figures as SVG and PNG beside it, from the artifacts in a folder and below.

    Args:
        out: the page; by default ``report.html`` in the folder. An earlier report is replaced.
        public: to be shown to others: of paths on this machine only the last part is told.
    Raises:
        UserError: no artifacts there, artifacts of different models, or something else at ``out``.
    """
    folder = place(folder)
    return write_report(folder, place(out) if out is not None else folder / "report.html", public=public)


def card(folder: str | Path, evaluations: Paths = ()) -> Path:
    """Write the model card of a pruned model anew, with what was measured since.

    Args:
        evaluations: evaluation files of it and of its base.
    Raises:
        UserError: no pruned model there, a card that somebody else wrote, or an evaluation of another model.
    """
    folder = place(folder)
    if not (folder / SIDE_FILE).is_file():
        raise UserError(
            f"{folder} is no model that shallower wrote (it has no {SIDE_FILE}); give the folder of a pruned one"
        )
    pruned = load(folder / SIDE_FILE, "pruned")
    evaluation_by_path = {str(path): load(path, "evaluation") for path in listed_paths(evaluations)}
    check_card(folder, pruned, evaluation_by_path)
    base = Base.of(folder, hub_of(pruned.plan.model.source))
    try:
        text = card_text(
            pruned,
            folder.resolve().name,
            base,
            evaluations=list(evaluation_by_path.values()),
            code=any(folder.glob("*.py")),
        )
    except (
        KeyError,
        TypeError,
        ValueError,
        AttributeError,
        IndexError,
    ) as error:  # what is told of repair and healing has no fixed form
        said = f"lacks {error}" if isinstance(error, KeyError) else " ".join(str(error).split())[:120]
        raise UserError(
            f"{folder / SIDE_FILE} or one of the evaluations cannot be told of ({said}): write it again"
        ) from error
    return write_atomic(folder / CARD, text)
