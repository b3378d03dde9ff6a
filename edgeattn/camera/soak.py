"""How a long run is doing, a line a minute, and its end: each figure is of that minute alone."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Mapping
from datetime import datetime
from types import TracebackType
from typing import Any

from edgeattn.camera.live import Live
from edgeattn.timing import Clock, monotonic_ns, text
from edgeattn.timing.environment import UNAVAILABLE
from edgeattn.timing.memory import memory
from edgeattn.timing.sensors import read

MINUTE_S = 60.0
KEPT = 1440
"""Latest minutes that the report holds: a day."""


class Soak:
    """Ends a run after some minutes, and measures each of them; a context manager around `Live.run`.

    It has a thread of its own: a loop that hangs in an inference is told of as well, and none waits for a sensor.
    """

    def __init__(
        self,
        live: Live,
        minutes: float,
        *,
        say: Callable[[str], object],
        minute_s: float = MINUTE_S,
        clock: Clock = monotonic_ns,
    ) -> None:
        """Describe it.

        Args:
            live: what runs.
            minutes: after how many it ends.
            say: takes the lines.
            minute_s: how long a minute is.
            clock: that of the run.
        """
        self.minutes: deque[dict[str, Any]] = deque(maxlen=KEPT)
        """The minutes so far; the last one may be shorter (`seconds`)."""
        self._live, self._say, self._clock = live, say, clock
        self._total_s, self._minute_s = minutes * minute_s, minute_s
        self._ending = threading.Event()
        self._thread = threading.Thread(target=self._run, name="soak", daemon=True)

    def __enter__(self) -> Soak:
        self._began_ns = self._since_ns = self._clock()
        self._before = self._counts()
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ending.set()
        self._thread.join()

    def _run(self) -> None:
        done, left_s = 0, self._total_s
        while left_s > 0 and not self._ending.wait(min(self._minute_s, left_s) - self._into_s(done)):
            done += 1
            left_s = self._total_s - done * self._minute_s
            self._add()
        if self._ending.is_set():
            self._add()
        else:
            self._live.stop()

    def _into_s(self, done: int) -> float:
        """How far the minute after the first `done` has come."""
        return (self._clock() - self._began_ns) / 1e9 - done * self._minute_s

    def _add(self) -> None:
        """Measure the minute that is over now."""
        now_ns, counts = self._clock(), self._counts()
        seconds = (now_ns - self._since_ns) / 1e9
        told = {name: counts[name] - self._before[name] for name in counts}
        if seconds <= 0.01 * self._minute_s:
            return
        minute = {
            "minute": self.minutes[-1]["minute"] + 1 if self.minutes else 1,
            "time": datetime.now().astimezone().isoformat(timespec="seconds"),
            "seconds": round(seconds, 3),
            **told,
            "fps": round(told["frames"] / seconds, 2),
            **self._live.record.latest(told["frames"]),
            **machine(),
        }
        self._since_ns, self._before = now_ns, counts
        self.minutes.append(minute)
        self._say(line(minute))

    def _counts(self) -> dict[str, int]:
        record, statuses = self._live.record, self._live.pipeline.statuses
        dropped = sum(sum((status.drops or {}).values()) for status in statuses) if statuses else record.dropped
        return {
            "frames": record.frames,
            "dropped": dropped,
            "reconnects": sum(status.reconnects for status in statuses),
        }


def machine() -> dict[str, float | str]:
    """What this process and its machine are like now; what cannot be read is `"unavailable"`."""
    sensors = read()
    return {
        "rss_mb": memory()["rss_mb"],
        "hottest_c": max(sensors.temperatures_c.values(), default=UNAVAILABLE),
        "frequency_mhz": UNAVAILABLE if sensors.frequency_mhz is None else round(sensors.frequency_mhz),
    }


def line(minute: Mapping[str, Any]) -> str:
    """A minute in one line for people."""
    hottest, frequency, age = minute["hottest_c"], minute["frequency_mhz"], minute["age_ms"]
    parts = [
        f"minute {minute['minute']}: {minute['fps']:.1f} fps",
        f"age p50 {text(age, 'p50')}, p99 {text(age, 'p99')}" if minute["frames"] else "no frame",
        f"{minute['rss_mb']:.1f} MB",
        f"temperature {UNAVAILABLE}" if hottest == UNAVAILABLE else f"{hottest:.0f} °C",
        f"frequency {UNAVAILABLE}" if frequency == UNAVAILABLE else f"{frequency:.0f} MHz",
        f"{minute['dropped']} dropped",
        f"{minute['reconnects']} reconnects",
    ]
    return ", ".join(parts)
