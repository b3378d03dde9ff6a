"""The thread that reads a live source into a slot, until it ends: a camera, which is reconnected, has a `watch.Watch`."""

from __future__ import annotations

import atexit
import threading
import weakref
from types import TracebackType
from typing import Protocol

from edgeattn.camera.frame import Source
from edgeattn.camera.slot import Policy, Slot
from edgeattn.camera.state import Change, Status
from edgeattn.timing import monotonic_ns

PATIENCE_S = 0.1
"""How long `close` waits for a reader; one that is stuck is left behind, and ends with its own time-out."""
_AT_EXIT_S = 10.0


class Capture:
    """Reads a live source that is not reconnected: it is opened, read and released by a thread of its own.

    A capture is used once: a reader that hangs in the driver keeps its old slot, so it cannot disturb a new capture.
    """

    def __init__(
        self,
        source: Source,
        policy: Policy = "latest",
        max_fps: float | None = None,
        *,
        changed: threading.Condition | None = None,
    ) -> None:
        self.slot = Slot(policy, max_fps, changed)
        self._source = source
        self._changes = [Change("connecting", monotonic_ns())]
        self._size: tuple[int, int] | None = None
        self._stop = threading.Event()
        self._opened = threading.Event()
        self._failure: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name=f"capture {source.name}", daemon=True)

    @property
    def status(self) -> Status:
        """How it is doing, for any thread."""
        return Status(tuple(self._changes), drops=dict(self.slot.drops), size=self._size)

    @property
    def dropped(self) -> int:
        """Good frames that were not used."""
        return self.slot.dropped

    def __enter__(self) -> Capture:
        """Start reading.

        Raises:
            SourceError: the source does not open.
        """
        close_at_exit(self)
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

    def stop(self) -> None:
        """Stop reading after the frame in hand."""
        self._stop.set()

    def close(self, patience_s: float) -> None:
        """Stop reading after the frame in hand; wait that long for it."""
        self.stop()
        self._thread.join(patience_s)

    def _run(self) -> None:
        try:
            with self._source as source:
                self._opened.set()
                for frame in source:
                    if self._stop.is_set():
                        break
                    if self._size is None:
                        self._changes.append(Change("live", monotonic_ns()))
                    self._size = (frame.picture.shape[1], frame.picture.shape[0])
                    self.slot.put(frame)
            self.slot.end()
        except BaseException as error:  # raised again where the frames are taken, or where the capture is opened
            if not self._opened.is_set():
                self._failure = error
            self.slot.end(error)
        finally:
            self._opened.set()


class Closes(Protocol):
    """What reads in threads of its own."""

    def close(self, patience_s: float) -> None:
        """Stop reading; wait that long for the threads."""


_started: weakref.WeakSet[Closes] = weakref.WeakSet()


def close_at_exit(reader: Closes) -> None:
    """Close it before the interpreter ends, at the latest.

    Leaving while a thread is inside OpenCV's `read` aborts the process: it is waited for, reads are bounded.
    """
    _started.add(reader)


@atexit.register
def _close_all() -> None:
    for each in list(_started):
        each.close(_AT_EXIT_S)
