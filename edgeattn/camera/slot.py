"""The slot between the thread that reads a live source and the one that infers: which frames are taken, which dropped."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterator
from typing import Literal, get_args

from edgeattn.camera.frame import Frame

Policy = Literal["latest", "fresh", "every"]
POLICIES: tuple[Policy, ...] = get_args(Policy)
"""`latest`: the newest frame there is. `fresh`: wait for the next one, for the lowest age. `every`: all, in order."""
CAUSES = ("replaced", "stale", "rate", "backlog", "queue")
"""Why frames are dropped: a newer one came (`latest`), they came during an inference (`fresh`), sooner than `max_fps`
allows, were overtaken before they were decoded, or came too fast for too long (`every`)."""
QUEUE = 32
"""Frames of a live source that wait under `every`."""
_WAIT_S = 0.1


class Slot:
    """Holds frames, for one thread that puts and one that takes. Putting never waits."""

    def __init__(self, policy: Policy = "latest", max_fps: float | None = None) -> None:
        self.drops = dict.fromkeys(CAUSES, 0)
        """Frames that were never taken, by cause."""
        self._changed = threading.Condition()
        self._policy = policy
        self._frames: deque[Frame] = deque()
        self._pace = Pace(max_fps)
        self._ended = False
        self._error: BaseException | None = None

    @property
    def dropped(self) -> int:
        """Frames that were never taken."""
        return sum(self.drops.values())

    def put(self, frame: Frame) -> None:
        """Put in a frame, which replaces an older one where that is the policy."""
        with self._changed:
            if not self._pace.allows(frame.captured_ns):
                self.drops["rate"] += 1
                return
            if len(self._frames) == (QUEUE if self._policy == "every" else 1):
                self._frames.popleft()
                self.drops["queue" if self._policy == "every" else "replaced"] += 1
            self._frames.append(frame)
            self._changed.notify()

    def end(self, error: BaseException | None = None) -> None:
        """No frame will follow; `error` is raised where frames are taken."""
        with self._changed:
            if not self._ended:
                self._ended, self._error = True, error
                self._changed.notify()

    def take(self, waiting: Callable[[], bool] | None = None) -> Frame | None:
        """Wait for a frame and take it out; None once the source has ended and the slot is empty.

        Args:
            waiting: called ten times a second while there is none; True ends the frames.
        """
        with self._changed:
            if self._policy == "fresh" and self._frames:
                self._frames.clear()
                self.drops["stale"] += 1
        while True:
            with self._changed:
                if self._changed.wait_for(lambda: self._frames or self._ended, _WAIT_S if waiting else None):
                    break
            if waiting is not None and waiting():
                return None
        with self._changed:
            if self._frames:
                return self._frames.popleft()
            if self._error is not None:
                raise self._error
            return None

    def __iter__(self) -> Iterator[Frame]:
        """Frames as they are taken; raises what the source raised."""
        while (frame := self.take()) is not None:
            yield frame


class Pace:
    """Lets through at most `max_fps` on average: what comes up to half a period early is let through as well."""

    def __init__(self, max_fps: float | None) -> None:
        self._period_ns = 1e9 / max_fps if max_fps else 0.0
        self._due_ns = 0.0

    def allows(self, now_ns: int) -> bool:
        """Whether something may pass now."""
        if now_ns < self._due_ns - self._period_ns / 2:
            return False
        self._due_ns = max(self._due_ns, now_ns - self._period_ns / 2) + self._period_ns
        return True

    def wait_s(self, now_ns: int) -> float:
        """How long until the next may pass, in seconds."""
        return max(0.0, (self._due_ns - now_ns) / 1e9)
