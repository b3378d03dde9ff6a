"""Cameras and streams that OpenCV reads: V4L2 devices, and through FFmpeg RTSP and whatever else it knows.

A capture never recovers from an error, does not survive a `release` from another thread, and aborts the process that
ends while a thread is inside its `read`. So a connection belongs to one thread, and one that hangs is left behind.
"""

from __future__ import annotations

import contextlib
import math
import os
import sys
from collections.abc import Iterator
from typing import Any

import numpy as np

from edgeattn._cv2 import cv2
from edgeattn.camera.files import plausible
from edgeattn.errors import SourceError
from edgeattn.imaging import Picture
from edgeattn.timing import Clock

# Nothing is probed: the first keyframe is shown after 0.1 s. With `nobuffer` it would be thrown away, and the next one
# is a second off.
_STREAM_OPTIONS = "rtsp_transport;tcp|probesize;32|analyzeduration;0"
_BAD_IN_A_ROW = 4
_QUICK_NS = 200_000_000


class OpencvConnection:
    """An open `cv2.VideoCapture`."""

    skipped = 0
    held = (
        3.0  # a second connection disturbs the first on some servers, and waits for a keyframe: up to a second or more
    )

    def __init__(self, capture: Any, name: str, silent_s: float, clock: Clock) -> None:
        self.damaged = 0
        self._seen_any = False
        self.fps = plausible(capture.get(cv2.CAP_PROP_FPS))
        self._capture, self._name, self._clock = capture, name, clock
        self._held_back_ns, self._waited_ns = silent_s * 0.95e9, 0

    def read(self) -> tuple[Picture, int]:
        """The next good frame, and when it was grabbed, before the decoding that `retrieve` may do.

        Raises:
            SourceError: the stream ended or was silent for too long.
        """
        bad = 0
        while bad <= _BAD_IN_A_ROW:
            asked_ns = self._clock()
            grabbed = self._capture.grab()
            captured_ns = self._clock()
            if grabbed and self._is_held_back(captured_ns - asked_ns):
                continue
            readable, picture = self._capture.retrieve() if grabbed else (False, None)
            if readable:
                self.damaged += bad
                self._seen_any = True
                return np.asarray(picture, np.uint8), captured_ns
            bad += 1
        raise SourceError(f"{self._name} gave no more frames")

    def _is_held_back(self, waited_ns: int) -> bool:
        """FFmpeg holds back a frame until the next one comes, or its time is up: after a stall it is as old as that."""
        quick_before, self._waited_ns = self._waited_ns < _QUICK_NS, waited_ns
        return waited_ns > self._held_back_ns or (waited_ns > 2 * _QUICK_NS and quick_before and self._seen_any)

    def interrupt(self) -> None:
        """Nothing can."""

    def close(self) -> None:
        """Release."""
        self._capture.release()


def open_device(device: int | str, name: str, timeout_s: float, clock: Clock) -> OpencvConnection:
    """Open a camera of this machine.

    Raises:
        SourceError: it does not open.
    """
    # V4L2 refuses time-outs as parameters; its own limit, in seconds, is this variable.
    os.environ.setdefault("OPENCV_VIDEOIO_V4L_SELECT_TIMEOUT", str(max(1, math.ceil(timeout_s))))
    capture = cv2.VideoCapture(device, cv2.CAP_V4L2 if sys.platform == "linux" else cv2.CAP_ANY)
    capture.set(cv2.CAP_PROP_BUFFERSIZE, 1)  # the driver's queue would only age frames
    why = "used by another program, or you are not in the group 'video'; check it and start again"
    return _opened(capture, name, why, timeout_s, clock)


def open_stream(url: str, name: str, timeout_s: float, silent_s: float, clock: Clock) -> OpencvConnection:
    """Open a network stream within `timeout_s`; a `read` then waits for `silent_s`.

    Raises:
        SourceError: it does not open.
    """
    # OpenCV opens one stream after the other: a silent one keeps the others waiting.
    timeout_ms = round(1000 * timeout_s)
    limits = [cv2.CAP_PROP_OPEN_TIMEOUT_MSEC, timeout_ms, cv2.CAP_PROP_READ_TIMEOUT_MSEC, timeout_ms]
    with _variable("OPENCV_FFMPEG_CAPTURE_OPTIONS", _STREAM_OPTIONS):
        # Each further decoder thread would hold one frame back.
        capture = cv2.VideoCapture(url, cv2.CAP_FFMPEG, [*limits, cv2.CAP_PROP_N_THREADS, 1])
    return _opened(capture, name, "away, another login, or no video", silent_s, clock)


def _opened(capture: Any, name: str, why: str, silent_s: float, clock: Clock) -> OpencvConnection:
    if capture.isOpened():
        return OpencvConnection(capture, name, silent_s, clock)
    capture.release()
    raise SourceError(f"{name} does not open: {why}")


@contextlib.contextmanager
def _variable(name: str, value: str) -> Iterator[None]:
    """Set an environment variable for a while, unless the user has set it."""
    if name in os.environ:
        yield
        return
    os.environ[name] = value
    try:
        yield
    finally:
        os.environ.pop(name, None)
