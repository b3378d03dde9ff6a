"""Faults of which most is waiting: each a function that checks one, on a camera of its own, while other tests run.

As a program: `python tests/rig/waits.py "stalled for 35 s"`. OpenCV opens one stream after the other in a process.
"""

from __future__ import annotations

import contextlib
import itertools
import sys
import time
from collections.abc import Callable, Iterator

import pytest
import rtsp
from calm import in_calm
from judge import Judge, watching
from mjpeg import MjpegCamera
from rtsp import RtspCamera

from edgeattn.camera import Camera
from edgeattn.camera.state import Status
from edgeattn.camera.watch import Watch

HTTP_MS, RTSP_MS = 200, 500
SHOWN_MS = 700
"""Other tests keep the machine busy meanwhile; what holds in calm is in `test_sources.py`."""


@contextlib.contextmanager
def watched(camera: MjpegCamera | RtspCamera) -> Iterator[tuple[Watch, Judge]]:
    """Our reader of the camera, and a judge of its frames."""
    with Watch(Camera(camera.url)) as watch, watching(frame.picture for frame in watch.slot) as judge:
        judge.wait_for(10)
        yield watch, judge


def states(status: Status, began_ns: int) -> dict[str, float]:
    """The states entered since then, and after how many milliseconds."""
    return {change.state: (change.ns - began_ns) / 1e6 for change in status.changes if change.ns >= began_ns}


def comes_back(camera: MjpegCamera | RtspCamera, kind: str, seconds: float) -> None:
    with camera, watched(camera) as (watch, judge):
        shown = len(judge.sights)
        fault = getattr(camera, kind)(seconds)
        time.sleep(1.5)
        assert watch.status.state == "down"
        back_ms = judge.wait_for_recovery(fault, 5)
        seen = states(watch.status, fault.began_ns)
        print(f"{kind} {seconds:g} s: back after {back_ms:.0f} ms; {seen}")
        assert back_ms < (RTSP_MS if isinstance(camera, RtspCamera) else HTTP_MS)
        assert list(seen)[-1] == "live"
        assert "stalled" not in seen or seen["stalled"] < SHOWN_MS
        assert seen["down"] < SHOWN_MS + 1000
        assert all(sight.stamp for sight in judge.sights[shown:]), "a damaged frame was shown"
        assert not [ns for ns, stamp in judge.good[shown:] if fault.began_ns + 500e6 < ns < fault.ended_ns]


def an_inference_that_takes_five_seconds() -> None:
    """The reader goes on meanwhile: nothing stalls, nothing is opened again, and the next frame is a new one."""
    with MjpegCamera() as camera, Watch(Camera(camera.url)) as watch:
        judge = Judge()
        for number, frame in enumerate(itertools.islice(watch.slot, 15)):
            if number == 5:
                time.sleep(5)
            judge.show(frame.picture)
        assert watch.status.state == "live"
        assert (watch.status.reconnects, watch.status.stalls) == (0, 0)
        assert watch.slot.drops["replaced"] > 100
        assert 5000 < judge.ages_ms[5] < 5300
        assert min(judge.ages_ms[6:9]) < 200


def a_camera_slower_than_the_time_out() -> None:
    """It is not reconnected for ever."""
    with MjpegCamera(fps=0.7) as camera, Watch(Camera(camera.url)) as watch:
        time.sleep(12)
        settled = len(watch.status.changes)
        connections = camera.connections()
        assert connections[0] == 1
        time.sleep(4)
        assert len(watch.status.changes) == settled
        assert camera.connections() == connections


FAULTS: dict[str, Callable[[], None]] = {
    "stalled for 35 s": lambda: comes_back(MjpegCamera(), "stall", 35),
    "refused for 10 s": lambda: comes_back(MjpegCamera(), "refuse", 10),
    "silent for 10 s": lambda: comes_back(MjpegCamera(), "silent", 10),
    "an inference of 5 s": an_inference_that_takes_five_seconds,
    "slower than the time-out": a_camera_slower_than_the_time_out,
}
if rtsp.missing() is None:
    FAULTS["RTSP, stalled for 35 s"] = lambda: comes_back(RtspCamera(), "stall", 35)


NO_VERDICT = 77
"""Exit code where the cores were not ours; automake's for a test that was skipped."""


if __name__ == "__main__":
    try:
        in_calm(FAULTS[sys.argv[1]])
    except pytest.skip.Exception as skipped:
        print(skipped)
        sys.exit(NO_VERDICT)
