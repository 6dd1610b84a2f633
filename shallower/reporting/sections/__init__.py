"""Sections of the report, a file each: ``section(summary)``, None where there is nothing to say."""

from ...results.summary import Summary
from ..page import Section
from . import (
    answers,
    comparison,
    healing,
    importance,
    perplexity,
    provenance,
    quantisation,
    removal,
    repair,
    speed,
    tasks,
)

ORDER = (removal, importance, perplexity, tasks, answers, repair, healing, quantisation, speed, comparison, provenance)


def sections(summary: Summary) -> list[Section]:
    """The sections that have something to say, as they follow each other."""
    return [section for module in ORDER if (section := module.section(summary))]
