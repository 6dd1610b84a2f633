"""Retention: the shares of what the base recognises (choices) and of what it writes that a model keeps, and where these
part.
"""

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
from jaxtyping import Float

from .bootstrap import interval

Drawn = Float[np.ndarray, " resample"]
LEAST = 0.0  # of the base's centred score, for sure, below which a share of it says nothing


def partings(
    names: Sequence[str],
    recognised: Mapping[int, Sequence[tuple[float, float, Drawn]]],
    written: Mapping[int, Sequence[tuple[float, float, Drawn]]],
) -> Iterator[str]:
    """A sentence for every model that keeps other shares of recognition and of generation, by more than chance.

    Args:
        names: of the models, the base first.
        recognised, written: place -> (value, chance, resampled values) of every task of that sort; empty where a model
            lacks one.
    """
    sorts = {"recognised": recognised, "written": written}
    if any(not sort.get(0) for sort in sorts.values()):
        return
    centred = {
        name: {place: _centred(tasks) for place, tasks in sort.items() if len(tasks) == len(sort[0])}
        for name, sort in sorts.items()
    }
    for name, sort in centred.items():
        if interval(sort[0][1])[0] <= LEAST:
            yield f"what is {name}: {names[0]} itself is not surely better than guessing, so no shares of it are told"
            return
    for place, name in enumerate(names):
        if place and all(place in sort for sort in centred.values()):
            shares = [_share(sort[place], sort[0]) for sort in centred.values()]
            low, high = interval(shares[0][1] - shares[1][1])
            if not low <= 0 <= high:
                more, less = ("recognised", "written") if low > 0 else ("written", "recognised")
                kept = dict(zip(sorts, shares, strict=True))
                yield (
                    f"{name} keeps {_percent(*kept[more])} of what {names[0]} {_did(more)} and "
                    f"{_percent(*kept[less])} of what it {_did(less)}: {_moral(more)}"
                )


def _centred(tasks: Sequence[tuple[float, float, Drawn]]) -> tuple[float, Drawn]:
    """Mean over tasks of (value - chance) / (1 - chance), and the same of every resample."""
    values = [(value - chance) / (1 - chance) for value, chance, _ in tasks]
    drawn = [(samples - chance) / (1 - chance) for _, chance, samples in tasks]
    return sum(values) / len(values), sum(drawn) / len(drawn)


def _share(own: tuple[float, Drawn], base: tuple[float, Drawn]) -> tuple[float, Drawn]:
    return own[0] / base[0], own[1] / np.maximum(base[1], 1e-9)


def _percent(value: float, samples: Drawn) -> str:
    low, high = interval(samples)
    return f"{value:.0%} [{low:.0%}, {high:.0%}]"


def _did(sort: str) -> str:
    return "recognises among choices" if sort == "recognised" else "writes"


def _moral(more: str) -> str:
    return "choices hide what was lost" if more == "recognised" else "it lost more than its answers show"
