"""What is told of results, as JSON: every frame, or the changes of the answer that have held."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from edgeattn.camera.pipeline import Result
from edgeattn.errors import EdgeAttnError
from edgeattn.tasks import Classification, told
from edgeattn.timing import Clock, monotonic_ns

Tell = Callable[[Result], dict[str, Any] | None]
"""Plain JSON values that a result is worth; None: nothing is to be told."""


def frame_line(result: Result) -> dict[str, Any]:
    """A frame: its answer, a class, boxes or regions, and its times."""
    steady = {"smoothed": result.smoothed.label} if isinstance(result.prediction, Classification) else {}
    return {
        "index": result.frame.index,
        "captured_ns": result.frame.captured_ns,
        "age_from": result.frame.age_from,
        "age_ms": round(result.age_ms, 3),
        "infer_ms": round(result.infer_ms, 3),
        **told(result.prediction),
        **steady,
        "dropped": result.dropped,
        "camera": result.camera,
        "truth": result.frame.truth,
    }


@dataclass(frozen=True)
class _Answer:
    label: str
    index: int
    """Of its first frame."""
    since_s: float
    """Moment of its first frame."""


class Changes:
    """Tells when the smoothed answer of a camera has changed and held; "none of these" is an answer too, and a detector's or a
    segmenter's is the kinds of things that it finds.

    An answer that goes before it has held is never told. The first one that holds comes from None.
    """

    def __init__(self, hold_s: float, *, fps: float | None = None, clock: Clock = monotonic_ns) -> None:
        """Describe it.

        Args:
            hold_s: how long an answer must hold, in seconds.
            fps: of a file, whose time is that of its frames; None: live, by the moments of capture.
            clock: that of the source.

        Raises:
            EdgeAttnError: the time is negative.
        """
        if hold_s < 0:
            raise EdgeAttnError(f"an answer cannot hold for {hold_s:g} seconds; give 0 or more, as --on-change 0.5")
        self._hold_s, self._fps, self._clock = hold_s, fps, clock
        self._told: dict[int, _Answer] = {}  # by camera
        self._new: dict[int, _Answer] = {}

    def __call__(self, result: Result) -> dict[str, Any] | None:
        """The change that this result completes; None: there is none."""
        answer, frame, camera = result.smoothed, result.frame, result.camera
        now_s = frame.index / self._fps if self._fps else frame.captured_ns / 1e9
        before, new = self._told.get(camera), self._new.get(camera)
        if before is not None and answer.label == before.label:
            self._new.pop(camera, None)
            return None
        if new is None or new.label != answer.label:
            new = self._new[camera] = _Answer(answer.label, frame.index, now_s)
        held_s = now_s - new.since_s
        if held_s < self._hold_s:
            return None
        self._told[camera] = self._new.pop(camera)
        since_s = new.since_s
        ago_s = (self._clock() - frame.captured_ns) / 1e9 + held_s
        began = {"at_s": round(since_s, 3)} if self._fps else {"time": _wall(ago_s)}
        return began | {
            "from": before.label if before else None,
            "to": answer.label,
            "rejected": answer.rejected,
            "score": round(answer.score, 4),
            "held_s": round(held_s, 3),
            "before_s": round(since_s - before.since_s, 3) if before else None,
            "index": new.index,
            "camera": camera,
        }


def _wall(ago_s: float) -> str:
    """The wall clock then, with its zone."""
    return (datetime.now().astimezone() - timedelta(seconds=ago_s)).isoformat(timespec="milliseconds")
