"""Selections, from scores or losses to the layers that go; one file per selection, the file name is its name.

A file has a docstring (rule, source, what is our reconstruction), ``NEEDS`` (scores, losses or nothing) and
``select(problem)`` that returns a ``Choice``; ``ITERATIVE = True`` where it can score anew after every removal,
``NESTED = True`` where a smaller removal is the beginning of a larger one, ``SEARCHES = True`` where it starts from
greedy's choice and keeps to a time budget. A ``Settings`` dataclass, if present, arrives as ``problem.settings``;
``PROTECT = (first, last)`` replaces the usual protection where the paper has its own.
"""
