"""The slot of one: a thread reads a live source and keeps only its latest frame, so that none is ever queued."""

from __future__ import annotations

import atexit
import threading
import weakref
from collections.abc import Iterator
from types import TracebackType

from edgeattn.camera.source import TIMEOUT_S, Frame, Source

PATIENCE_S = 1.0
"""How long `close` waits for a reader; one that is stuck is left behind, and ends with its own time-out."""


class Slot:
    """Holds the latest frame, for one thread that puts and one that takes. Putting never waits."""

    def __init__(self) -> None:
        self.dropped = 0
        """Frames that a newer one replaced before they were taken."""
        self._changed = threading.Condition()
        self._frame: Frame | None = None
        self._ended = False
        self._error: BaseException | None = None

    def put(self, frame: Frame) -> None:
        """Replace whatever is in the slot."""
        with self._changed:
            self.dropped += self._frame is not None
            self._frame = frame
            self._changed.notify()

    def end(self, error: BaseException | None = None) -> None:
        """No frame will follow; `error` is raised where frames are taken."""
        with self._changed:
            self._ended, self._error = True, error
            self._changed.notify()

    def take(self) -> Frame | None:
        """Wait for a frame and take it out; None once the source has ended and the slot is empty."""
        with self._changed:
            self._changed.wait_for(lambda: self._frame is not None or self._ended)
            frame, self._frame = self._frame, None
            if frame is None and self._error is not None:
                raise self._error
            return frame


class Capture:
    """A live source, read by a thread of its own that opens it, reads it and releases it; iterating gives fresh frames.

    A capture is used once: a reader that hangs in the driver keeps its old slot, so it cannot disturb a new capture.
    """

    def __init__(self, source: Source) -> None:
        self.slot = Slot()
        self._source = source
        self._stop = threading.Event()
        self._opened = threading.Event()
        self._failure: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name=f"capture {source.name}", daemon=True)

    def __enter__(self) -> Capture:
        """Start reading.

        Raises:
            SourceError: the source does not open.
        """
        _started.add(self)
        self._thread.start()
        try:
            self._opened.wait()
        except BaseException:
            self._stop.set()
            raise
        if self._failure is not None:
            raise self._failure
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close(PATIENCE_S)

    def __iter__(self) -> Iterator[Frame]:
        """The latest frame each time, waiting for one that was not given yet; raises what the source raised."""
        while (frame := self.slot.take()) is not None:
            yield frame

    def close(self, patience_s: float) -> None:
        """Stop reading after the frame in hand; wait that long for it."""
        self._stop.set()
        self._thread.join(patience_s)

    def _run(self) -> None:
        try:
            with self._source as source:
                self._opened.set()
                for frame in source:
                    if self._stop.is_set():
                        break
                    self.slot.put(frame)
            self.slot.end()
        except BaseException as error:  # raised again where the frames are taken, or where the capture is opened
            if not self._opened.is_set():
                self._failure = error
            self.slot.end(error)
        finally:
            self._opened.set()


_started: weakref.WeakSet[Capture] = weakref.WeakSet()


@atexit.register
def _close_all() -> None:
    """Leaving the interpreter while a thread is inside OpenCV's `read` aborts the process: wait, reads are bounded."""
    for capture in list(_started):
        capture.close(2 * TIMEOUT_S)
