"""HTML report: one self-contained page, and its figures, made from artifacts alone."""

from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined

from ..errors import UserError, argument
from ..results.collection import collect
from ..results.summary import Summary
from ..storage.files import replace_files, write_atomic
from ..storage.ownership import check_replaceable
from .canvas import is_figure, palette_css
from .page import Cell, Section, drawings
from .sections import sections

REPORT_MARK = '<meta name="generator" content="shallower report">'  # stands in the template, too
TEMPLATES = Environment(
    loader=PackageLoader(__package__),
    autoescape=True,
    undefined=StrictUndefined,
    finalize=lambda value: "" if value is None else value,
    trim_blocks=True,
    lstrip_blocks=True,
    keep_trailing_newline=True,
)
TEMPLATES.filters["cell"] = lambda item: item if isinstance(item, Cell) else Cell(item)


def write_report(folder: Path, out: Path, *, public: bool = False) -> Path:
    """Make the report of a folder at ``out``, its figures in the folder beside it that is named like it.

    Args:
        public: of paths on this machine only the last part is shown.
    Raises:
        UserError: as ``collect`` says, or there is something else at ``out``.
    """
    figures = out.with_suffix("")
    check_report(out, figures)
    summary = Summary(collect(folder, public=public))
    parts = sections(summary)
    text = html(summary, parts)
    contents = {}
    for drawing in drawings(parts):
        contents |= drawing.files()
    replace_files(figures, contents, is_figure)
    return write_atomic(out, text)


def check_report(out: Path, figures: Path) -> None:
    """Raise a UserError unless a report may be written there.

    Nothing is there yet, or an earlier report and its figures.
    """
    if out.suffix != ".html":
        raise UserError("give the name of an .html file", out=out)
    if out.is_symlink() or (out.exists() and not (out.is_file() and REPORT_MARK.encode() in out.read_bytes()[:4096])):
        raise UserError(
            f"{argument('out', out)} is no report of shallower; only older reports are replaced: give another name"
        )
    check_replaceable(figures, (), is_figure)


def html(summary: Summary, parts: list[Section]) -> str:
    """The whole page."""
    days = sorted(item.record.provenance.created[:10] for item in summary.collection.artifacts)
    page = TEMPLATES.get_template("report.html.jinja")
    return page.render(summary=summary, sections=parts, palette=palette_css(), days=days)
