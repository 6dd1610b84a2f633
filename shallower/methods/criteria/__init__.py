"""Importance criteria, one file each; the file name is its name. Lower score: remove first.

A file has a docstring (claim, formula, source, what is our reconstruction), ``EVIDENCE`` (place, weights, streams,
gradients, flows, losses; see ``walk/evidence.py``), ``measure(evidence)`` that names what to add up over batches, and
``score(sums)`` that reads the totals. A ``Settings`` dataclass, if present, is passed to both as last argument.
"""
