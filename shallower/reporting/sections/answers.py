"""Section on what models write: agreement with another one, repetition, and use as its draft, in words."""

from ...results.generation import agreement_lines, draft_lines
from ...results.summary import Summary
from ..page import Section, Text


def section(summary: Summary) -> Section | None:
    """The answers of every model that was held against another one."""
    parts: list[Text] = []
    for row in summary.rows:
        found = row.evaluation
        lines = [*(agreement_lines(found.agreement) if found.agreement else [])]
        lines += [*(draft_lines(found.draft) if found.draft else [])]
        if lines:
            parts.append(Text(f"{row.label} ({row.detail})" if row.detail else row.label, "heading"))
            parts += [Text(f"{line[0].upper()}{line[1:]}.") for line in lines]
    return Section("Answers", parts) if parts else None
