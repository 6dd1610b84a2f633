"""Bootstrap confidence intervals, by drawing segments or items again, the same ones for every model, so that
differences are paired.
"""

import zlib
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

RESAMPLES = 2000
LEVEL = 0.95
FEWEST = 10  # segments or items; from fewer an interval would be far too narrow
DRAWS_AT_ONCE = 4_000_000  # draws at a time
SEED = 20160822


def resampled_sums(values: Float[np.ndarray, "item column"], key: str) -> Float[np.ndarray, "resample column"]:
    """Sums over as many items as there are, drawn with replacement; every column gets the same draws.

    Items count as independent; neighbouring segments of one document are not quite, so that the true interval is wider.

    Args:
        key: seeds the draws, so that they do not depend on what else is compared.
    """
    generator = np.random.default_rng([SEED, zlib.crc32(key.encode())])
    count = len(values)
    sums = []
    for start in range(0, RESAMPLES, size := max(1, DRAWS_AT_ONCE // count)):
        rows = min(size, RESAMPLES - start)
        indices = generator.integers(count, size=(rows, count)) + count * np.arange(rows)[:, None]
        times = np.bincount(indices.ravel(), minlength=rows * count).reshape(rows, count)
        sums.append(times.astype(np.float64) @ values)
    return np.concatenate(sums)


def interval(samples: Float[np.ndarray, " resample"]) -> tuple[float, float]:
    """The percentile interval, to 7 digits: products of matrices may differ in the last ones."""
    low, high = np.percentile(samples, [50 * (1 - LEVEL), 50 * (1 + LEVEL)])
    return float(f"{low:.7g}"), float(f"{high:.7g}")


def means(parts: Sequence[Float[np.ndarray, "item two"]], key: str) -> list[Float[np.ndarray, " resample"]]:
    """Resampled means of several models from their (sum, count) per item; the items of all of them are the same."""
    sums = resampled_sums(np.concatenate(parts, axis=1), key)
    return [sums[:, column] / sums[:, column + 1] for column in range(0, sums.shape[1], 2)]
