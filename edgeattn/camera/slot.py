"""The slot between the thread that reads a live source and the one that infers: which frames are taken, which dropped."""

from __future__ import annotations

import statistics
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from typing import Literal, get_args

from edgeattn.camera.frame import Frame
from edgeattn.timing import Clock, monotonic_ns

Policy = Literal["latest", "fresh", "every"]
POLICIES: tuple[Policy, ...] = get_args(Policy)
"""`latest`: the newest frame there is, or the next one where that is all but there. `fresh`: wait for the next one, for the
lowest age. `every`: all, in order."""
CAUSES = ("replaced", "stale", "rate", "backlog", "queue", "crop")
"""Why frames are dropped: a newer one came (`latest`), they came during an inference (`fresh`), sooner than `max_fps`
allows, were overtaken before they were decoded, came too fast for too long (`every`), or were too small for the crop."""
QUEUE = 32
"""Frames of a live source that wait under `every`."""
_WAIT_S = 0.1
_INTERVALS = 8
_EARLY, _LATE = 1 / 6, 1 / 12  # of a period


class Slot:
    """Holds one source's frames, between a thread that puts and one that takes. Putting never waits."""

    def __init__(
        self,
        policy: Policy = "latest",
        max_fps: float | None = None,
        changed: threading.Condition | None = None,
        clock: Clock = monotonic_ns,
    ) -> None:
        """Describe it; slots that one thread takes from in turn share `changed`, which guards them."""
        self.drops = dict.fromkeys(CAUSES, 0)
        """Frames that were never taken, by cause."""
        self.policy: Policy = policy
        """Which frames are taken."""
        self.changed = changed or threading.Condition()
        """Wakes whoever takes."""
        self.frames: deque[Frame] = deque()
        """What may be taken, while `changed` is held."""
        self.ended = False
        """No frame will follow."""
        self.error: BaseException | None = None
        """Why, where that is an error."""
        self._pace, self._rhythm, self._clock = Pace(max_fps), Rhythm(), clock

    @property
    def dropped(self) -> int:
        """Frames that were never taken."""
        return sum(self.drops.values())

    def put(self, frame: Frame) -> None:
        """Put in a frame, which replaces an older one where that is the policy."""
        with self.changed:
            if not self._pace.allows(frame.captured_ns):
                self.drops["rate"] += 1
                return
            if len(self.frames) == (QUEUE if self.policy == "every" else 1):
                self.frames.popleft()
                self.drops["queue" if self.policy == "every" else "replaced"] += 1
            self.frames.append(frame)
            self._rhythm.came(self._clock())
            self.changed.notify()

    def wait_for_next(self) -> None:
        """While `changed` is held and there is a frame: where the next one is all but there, wait for that one."""
        if self.policy == "latest" and (wait_s := self._rhythm.patience_s(self._clock())):
            in_hand = self.frames[-1]
            self.changed.wait_for(lambda: self.ended or self.frames[-1] is not in_hand, wait_s)

    def end(self, error: BaseException | None = None) -> None:
        """No frame will follow; `error` is raised where frames are taken."""
        with self.changed:
            if not self.ended:
                self.ended, self.error = True, error
                self.changed.notify()

    def take(self, waiting: Callable[[], bool] | None = None) -> Frame | None:
        """Wait for a frame and take it out, see `Turns.take`."""
        taken = Turns((self,)).take(waiting)
        return taken[1] if taken else None

    def __iter__(self) -> Iterator[Frame]:
        """Frames as they are taken; raises what the source raised."""
        while (frame := self.take()) is not None:
            yield frame


class Turns:
    """Takes frames out of one slot or several, which have turns: each once a round, as far as it has one in time."""

    def __init__(self, slots: Sequence[Slot]) -> None:
        """Take from these, which share their `changed`."""
        self._slots, self._changed = slots, slots[0].changed
        self._had: set[int] = set()  # those that had their turn in this round
        self._late: set[int] = set()  # those that missed theirs, and are not waited for until they have a frame again

    def take(self, waiting: Callable[[], bool] | None = None) -> tuple[int, Frame] | None:
        """Wait for a frame and take it out, with the place of its slot; None once all have ended and are empty.

        Args:
            waiting: called ten times a second while there is none; True ends the frames.

        Raises:
            Exception: what ended the last of the sources, if that was an error.
        """
        with self._changed:
            for at, slot in enumerate(self._slots):
                if slot.policy == "fresh" and slot.frames:
                    slot.drops["stale"] += len(slot.frames)
                    slot.frames.clear()
                    self._late.discard(at)
        while True:
            with self._changed:
                several = len(self._slots) > 1
                self._changed.wait_for(self._next_or_end, _WAIT_S if waiting or several else None)
                place = self._next()
                if place is None:
                    self._late.update(set(range(len(self._slots))) - self._had)
                    place = self._next()
                if place is not None:
                    self._had.add(place)
                    self._late.discard(place)
                    if not several:
                        self._slots[place].wait_for_next()
                    return place, self._slots[place].frames.popleft()
                if all(slot.ended for slot in self._slots):
                    errors = [slot.error for slot in self._slots if slot.error is not None]
                    if errors:
                        raise errors[-1]
                    return None
            if waiting is not None and waiting():
                return None

    def _next(self) -> int | None:
        """The next slot in turn that holds a frame."""
        if len(self._had | self._late) == len(self._slots):
            self._had.clear()
        ready = [place for place, slot in enumerate(self._slots) if slot.frames and place not in self._had]
        return ready[0] if ready else None

    def _next_or_end(self) -> bool:
        if all(slot.ended for slot in self._slots):
            return True
        if self._slots[0].policy != "fresh":  # a frame in hand is better than a fair one to come
            return any(slot.frames for slot in self._slots)
        return self._next() is not None


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


class Rhythm:
    """Tells when a frame is all but there, by the median of the last intervals.

    An inference that begins with the frame in hand, a moment before the next one comes, gives a result that is older by
    nearly a period; that moment costs it less. At 60 ms an inference ages without it fell from 21 ms to 8, at 30 fps.
    """

    def __init__(self) -> None:
        self._came: deque[int] = deque(maxlen=_INTERVALS + 1)

    def came(self, now_ns: int) -> None:
        """Note that a frame came."""
        self._came.append(now_ns)

    def patience_s(self, now_ns: int) -> float:
        """How long to wait at most for a frame that is due within a sixth of a period, or late by less than a twelfth; else 0."""
        if len(self._came) <= _INTERVALS:
            return 0.0
        period_ns = statistics.median(after - before for before, after in pairwise(self._came))
        left_ns = self._came[-1] + period_ns - now_ns
        if not -_LATE * period_ns < left_ns <= _EARLY * period_ns:
            return 0.0
        return (left_ns + _LATE * period_ns) / 1e9
