"""From the loop to whoever takes its results: handing over never waits for a slow screen, browser or disk."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from typing import Any

from edgeattn.camera.canvas import Painting
from edgeattn.camera.sinks import Sink
from edgeattn.timing import Spans

PATIENCE_S = 5.0
"""How long closing waits for a sink to write what it was given."""


class Waiting:
    """Paintings on the way to one taker, at most `room`: a newer one replaces the oldest.

    With `lossless`, for sources that are not live, putting waits for room instead.
    """

    def __init__(self, room: int, *, lossless: bool = False) -> None:
        self.dropped = 0
        """Paintings that a newer one replaced before they were taken."""
        self._room, self._lossless = room, lossless
        self._queue: deque[Painting] = deque()
        self._changed = threading.Condition()
        self._ended = False

    def put(self, painting: Painting) -> None:
        """Hand over; after the end it is dropped."""
        with self._changed:
            if self._lossless:
                self._changed.wait_for(lambda: len(self._queue) < self._room or self._ended)
            elif len(self._queue) == self._room:
                self._queue.popleft()
                self.dropped += 1
            if self._ended:
                self.dropped += 1
            else:
                self._queue.append(painting)
                self._changed.notify_all()

    def take(self, timeout_s: float | None = None) -> Painting | None:
        """Wait for the oldest and take it out; None once the end has come and all are taken, or after the time-out."""
        with self._changed:
            self._changed.wait_for(lambda: self._queue or self._ended, timeout_s)
            painting = self._queue.popleft() if self._queue else None
            self._changed.notify_all()
            return painting

    def end(self, *, discard: bool = False) -> None:
        """Nothing will follow; with `discard` what waits counts as dropped."""
        with self._changed:
            self._ended = True
            if discard:
                self.dropped += len(self._queue)
                self._queue.clear()
            self._changed.notify_all()

    @property
    def over(self) -> bool:
        """The end has come, and all are taken."""
        with self._changed:
            return self._ended and not self._queue


class Feed:
    """A sink in a thread of its own. One that raises is reported and closed; the loop goes on."""

    def __init__(self, sink: Sink, *, lossless: bool, spans: Spans, say: Callable[[str], object]) -> None:
        self.sink = sink
        """Where the results go."""
        self.written = 0
        """Results that the sink took."""
        self.error: Exception | None = None
        """What the sink raised."""
        self._waiting = Waiting(sink.waiting, lossless=lossless)
        self._spans, self._say = spans, say
        self._thread = threading.Thread(target=self._run, name=f"sink {sink.name}", daemon=True)
        self._thread.start()

    def put(self, painting: Painting) -> None:
        """Hand over a result."""
        self._waiting.put(painting)

    @property
    def dropped(self) -> int:
        """Results that the sink was too slow for, or that came after it failed."""
        return self._waiting.dropped

    def report(self) -> dict[str, Any]:
        """What became of the results, as plain JSON values, with the sink's own figures where it has any."""
        counts = {"written": self.written, "dropped": self.dropped, "failed": self.error is not None}
        figures = getattr(self.sink, "figures", dict)
        return {"name": self.sink.name, **counts, **figures()}

    def close(self) -> None:
        """Let the sink write what waits for it, and close it; one that is stuck is left behind."""
        self._waiting.end()
        self._thread.join(PATIENCE_S)

    def _run(self) -> None:
        try:
            while (painting := self._waiting.take()) is not None:
                draws = self.sink.draws
                if draws is None:
                    continue
                picture = None if draws == "nothing" else painting.picture(draws)
                with self._spans(f"write_{self.sink.name}"):
                    self.sink.write(painting.result, picture)
                self.written += 1
        except Exception as error:
            self._fail(error)
        try:
            self.sink.close()
        except Exception as error:
            self._fail(error)

    def _fail(self, error: Exception) -> None:
        if self.error is None:
            self.error = error
            self._waiting.end(discard=True)
            if not isinstance(error, BrokenPipeError):  # the reader of our output has left: that is no news to anybody
                self._say(f"{self.sink.name} stopped: {error or type(error).__name__}")
