"""Tables that fit the terminal: numbers are never cut, columns give way."""

from collections.abc import Sequence

from rich.console import Console
from rich.table import Table
from rich.text import Text

from ..runtime.progress import stdout

LEFT = {"found", "sooner", "kind", "layers removed", "metric", "model"}  # columns of words, not of numbers


class _Plain(Console):
    def on_broken_pipe(self) -> None:
        """The reader has gone, as head does; that is no failure."""
        raise BrokenPipeError


def plain_console() -> Console:
    """Prints names and paths as they are: no markup in them is read, nothing is coloured by guess."""
    return _Plain(file=stdout(), markup=False, highlight=False)


def grid(
    console: Console,
    columns: Sequence[str],
    rows: Sequence[Sequence[str]],
    *,
    heading: str = "",
    spare: Sequence[str] = (),
) -> None:
    """Print a table that fits the terminal: the first column folds, spare ones go, and at last every row becomes a
    list.

    Args:
        spare: columns that can go, first the one that goes first.
    """
    left_out: list[str] = []
    for last in (*spare, None):
        names = [name for name in columns if name not in left_out]
        table = Table(*names)
        for column in table.columns:
            column.no_wrap = True
        table.columns[0].no_wrap = False
        table.columns[0].overflow = "fold"
        for column in table.columns[1:]:
            column.justify = "left" if column.header in LEFT else "right"
        for row in rows:
            table.add_row(*(Text(cell) for name, cell in zip(columns, row, strict=True) if name not in left_out))
        if console.measure(table).minimum <= console.width and _fits(table, console):
            break
        left_out += [last] if last else []
    else:
        table = None
    if heading:
        console.print(heading, soft_wrap=True)
    if table is not None:
        console.print(table)
        return
    for row in rows:
        console.print(row[0], soft_wrap=True)
        for name, cell in zip(columns[1:], row[1:], strict=True):
            console.print(f"  {' '.join(name.split())}: {cell}", soft_wrap=True)


def _fits(table: Table, console: Console) -> bool:
    """Whether every column but the first gets all the room that it asks for."""
    unbounded = console.options.update(width=10_000)
    widths = [
        max(console.measure(cell, options=unbounded).maximum for cell in (column.header, *column.cells))
        for column in table.columns
    ]
    return min(widths[0], 12) + sum(widths[1:]) + 3 * len(widths) + 1 <= console.width
