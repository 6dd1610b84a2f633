"""Random: the baseline that every table needs. No data; the same seed gives the same scores.

    I(n) = u_n,  u uniform in [0, 1), drawn per layer from the seed

Source: a common baseline; the draw (Python's Mersenne Twister seeded with "seed:layer") is ours.
"""

import random
from dataclasses import dataclass

EVIDENCE = "place"


@dataclass(frozen=True)
class Settings:
    seed: int = 1234


def measure(evidence, settings: Settings) -> dict:
    return {"value": random.Random(f"{settings.seed}:{evidence.index}").random()}


def score(sums, settings: Settings) -> float:
    return float(sums["value"])
