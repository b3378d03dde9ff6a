"""Percentiles that say when there are too few samples for them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

SAMPLE_FLOORS: Mapping[float, int] = {50: 1, 90: 64, 99: 662, 99.9: 6636}
"""Least number of samples for a percentile to be given: MLPerf inference's early-stopping floors (99 % confidence)."""

Summary = dict[str, float | None]
"""`n`, the percentiles as `p50`, `p90`, `p99`, and `max`; None where the samples are too few."""


def summary(values_ms: Sequence[float] | NDArray[np.floating], percentiles: Sequence[float] = (50, 90, 99)) -> Summary:
    """Summarise durations: the number of samples, percentiles (as numpy interpolates them) and the maximum.

    A percentile below its floor of samples is None, as is everything where there is no sample at all.

    Args:
        values_ms: durations, in milliseconds (any unit works: it is kept).
        percentiles: which ones, of those that have a floor.
    """
    values = np.asarray(values_ms, np.float64)
    n = int(values.size)
    result: Summary = {"n": n}
    for percentile in percentiles:
        enough = n >= SAMPLE_FLOORS[percentile]
        result[f"p{percentile:g}"] = float(np.percentile(values, percentile)) if enough else None
    result["max"] = float(values.max()) if n else None
    return result


def text(figures: Mapping[str, float | None], key: str, unit: str = " ms") -> str:
    """One figure of a summary in words: `1.24 ms`, or `not enough samples (120 of 662)`."""
    value, n = figures[key], int(figures["n"] or 0)
    if value is not None:
        return f"{value:.{2 if value < 100 else 0}f}{unit}"
    floor = 1 if key == "max" else SAMPLE_FLOORS[float(key[1:])]
    return f"not enough samples ({n} of {floor})"
