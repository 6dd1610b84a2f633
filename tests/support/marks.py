"""Which cases of a parametrised test run in the fast suite."""

from collections.abc import Collection, Iterable
from typing import Any

import pytest


def rest_slow(cases: Iterable[Any], fast: Collection[Any]) -> list[Any]:
    """The cases (names, or tuples of arguments): those in ``fast`` stand for the others, which go to the slow suite."""
    return [
        case if case in fast else pytest.param(*(case if isinstance(case, tuple) else (case,)), marks=pytest.mark.slow)
        for case in cases
    ]
