"""Durations of a long run in constant memory: a histogram whose error is a thousandth of the value, whatever the value."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from edgeattn.errors import ExtraMissingError
from edgeattn.timing.statistics import PERCENTILES, SAMPLE_FLOORS, Summary, order_ranks

UNIT_NS = 100
"""Resolution."""
_MOST_UNITS = 24 * 3600 * 10**9 // UNIT_NS
_PER_MS = 1_000_000 // UNIT_NS


class Histogram:
    """Counts durations (Gil Tene's HdrHistogram): 4 microseconds a record, some hundred kilobytes for any number of them."""

    def __init__(self) -> None:
        """An empty one.

        Raises:
            ExtraMissingError: the extra `long` is not installed.
        """
        try:
            from hdrh.histogram import HdrHistogram
        except ImportError as error:  # has no wheel for aarch64, so that it is no part of the base
            raise ExtraMissingError("hdrhistogram", "long", "a run of many minutes") from error
        self._counts: Any = HdrHistogram(1, _MOST_UNITS, 3)

    def __len__(self) -> int:
        return int(self._counts.get_total_count())

    def record(self, duration_ns: int) -> None:
        """Count a duration; one above a day counts as a day."""
        self._counts.record_value(min(_MOST_UNITS, max(1, round(duration_ns / UNIT_NS))))

    def at_rank(self, rank: int) -> float:
        """The duration of this rank among all, from 1, in milliseconds."""
        # In the middle of a rank, so that no rounding takes a neighbour's value.
        return float(self._counts.get_value_at_percentile(100 * (rank - 0.5) / len(self)) / _PER_MS)

    def summary(self, percentiles: Sequence[float] = (50, 90, 99)) -> Summary:
        """As `statistics.summary`, in milliseconds."""
        n = len(self)
        found: Summary = {"n": n}
        for percentile in percentiles:
            enough = n >= SAMPLE_FLOORS[percentile]
            found[f"p{percentile:g}"] = self.at_rank(1 + round((n - 1) * percentile / 100)) if enough else None
        found["max"] = self.at_rank(n) if n else None
        return found

    def intervals(self, percentiles: Sequence[float] = PERCENTILES) -> dict[str, tuple[float, float] | None]:
        """As `statistics.intervals`, in milliseconds."""
        found: dict[str, tuple[float, float] | None] = {}
        for percentile in percentiles:
            ranks = order_ranks(len(self), percentile) if len(self) >= SAMPLE_FLOORS[percentile] else None
            found[f"p{percentile:g}"] = (self.at_rank(ranks[0]), self.at_rank(ranks[1])) if ranks else None
        return found
