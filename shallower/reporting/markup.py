"""HTML markup from parts: whatever is not markup already is escaped."""

import html
from collections.abc import Iterable


class Markup(str):
    """Text that is HTML already."""


def tag(name: str, *children: object, **attributes: str) -> Markup:
    """An element; ``class_`` stands for ``class``; children that are None are left out."""
    inside = "".join(escaped(child) for child in children if child is not None)
    given = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{html.escape(str(value))}"' for key, value in attributes.items()
    )
    return Markup(f"<{name}{given}>{inside}</{name}>")


def escaped(content: object) -> str:
    """Markup as it is, anything else as text."""
    return content if isinstance(content, Markup) else html.escape(str(content))


def joined(parts: Iterable[object], between: str = "") -> Markup:
    """Parts one after the other; None and empty ones are left out."""
    return Markup(html.escape(between).join(escaped(part) for part in parts if part is not None and part != ""))


def two_lines(above: object, below: object) -> Markup:
    """A cell with a smaller second line."""
    return joined([above, tag("small", below) if below else None])


def table(
    head: Iterable[object], rows: Iterable[Iterable[object]], *, numbers: Iterable[int] = (), main: Iterable[int] = ()
) -> Markup:
    """A table that scrolls in its own box.

    Args:
        numbers: columns that are set to the right.
        main: rows that stand out.
    """
    right, strong = set(numbers), set(main)

    def cells(kind: str, row: Iterable[object]) -> list[Markup]:
        return [tag(kind, cell, **({"class_": "n"} if index in right else {})) for index, cell in enumerate(row)]

    body = [
        tag("tr", *cells("td", row), **({"class_": "main"} if index in strong else {}))
        for index, row in enumerate(rows)
    ]
    whole = tag("table", tag("thead", tag("tr", *cells("th", head))), tag("tbody", joined(body, "\n")))
    return tag("div", whole, class_="scroll", tabindex="0", role="region", aria_label="table")


def facts(items: Iterable[tuple[str, object]]) -> Markup:
    """Terms with what they are; those without content are left out."""
    return tag("dl", *(joined([tag("dt", term), tag("dd", said)]) for term, said in items if said not in (None, "")))


def section(title: str, *parts: object, **attributes: str) -> Markup:
    """A section with its heading."""
    return tag("section", tag("h2", title), *parts, **attributes)
