"""What a source gives: frames with the moment of their capture."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Literal, Protocol, runtime_checkable

from edgeattn.imaging import Picture

AgeFrom = Literal["kernel", "sender", "due", "received"]
OLDEST_NS = 2_000_000_000
"""A stamp from further back is of another clock."""


@dataclass(frozen=True)
class Frame:
    """One picture and the moment it was taken."""

    picture: Picture
    """(H, W, 3) bytes in BGR."""
    index: int
    """Place in the source, from 0; a gap is a dropped frame."""
    captured_ns: int
    """Moment of capture on the monotonic clock."""
    age_from: AgeFrom
    """Whose time it is: `kernel` (a local camera's driver: excludes the camera's own exposure), `sender` (an RTSP camera's
    own clock, as right as that is), `due` (a replayed video's), `received` (come to us: excludes camera and network)."""
    truth: Mapping[str, Any] | None = None
    """What a labelled video says about this frame: `label`, None where it shows nothing of any class."""


class Source(Protocol):
    """Gives frames: a context manager and an iterable, both for one thread."""

    name: str
    """What to call it in messages; holds no password."""
    live: bool
    """True: frames come at their own pace and are worth most when fresh; False: every one of them counts."""
    fps: float | None
    """Frames a second as the source says; None: unknown. Set once it is open."""

    def __enter__(self) -> Source: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...

    def __iter__(self) -> Iterator[Frame]: ...


class Interrupt:
    """Called by any thread, it ends what another one waits for: a camera that is being opened, or that is silent."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._ends: list[Callable[[], object]] = []
        self._called = False

    def __call__(self) -> None:
        """End what waits, and from now on whatever begins to."""
        with self._lock:
            self._called, ends = True, tuple(self._ends)
        for end in ends:
            end()

    def add(self, end: Callable[[], object]) -> None:
        """Let it end something by a call; at once, if it was called already."""
        with self._lock:
            self._ends.append(end)
            called = self._called
        if called:
            end()

    def remove(self, end: Callable[[], object]) -> None:
        """That waits no more."""
        with self._lock:
            self._ends.remove(end)


class Connection(Protocol):
    """An open camera or stream, for one thread; it never recovers from an error: open another one."""

    fps: float | None
    """Frames a second as the camera says; None: unknown."""
    age_from: AgeFrom
    """Whose time the latest frame's moment of capture is."""
    held: float
    """Time-outs for which it may be silent before another one is opened beside it."""

    @property
    def damaged(self) -> int:
        """Frames so far that could not be used."""

    @property
    def skipped(self) -> int:
        """Whole frames that newer ones overtook before they were decoded."""

    def read(self) -> tuple[Picture, int]:
        """Wait for the next good frame; it and the moment of its capture.

        Raises:
            SourceError: the stream ended, broke off, or was silent for too long.
        """

    def close(self) -> None:
        """Let go of the camera; by the thread that reads."""


@runtime_checkable
class Reconnecting(Source, Protocol):
    """A live source that can be opened again and again, also while an older connection hangs in its driver."""

    local: bool
    """True: on this machine, so that opening it at the start has to work; False: a network camera is waited for."""
    timeout_s: float
    """How long a connection may be silent before a new one is tried."""

    def connect(self, timeout_s: float, silent_s: float, interrupt: Interrupt) -> Connection:
        """Open within `timeout_s`; a `read` then waits for `silent_s`; `interrupt` ends either, where that is possible.

        Raises:
            SourceError: it does not open.
        """
