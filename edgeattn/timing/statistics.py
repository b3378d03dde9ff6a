"""Percentiles with intervals, that say when there are too few samples for them; no distribution is assumed anywhere."""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

SAMPLE_FLOORS: Mapping[float, int] = {50: 1, 90: 64, 95: 130, 99: 662, 99.9: 6636}
"""Least number of samples for a percentile to be given: MLPerf inference's early-stopping floors (99 % confidence)."""

PERCENTILES = tuple(SAMPLE_FLOORS)
"""All percentiles that have a floor."""

CONFIDENCE = 0.95
"""Of an interval: so many of a hundred hold the true value."""

Summary = dict[str, float | None]
"""`n`, the percentiles as `p50`, `p90`, `p99`, and `max`; None where the samples are too few."""

Values = Sequence[float] | NDArray[np.floating]


def summary(values_ms: Values, percentiles: Sequence[float] = (50, 90, 99)) -> Summary:
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


def intervals(values_ms: Values, percentiles: Sequence[float] = PERCENTILES) -> dict[str, tuple[float, float] | None]:
    """The interval of each percentile, by name as in `summary`; None where the samples are too few."""
    ordered = np.sort(np.asarray(values_ms, np.float64))
    found: dict[str, tuple[float, float] | None] = {}
    for percentile in percentiles:
        ranks = order_ranks(len(ordered), percentile)
        enough = len(ordered) >= SAMPLE_FLOORS[percentile] and ranks is not None
        found[f"p{percentile:g}"] = (
            (float(ordered[ranks[0] - 1]), float(ordered[ranks[1] - 1])) if enough and ranks else None
        )
    return found


@functools.lru_cache(maxsize=256)
def order_ranks(n: int, percentile: float, confidence: float = CONFIDENCE) -> tuple[int, int] | None:
    """Which two of `n` ordered samples (ranks from 1) hold a percentile between them, whatever the distribution.

    The number of samples below the percentile is binomial; of all pairs that hold it with the confidence asked for, it
    is the closest one (H. A. David, Order Statistics, section 7.1). None: so few samples cannot bound it from above.
    """
    if n < 1:
        return None
    p = percentile / 100
    reach = math.ceil(10 * math.sqrt(n * p * (1 - p))) + 10
    below = np.arange(max(0, math.floor(n * p) - reach), min(n, math.ceil(n * p) + reach) + 1)
    steps = np.log((n - below[:-1]) / below[1:]) + math.log(p / (1 - p))
    first = int(below[0])
    start = (
        math.lgamma(n + 1) - math.lgamma(first + 1) - math.lgamma(n - first + 1)
        + first * math.log(p) + (n - first) * math.log1p(-p)
    )  # fmt: skip
    chance = np.exp(start + np.concatenate([[0.0], np.cumsum(steps)]))  # of so many samples below the percentile
    upto = np.concatenate([[0.0], np.cumsum(chance)])  # upto[i]: of fewer than below[i]
    best: tuple[int, float, int, int] | None = None
    for i in range(len(below)):  # ranks low and high hold it when low <= samples below < high
        j = int(np.searchsorted(upto, upto[i] + confidence))
        low, high = first + i, first + j
        if low < 1 or j >= len(upto) or high > n:
            continue
        candidate = (high - low, abs(upto[i] - (1 - upto[j])), low, high)  # of equal ones, that with the tails alike
        best = candidate if best is None else min(best, candidate)
    return (best[2], best[3]) if best else None


def missing(n: int, percentile: float) -> int:
    """Samples that a percentile still needs."""
    return max(0, SAMPLE_FLOORS[percentile] - n)


def jitter(values_ms: Values) -> float | None:
    """Mean difference of one sample to the next, regardless of its sign; None below two samples."""
    values = np.asarray(values_ms, np.float64)
    return float(np.abs(np.diff(values)).mean()) if values.size > 1 else None


class Ratio(NamedTuple):
    """A ratio with its interval."""

    value: float
    """The ratio itself."""
    low: float
    """Lower end of its interval."""
    high: float
    """Upper end."""


def paired_ratio(values: Values, references: Values) -> Ratio:
    """Median of the ratios of values that were measured in turns with their references; the interval by order statistics.

    Where each turn puts the two in a random order and both are alike, each ratio is above 1 as often as below it, however
    a disturbance of the machine lasts or wanders: the interval then misses 1 as seldom as its confidence says.
    """
    ratios = np.sort(np.asarray(values, np.float64) / np.asarray(references, np.float64))
    ranks = order_ranks(len(ratios), 50)
    low, high = (ratios[ranks[0] - 1], ratios[ranks[1] - 1]) if ranks else (0.0, math.inf)
    return Ratio(float(np.median(ratios)), float(low), float(high))


def bootstrap_ratio(
    values: Values, references: Values, percentile: float = 50, *, block: int = 1, draws: int = 1000
) -> Ratio:
    """Ratio of a percentile of one series to that of another, measured apart; the interval by resampling (Efron 1979).

    Args:
        values: the one series, in the order of time.
        references: the other.
        percentile: which one.
        block: samples that are drawn together, as neighbours in time resemble each other (H. R. Kuensch 1989).
        draws: resamplings.
    """
    rng = np.random.default_rng(0)
    above, below = np.asarray(values, np.float64), np.asarray(references, np.float64)
    drawn = [_resampled(series, percentile, block, draws, rng) for series in (above, below)]
    low, high = np.percentile(drawn[0] / drawn[1], [50 * (1 - CONFIDENCE), 50 * (1 + CONFIDENCE)])
    return Ratio(float(np.percentile(above, percentile) / np.percentile(below, percentile)), float(low), float(high))


def _resampled(
    series: NDArray[np.float64], percentile: float, block: int, draws: int, rng: np.random.Generator
) -> NDArray[np.float64]:
    block = max(1, min(block, len(series)))
    starts = np.arange(len(series) - block + 1)
    pieces = -(-len(series) // block)
    found = np.empty(draws)
    for i in range(draws):
        places = (rng.choice(starts, pieces)[:, None] + np.arange(block)).ravel()[: len(series)]
        found[i] = np.percentile(series[places], percentile)
    return found


def change_point(values: Values, chance: float = 0.01) -> int:
    """Where a series changed its level for the last time; 0: nowhere.

    Pettitt's test (A. N. Pettitt, Applied Statistics 28, 1979, 126-135), which looks at ranks alone, again and again on
    what follows the change that it found.

    Args:
        values: the series, in the order of time.
        chance: with which a series without a change is said to have one.
    """
    series, start = np.asarray(values, np.float64), 0
    while (n := len(series) - start) > 3:
        _, places, counts = np.unique(series[start:], return_inverse=True, return_counts=True)
        ranks = (np.cumsum(counts) - (counts - 1) / 2)[places]  # of equal values the mean rank
        sums = np.abs(2 * np.cumsum(ranks)[:-1] - np.arange(1, n) * (n + 1))
        at = int(np.argmax(sums))
        if 2 * math.exp(-6 * float(sums[at]) ** 2 / (n**3 + n**2)) > chance:
            break
        start += at + 1
    return start


def text(figures: Mapping[str, Any], key: str, unit: str = " ms") -> str:
    """One figure of a summary in words: `1.24 ms`, or `not enough samples (120 of 662)`."""
    value, n = figures[key], int(figures["n"] or 0)
    if value is not None:
        return f"{value:.{2 if value < 100 else 0}f}{unit}"
    floor = 1 if key == "max" else SAMPLE_FLOORS[float(key[1:])]
    return f"not enough samples ({n} of {floor})"
