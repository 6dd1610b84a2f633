"""Table of what the doctor found."""

from ..stages.doctor import Diagnosis
from .grid import grid, plain_console

MARKS = {"ok": "", "note": "note", "missing": "not installed", "bad": "BAD"}


def doctor_table(found: Diagnosis) -> None:
    """Every finding a row, then what to do about those that are not well."""
    console = plain_console()
    grid(console, ["", "found", "state"], [[one.name, one.value, MARKS[one.state]] for one in found.findings])
    for one in found.findings:
        if one.hint:
            console.print(f"{one.name}: {one.hint}", soft_wrap=True)
    if found.well:
        console.print("all that is needed is there")
