"""Wall and thread time per stage: a span measures one pass of a stage, a ring per stage keeps the latest passes."""

from __future__ import annotations

from array import array
from types import TracebackType

import numpy as np
from numpy.typing import NDArray

from edgeattn.timing.clock import NS_PER_MS, Clock, monotonic_ns


class Spans:
    """Times of named stages: `with spans("resize"): ...`.

    A pass that ends in an exception is not recorded. Spans may nest, and threads may share one `Spans` as long as each
    stage is measured by one thread only. With a `thread_clock`, when each pass began and what its thread computed are
    kept too: a stage that waits, or whose work other threads do, takes more wall time than thread time.
    """

    def __init__(self, clock: Clock = monotonic_ns, capacity: int = 8192, *, thread_clock: Clock | None = None) -> None:
        self._clock, self._thread_clock = clock, thread_clock
        self._capacity = capacity
        self._rings: dict[str, _Ring] = {}

    def __call__(self, stage: str) -> _Span:
        """Measure one pass of `stage` as a context manager."""
        return _Span(self, stage, self._clock, self._thread_clock)

    def record(self, stage: str, duration_ns: int, start_ns: int = 0, thread_ns: int = 0) -> None:
        """Add a pass that was measured elsewhere."""
        ring = self._rings.get(stage)
        if ring is None:  # allocated once per stage: recording a pass then costs no memory
            ring = self._rings[stage] = _Ring(self._capacity, detailed=self._thread_clock is not None)
        place = ring.count % self._capacity
        ring.wall[place] = duration_ns
        if ring.start is not None and ring.thread is not None:
            ring.start[place], ring.thread[place] = start_ns, thread_ns
        ring.count += 1

    @property
    def stages(self) -> tuple[str, ...]:
        """Names of the stages, in the order of their first pass."""
        return tuple(self._rings)

    def count(self, stage: str) -> int:
        """Passes recorded so far, those no longer kept included."""
        return self._rings[stage].count if stage in self._rings else 0

    def values_ms(self, stage: str) -> NDArray[np.float64]:
        """Durations of the passes still kept, in milliseconds, from the oldest to the latest."""
        ring = self._rings.get(stage)
        return ring.kept(ring.wall) / NS_PER_MS if ring else np.empty(0, np.float64)

    def thread_ms(self, stage: str) -> NDArray[np.float64]:
        """What the measuring thread itself computed in each of these passes; empty without a thread clock."""
        ring = self._rings.get(stage)
        return ring.kept(ring.thread) / NS_PER_MS if ring else np.empty(0, np.float64)

    def starts_ns(self, stage: str) -> NDArray[np.int64]:
        """When each of these passes began, on the clock; empty without a thread clock."""
        ring = self._rings.get(stage)
        return ring.kept(ring.start) if ring else np.empty(0, np.int64)

    def latest_ms(self) -> dict[str, float]:
        """Duration of the latest pass of each stage, in milliseconds."""
        return {stage: ring.wall[(ring.count - 1) % self._capacity] / NS_PER_MS for stage, ring in self._rings.items()}

    def clear(self) -> None:
        """Forget all passes, as after a warm-up."""
        self._rings.clear()


class _Ring:
    """The latest passes of one stage."""

    __slots__ = ("count", "start", "thread", "wall")

    def __init__(self, capacity: int, *, detailed: bool) -> None:
        # Of plain integers: setting an element of a numpy array takes three times as long.
        self.wall = array("q", bytes(8 * capacity))
        self.start = array("q", bytes(8 * capacity)) if detailed else None
        self.thread = array("q", bytes(8 * capacity)) if detailed else None
        self.count = 0

    def kept(self, values: array[int] | None) -> NDArray[np.int64]:
        """A copy of what is kept, from the oldest to the latest."""
        if values is None:
            return np.empty(0, np.int64)
        held, count = np.frombuffer(values, np.int64), self.count
        return held[:count].copy() if count <= len(held) else np.roll(held, -(count % len(held)))


class _Span:
    __slots__ = ("_clock", "_spans", "_stage", "_start_ns", "_thread_clock", "_thread_ns")

    def __init__(self, spans: Spans, stage: str, clock: Clock, thread_clock: Clock | None) -> None:
        self._spans, self._stage, self._clock, self._thread_clock = spans, stage, clock, thread_clock
        self._start_ns = self._thread_ns = 0

    def __enter__(self) -> None:
        if self._thread_clock is not None:
            self._thread_ns = self._thread_clock()
        self._start_ns = self._clock()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        end_ns = self._clock()
        if kind is None:
            thread_ns = self._thread_clock() - self._thread_ns if self._thread_clock is not None else 0
            self._spans.record(self._stage, end_ns - self._start_ns, self._start_ns, thread_ns)
