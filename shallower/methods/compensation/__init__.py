"""Compensations, the training-free repair of a pruned model: paired streams -> changes of weights.

One file per method, the file name is its name.

A file has a docstring (claim, formula, source, what is our reconstruction) and ``fit(case)`` that returns a ``Fitted``.
It walks both models (``case.walk()``), and at each step takes changes and notes what it needs later; the walk keeps
these, so that a killed command goes on without the method knowing. Each process walks its share of the tokens: what is
added up over batches goes through ``all_sum`` before it is read. A ``Settings`` dataclass, if present, arrives as
``case.settings``. Whatever a method proposes is taken only if the loss on held-out calibration tokens falls.
"""
