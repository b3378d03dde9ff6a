"""Wall time per stage: a span measures one pass of a stage, a ring per stage keeps the latest passes."""

from __future__ import annotations

from types import TracebackType

import numpy as np
from numpy.typing import NDArray

from edgeattn.timing.clock import NS_PER_MS, Clock, monotonic_ns


class Spans:
    """Times of named stages: `with spans("resize"): ...`.

    A pass that ends in an exception is not recorded. Spans may nest, and threads may share one `Spans` as long as each
    stage is measured by one thread only.
    """

    def __init__(self, clock: Clock = monotonic_ns, capacity: int = 8192) -> None:
        self._clock = clock
        self._capacity = capacity
        self._rings: dict[str, NDArray[np.int64]] = {}
        self._counts: dict[str, int] = {}

    def __call__(self, stage: str) -> _Span:
        """Measure one pass of `stage` as a context manager."""
        return _Span(self, stage, self._clock)

    def record(self, stage: str, duration_ns: int) -> None:
        """Add a pass that was measured elsewhere."""
        if stage not in self._rings:  # allocated once per stage: recording a pass then costs no memory
            self._counts[stage] = 0
            self._rings[stage] = np.zeros(self._capacity, np.int64)
        count = self._counts[stage]
        self._rings[stage][count % self._capacity] = duration_ns
        self._counts[stage] = count + 1

    @property
    def stages(self) -> tuple[str, ...]:
        """Names of the stages, in the order of their first pass."""
        return tuple(self._rings)

    def count(self, stage: str) -> int:
        """Passes recorded so far, those no longer kept included."""
        return self._counts.get(stage, 0)

    def values_ms(self, stage: str) -> NDArray[np.float64]:
        """Durations of the passes still kept, in milliseconds, from the oldest to the latest."""
        count = self.count(stage)
        if count == 0:
            return np.empty(0, np.float64)
        ring = self._rings[stage]
        kept = ring[:count] if count <= self._capacity else np.roll(ring, -(count % self._capacity))
        return kept / NS_PER_MS

    def latest_ms(self) -> dict[str, float]:
        """Duration of the latest pass of each stage, in milliseconds."""
        return {
            stage: float(ring[(self._counts[stage] - 1) % self._capacity]) / NS_PER_MS
            for stage, ring in self._rings.items()
        }

    def clear(self) -> None:
        """Forget all passes, as after a warm-up."""
        self._rings.clear()
        self._counts.clear()


class _Span:
    __slots__ = ("_clock", "_spans", "_stage", "_start_ns")

    def __init__(self, spans: Spans, stage: str, clock: Clock) -> None:
        self._spans, self._stage, self._clock = spans, stage, clock
        self._start_ns = 0

    def __enter__(self) -> None:
        self._start_ns = self._clock()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        end_ns = self._clock()
        if kind is None:
            self._spans.record(self._stage, end_ns - self._start_ns)
