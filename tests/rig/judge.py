"""What a loop really shows, by the clock that the camera burned into its frames: ages, rate, and how long a fault cost."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterable, Iterator
from typing import NamedTuple

import numpy as np
from remote import Fault
from stamps import Stamp, read_stamp


class Sight(NamedTuple):
    """One frame at the moment that its result was ready."""

    ns: int
    stamp: Stamp | None
    """None: the picture was damaged."""
    size: tuple[int, int]
    """Width and height."""


class Judge:
    """Is shown each frame when its result is ready, by any thread."""

    def __init__(self) -> None:
        self.sights: list[Sight] = []
        self.error: BaseException | None = None
        """What ended the frames, see `watching`."""
        self._seen = threading.Condition()

    def show(self, picture: np.ndarray) -> None:
        now_ns = time.monotonic_ns()
        sight = Sight(now_ns, read_stamp(picture), (picture.shape[1], picture.shape[0]))
        with self._seen:
            self.sights.append(sight)
            self._seen.notify_all()

    @property
    def good(self) -> list[tuple[int, Stamp]]:
        """When each undamaged frame was shown, and its stamp."""
        return [(sight.ns, sight.stamp) for sight in list(self.sights) if sight.stamp is not None]

    @property
    def ages_ms(self) -> list[float]:
        return [(ns - stamp.ns) / 1e6 for ns, stamp in self.good]

    def report(self, skip: int = 0) -> dict[str, float]:
        """Figures of all frames but the first few."""
        good = self.good[skip:]
        ages_ms = self.ages_ms[skip:]
        return {
            "frames": len(good),
            "damaged": len(self.sights) - len(self.good),
            "fps": (len(good) - 1) / ((good[-1][0] - good[0][0]) / 1e9),  # n frames are n - 1 periods
            "age_p50_ms": float(np.percentile(ages_ms, 50)),
            "age_p99_ms": float(np.percentile(ages_ms, 99)),
            "age_max_ms": max(ages_ms),
        }

    def recovery_ms(self, fault: Fault) -> float | None:
        """From when the camera was well again to the result of a frame that it took after that; None: not yet."""
        return next(
            ((ns - fault.ended_ns) / 1e6 for ns, stamp in self.good if stamp.ns >= fault.ended_ns),
            None,
        )

    def wait_for_recovery(self, fault: Fault, timeout_s: float) -> float:
        """`recovery_ms` as soon as there is one; frames come from another thread.

        Raises:
            TimeoutError: there is none, that long after the camera was well.
        """
        left_s = (fault.ended_ns - time.monotonic_ns()) / 1e9 + timeout_s
        with self._seen:
            self._seen.wait_for(lambda: self._is_new(fault) or self.error is not None, left_s)
        if (found := self.recovery_ms(fault)) is None:
            raise TimeoutError(f"no good frame {timeout_s:g} s after {fault.name}: {self.error or 'still waiting'}")
        return found

    def wait_for(self, frames: int, timeout_s: float = 10.0) -> None:
        """Wait until that many frames were shown in all."""
        with self._seen:
            if not self._seen.wait_for(lambda: len(self.sights) >= frames or self.error is not None, timeout_s):
                raise TimeoutError(f"{len(self.sights)} of {frames} frames after {timeout_s:g} s")

    def wait_for_end(self, timeout_s: float) -> None:
        """Wait until the frames end, see `watching`."""
        with self._seen:
            self._seen.wait_for(lambda: self.error is not None, timeout_s)

    def follow(self, pictures: Iterable[np.ndarray]) -> None:
        """Be shown each of these as it comes."""
        try:
            for picture in pictures:
                self.show(picture)
        except BaseException as error:  # kept for whoever waits
            self.error = error
        with self._seen:
            self.error = self.error or EOFError("the frames ended")
            self._seen.notify_all()

    def _is_new(self, fault: Fault) -> bool:
        stamp = self.sights[-1].stamp if self.sights else None
        return stamp is not None and stamp.ns >= fault.ended_ns


@contextlib.contextmanager
def watching(pictures: Iterable[np.ndarray]) -> Iterator[Judge]:
    """A judge that follows an iterator of pictures on a thread of its own, which is not waited for in the end."""
    judge = Judge()
    threading.Thread(target=judge.follow, args=(pictures,), name="judge", daemon=True).start()
    yield judge
