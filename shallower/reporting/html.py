"""HTML report: one self-contained page, and its figures, made from artifacts alone."""

from collections.abc import Callable
from importlib import resources
from pathlib import Path

from ..errors import UserError, argument
from ..results.collection import collect
from ..storage.files import replace_files, write_atomic
from ..storage.ownership import check_replaceable
from . import measurements, sections
from .canvas import is_figure, palette_css
from .markup import Markup, joined, tag
from .provenance import provenance_section
from .sections import Page

POLICY = "default-src 'none'; style-src 'unsafe-inline'"  # nothing is fetched, no script runs
REPORT_MARK = '<meta name="generator" content="shallower report">'
SECTIONS: tuple[Callable[[Page], Markup | None], ...] = (
    sections.removed_section,
    sections.importance_section,
    measurements.quality_section,
    measurements.tasks_section,
    sections.repair_section,
    sections.healing_section,
    measurements.speed_section,
    measurements.comparison_section,
    provenance_section,
)


def write_report(folder: Path, out: Path) -> Path:
    """Make the report of a folder at ``out``, its figures in the folder beside it that is named like it.

    Raises:
        UserError: as ``collect`` says, or there is something else at ``out``.
    """
    figures = out.with_suffix("")
    check_report(out, figures)
    page = Page(collect(folder))
    text = html(page)
    contents = {f"{drawing.name}.svg": drawing.file().encode() for drawing in page.drawings}
    contents |= {f"{drawing.name}.png": drawing.png() for drawing in page.drawings}
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


def html(page: Page) -> str:
    """The whole page."""
    parts = [made for part in SECTIONS if (made := part(page)) is not None]
    name = page.findings.name
    style = resources.files(__package__).joinpath("report.css").read_text(encoding="utf-8")
    head = [
        Markup('<meta charset="utf-8">\n<meta name="viewport" content="width=device-width, initial-scale=1">\n'),
        Markup(f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">\n{REPORT_MARK}\n'),
        tag("title", f"{name}, made shallower"),
        tag("style", Markup(palette_css() + "\n" + style)),
    ]
    main = tag("main", _top(page), joined(parts, "\n"), _foot(page))
    return f'<!doctype html>\n<html lang="en">\n{tag("head", *head)}\n{tag("body", main)}\n</html>\n'


def _top(page: Page) -> Markup:
    root = page.findings.root
    kicker = (
        f"shallower report · {root.family}, {root.layers} layers, fingerprint {root.fingerprint}"
        if root
        else "shallower report"
    )
    cards = [tag("li", tag("b", figure), tag("span", what)) for figure, what in page.findings.key_figures()]
    line = tag(
        "p", page.findings.headline().replace(" %", "\u00a0%"), class_="headline"
    )  # a sign alone on a line looks lost
    shown = tag("ul", *cards, class_="cards") if cards else None
    return tag("header", tag("p", kicker, class_="kicker"), tag("h1", page.findings.name), line, shown)


def _foot(page: Page) -> Markup:
    dates = sorted(item.record.provenance.created[:10] for item in page.dossier.found)
    span = dates[0] if dates[0] == dates[-1] else f"{dates[0]} to {dates[-1]}"
    return tag(
        "footer",
        f"Made by shallower from {len(page.dossier.found)} artifacts of {span}; nothing in it was entered by hand.",
    )
