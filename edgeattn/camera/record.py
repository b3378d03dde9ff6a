"""What a run is reported by: frames, rates, ages and times, drops, and accuracy where the truth is known."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import Any, get_args

import numpy as np
from numpy.typing import NDArray

from edgeattn.camera.frame import AgeFrom
from edgeattn.camera.pipeline import Result
from edgeattn.camera.state import Status
from edgeattn.timing import NS_PER_MS, Clock, Spans, monotonic_ns, summary, text

KEPT = 1 << 15
"""Latest frames whose times are kept: 18 minutes at 30 frames a second, in constant memory."""
WAY = ("capture", "resize", "infer", "decode", "hand", "attention", "draw", "mosaic")
"""A frame's stages as they follow each other; some are measured by other threads, whenever those come to it."""
WARM_UP = 10
"""First frames that are left out of the times, at most a quarter of all."""
_RATE_OVER = 30
_NOW_OVER = 1024
_ORIGINS = get_args(AgeFrom)


class Record:
    """Counts and times of a run: `add` every result, then `report`."""

    def __init__(self, clock: Clock = monotonic_ns) -> None:
        self.frames = 0
        """Results so far."""
        self.stages = Spans(clock, KEPT)
        """Times of the stages; whoever takes the results measures here too."""
        self._figures = Spans(clock, KEPT)
        self._origins: deque[int] = deque(maxlen=KEPT)  # what the ages count from, by camera
        self._clock = clock
        self._first_ns = 0
        self._recent_ns: deque[int] = deque(maxlen=_RATE_OVER + 1)
        self._dropped: dict[int, int] = {}  # by source
        self._labelled = self._right = self._right_smoothed = 0

    def add(self, result: Result) -> None:
        """Take in a result at the moment it is ready."""
        now_ns = self._clock()
        self._first_ns = self._first_ns if self.frames else now_ns
        self._recent_ns.append(now_ns)
        self.frames += 1
        self._dropped[result.camera] = result.dropped
        for stage, ms in result.stages_ms.items():
            self.stages.record(stage, round(ms * NS_PER_MS))
        for name, ms in (("age", result.age_ms), ("infer", result.infer_ms)):
            self._figures.record(name, round(ms * NS_PER_MS))
        self._origins.append(result.camera * len(_ORIGINS) + _ORIGINS.index(result.frame.age_from))
        truth = result.frame.truth
        if truth is not None and truth.get("label") is not None:
            self._labelled += 1
            self._right += result.prediction.label == truth["label"]
            self._right_smoothed += result.smoothed.label == truth["label"]

    @property
    def fps(self) -> float | None:
        """Frames a second from the first result to the last; None before the second."""
        return _rate(self.frames, self._first_ns, self._recent_ns[-1]) if self.frames > 1 else None

    @property
    def fps_now(self) -> float | None:
        """Frames a second over the latest results."""
        recent = tuple(self._recent_ns)
        return _rate(len(recent), recent[0], recent[-1]) if len(recent) > 1 else None

    @property
    def silent_s(self) -> float | None:
        """Seconds since the latest result; None before the first."""
        return (self._clock() - self._recent_ns[-1]) / 1e9 if self.frames else None

    @property
    def dropped(self) -> int:
        """Frames that were not used."""
        return sum(self._dropped.values())

    def report(self, statuses: Sequence[Status] = ()) -> dict[str, Any]:
        """The run's figures as plain JSON values; a percentile below its floor of samples is None.

        Args:
            statuses: how the live sources were in the end.
        """
        age_ms, infer_ms = (self._steady(self._figures, name) for name in ("age", "infer"))
        kept, age_from = self._of_one_origin(len(age_ms))
        overhead_ms = (age_ms - infer_ms)[kept]
        return {
            "frames": self.frames,
            "fps": self.fps,
            "age_ms": summary(age_ms[kept]),
            "infer_ms": summary(infer_ms),
            "age_from": age_from,
            "overhead_ms_p50": float(np.median(overhead_ms)) if overhead_ms.size else None,
            "warmup_frames": self._warm_up(),
            "dropped": self.dropped,
            "reconnects": sum(status.reconnects for status in statuses),
            "source_status": statuses[0].report() if len(statuses) == 1 else None,
            "stages_ms": {stage: summary(self._steady(self.stages, stage)) for stage in self._stages()},
            "labelled_frames": self._labelled,
            "accuracy": self._right / self._labelled if self._labelled else None,
            "accuracy_smoothed": self._right_smoothed / self._labelled if self._labelled else None,
        }

    def _stages(self) -> list[str]:
        """What was measured, in the order of a frame's way."""
        return sorted(self.stages.stages, key=lambda stage: WAY.index(stage) if stage in WAY else len(WAY))

    def now(self) -> dict[str, Any]:
        """What is seen while it runs: figures over the latest frames; any thread may ask."""
        return {
            "frames": self.frames,
            "fps": self.fps_now,
            **self.latest(_NOW_OVER),
            "age_from": self._of_one_origin(_NOW_OVER)[1],
            "stages_ms": {s: summary(self.stages.values_ms(s)[-_NOW_OVER:], (50,))["p50"] for s in self._stages()},
            "dropped": self.dropped,
            "silent_s": self.silent_s,
        }

    def latest(self, frames: int) -> dict[str, Any]:
        """Ages and times of inference over that many latest frames, as far as they are kept; any thread may ask."""
        kept, _ = self._of_one_origin(frames)
        return {
            "age_ms": summary(self._figures.values_ms("age")[-len(kept) :][kept] if len(kept) else ()),
            "infer_ms": summary(self._figures.values_ms("infer")[-frames:] if frames else ()),
        }

    def _of_one_origin(self, frames: int) -> tuple[NDArray[np.bool_], str | None]:
        """Which of the latest frames' ages count, and from what, see `MEANING`; None: there are no frames.

        An RTSP camera tells its time only after some seconds: of each camera those count that count as most of them do.
        """
        codes = np.array(tuple(self._origins)[-frames:] if frames > 0 else (), int)
        found, counts = np.unique(codes, return_counts=True)
        most = {int(code) // len(_ORIGINS): int(code) for code in found[np.argsort(counts, kind="stable")]}
        origins = {_ORIGINS[code % len(_ORIGINS)] for code in most.values()}
        return np.isin(codes, list(most.values())), "mixed" if len(origins) > 1 else next(iter(origins), None)

    def _warm_up(self) -> int:
        return min(WARM_UP, self.frames // 4)

    def _steady(self, spans: Spans, name: str) -> NDArray[np.float64]:
        """Times without the warm-up, which a full ring has already lost."""
        return spans.values_ms(name)[self._warm_up() if spans.count(name) <= KEPT else 0 :]


def sentence(report: dict[str, Any]) -> str:
    """A report in one line for people."""
    age, infer = report["age_ms"], report["infer_ms"]
    parts = [f"{report['frames']} frames"]
    if report["fps"] is not None:
        parts.append(f"{report['fps']:.1f} fps")
    if report["frames"]:
        parts += [
            f"age p50 {text(age, 'p50')}, p99 {text(age, 'p99')} ({MEANING[report['age_from']]})",
            f"inference p50 {text(infer, 'p50')}",
            f"{report['dropped']} dropped",
        ]
    if (status := report["source_status"]) is not None:
        parts += [f"{status[name]} {name}" for name in ("stalls", "reconnects", "damaged") if status[name]]
    if report["accuracy"] is not None:
        parts.append(
            f"accuracy {100 * report['accuracy']:.1f} % ({100 * report['accuracy_smoothed']:.1f} % smoothed) "
            f"over {report['labelled_frames']} labelled frames"
        )
    return ", ".join(parts)


MEANING = {
    "kernel": "from the kernel's stamp",
    "sender": "from the sender's stamp",
    "due": "from when a frame was due",
    "received": "from when a frame was received: excludes camera and network",
    "mixed": "from another moment for each source",
}
"""What an age counts from, in words, by `age_from`."""


def _rate(events: int, first_ns: int, last_ns: int) -> float | None:
    """Events a second: there is one interval fewer than events."""
    return (events - 1) * 1e9 / (last_ns - first_ns) if last_ns > first_ns else None
