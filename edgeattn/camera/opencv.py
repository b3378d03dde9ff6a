"""Cameras and streams that OpenCV reads: V4L2 devices, and through FFmpeg RTSP and whatever else it knows.

A capture never recovers from an error, does not survive a `release` from another thread, and aborts the process that
ends while a thread is inside its `read`. So a connection belongs to one thread, and one that hangs is left behind.
"""

from __future__ import annotations

import contextlib
import math
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np

from edgeattn._cv2 import cv2
from edgeattn.camera.files import plausible
from edgeattn.camera.frame import OLDEST_NS, AgeFrom, Interrupt
from edgeattn.camera.rtsp import Relay, Stamps
from edgeattn.errors import RefusedError, SourceError
from edgeattn.imaging import Picture
from edgeattn.timing import Clock

# Nothing is probed: the first keyframe is shown after 0.1 s. With `nobuffer` it would be thrown away, and the next one
# is a second off.
_OPTIONS_NAME = "OPENCV_FFMPEG_CAPTURE_OPTIONS"
# Sound is not asked for: beside it FFmpeg would tell a frame's place by another clock.
_STREAM_OPTIONS = "rtsp_transport;tcp|allowed_media_types;video|probesize;32|analyzeduration;0"
_NEWEST_PICTURE = "! videoconvert ! video/x-raw,format=BGR ! appsink drop=true max-buffers=1 sync=false"
_BAD_IN_A_ROW = 4
_QUICK_NS = 200_000_000
_LOOK_AGAIN_S, _LOOK_AGAIN_MOST_S = 2.0, 600.0


class OpencvConnection:
    """An open `cv2.VideoCapture` of a camera of this machine."""

    skipped = 0
    held = 5.0  # a device is not opened twice: its own time-out ends it before

    def __init__(self, capture: Any, name: str, clock: Clock) -> None:
        self.damaged = 0
        self.age_from: AgeFrom = "received"
        self.fps = plausible(capture.get(cv2.CAP_PROP_FPS))
        self._capture, self._name, self._clock = capture, name, clock

    def read(self) -> tuple[Picture, int]:
        """The next good frame, and when it was taken: by the driver's stamp, else when it was grabbed, before decoding.

        Raises:
            SourceError: the stream ended or was silent for too long.
        """
        bad = 0
        while bad <= _BAD_IN_A_ROW:
            asked_ns = self._clock()
            grabbed = self._capture.grab()
            grabbed_ns = self._clock()
            if self._passes_over(grabbed_ns - asked_ns, grabbed):
                continue
            readable, picture = self._capture.retrieve() if grabbed else (False, None)
            if readable:
                self.damaged += bad
                return np.asarray(picture, np.uint8), self._taken_ns(grabbed_ns)
            bad += 1
        raise SourceError(f"{self._name} gave no more frames")

    def _taken_ns(self, grabbed_ns: int) -> int:
        """When the frame in hand was taken."""
        stamp_ns = round(1e6 * self._capture.get(cv2.CAP_PROP_POS_MSEC))  # V4L2 gives the monotonic clock's time
        self.age_from = "kernel" if 0 <= grabbed_ns - stamp_ns < OLDEST_NS else "received"
        return stamp_ns if self.age_from == "kernel" else grabbed_ns

    def _passes_over(self, waited_ns: int, grabbed: bool) -> bool:
        """Whether a frame that was waited for so long is not to be shown."""
        return False

    def close(self) -> None:
        """Release."""
        self._capture.release()


class Opened(NamedTuple):
    """A `cv2.VideoCapture`, and who knows when its frames were taken."""

    capture: Any
    stamps: Stamps | None = None
    wants_login: bool = False
    """It is not open for want of another one."""


_without_relay: set[str] = set()
"""Streams that were given to FFmpeg alone."""
_logins_refused: set[str] = set()
"""Streams whose camera refused the login with the relay and without: it is tried once a time from then on."""


class StreamConnection(OpencvConnection):
    """An open stream: FFmpeg's held-back frames are passed over, and a changed size is followed.

    The capture scales a changed size back, or shows the half of it, and does not tell. A relay sees the camera tell it; without
    one, an encoder that is set anew sends a keyframe out of turn. Then the stream is opened once more, and if its size is
    another, the new one takes over.

    Ages count as a relay's `Stamps` tell, else from when a frame was grabbed.
    """

    held = 1.0

    def __init__(
        self, opened: Opened, open_capture: Callable[[], Opened], name: str, silent_s: float, clock: Clock
    ) -> None:
        super().__init__(opened.capture, name, clock)
        self._stamps = opened.stamps
        self._open_capture = open_capture
        self._seen_any = False
        self._silent_ns, self._waited_ns = (silent_s - 0.05) * 1e9, 0
        self._keyframes, self._tells_keyframes = Keyframes(), self._capture.getBackendName() == "FFMPEG"
        self._look_after, self._look_again_s = 0.0, _LOOK_AGAIN_S
        self._looking: threading.Thread | None = None
        self._in_doubt, self._reshapes = False, 0
        self._successor: Opened | None = None

    def close(self) -> None:
        """Release."""
        if self._looking is not None:
            self._looking.join()
        if self._successor is not None:
            self._successor.capture.release()
        super().close()

    def _taken_ns(self, grabbed_ns: int) -> int:
        if self._stamps is None:
            return grabbed_ns
        taken_ns, self.age_from = self._stamps.taken(self._capture.get(cv2.CAP_PROP_POS_MSEC), grabbed_ns)
        return taken_ns

    def _passes_over(self, waited_ns: int, grabbed: bool) -> bool:
        if waited_ns > self._silent_ns:  # then the decoder was told that nothing will follow
            raise SourceError(f"{self._name} is silent")
        if not grabbed:
            return False
        if self._successor is not None:
            self._capture.release()
            (self._capture, self._stamps, _), self._successor = self._successor, None
            self._keyframes, self._in_doubt, self._reshapes = Keyframes(), False, 0
            return True
        self._look_for_another_size()
        held_back = self._is_held_back(waited_ns)
        self._seen_any = self._seen_any or not held_back
        return held_back

    def _is_held_back(self, waited_ns: int) -> bool:
        """FFmpeg holds back a frame until the next one comes, if nobody tells where it ends: after a stall it is that old."""
        if self._stamps is not None and self._stamps.ends.told:
            return False
        quick_before, self._waited_ns = self._waited_ns < _QUICK_NS, waited_ns
        return waited_ns > 2 * _QUICK_NS and quick_before and self._seen_any

    def _look_for_another_size(self) -> None:
        """Where it is in doubt; what must wait for the last look, or for a pause after it, is done later."""
        odd = self._keyframes.out_of_turn(
            self._tells_keyframes and self._capture.get(cv2.CAP_PROP_LRF_HAS_KEY_FRAME) > 0
        )
        ends = self._stamps.ends if self._stamps is not None else None
        if ends is not None and ends.reshapes != self._reshapes:
            self._in_doubt, self._reshapes = True, ends.reshapes
        self._in_doubt |= odd and not (ends is not None and ends.repeats_parameters)
        now = time.monotonic()
        if not self._in_doubt or now < self._look_after or (self._looking is not None and self._looking.is_alive()):
            return
        self._in_doubt = False
        self._look_after, self._look_again_s = now + self._look_again_s, min(2 * self._look_again_s, _LOOK_AGAIN_MOST_S)
        name, size = f"look at {self._name}", _size(self._capture)
        self._looking = threading.Thread(target=self._look, args=(size,), name=name, daemon=True)
        self._looking.start()

    def _look(self, size: tuple[float, float]) -> None:
        """Open a successor; it takes over with its first frame, if its size is another."""
        opened = self._open_capture()
        capture = opened.capture
        changed = _size(capture) != size
        if changed and _is_open(capture) and any(capture.grab() for _ in range(1 + _BAD_IN_A_ROW)):
            self._look_again_s = _LOOK_AGAIN_S
            self._successor = opened
            return
        self._in_doubt |= changed
        capture.release()


class Keyframes:
    """Notices a keyframe out of turn: neither as many frames after the one before as usual, nor as the last time."""

    def __init__(self) -> None:
        self._since: int | None = None
        self._usual = self._last = 0

    def out_of_turn(self, is_key: bool) -> bool:
        """Whether the next frame is one."""
        if self._since is not None:
            self._since += 1
        if not is_key:
            return False
        since, self._since = self._since, 0
        if since is None:
            return False
        odd = self._usual > 0 and since not in (self._usual, self._last)
        if not self._usual or since == self._last:
            self._usual = since
        self._last = since
        return odd


def open_device(device: int | str, name: str, timeout_s: float, clock: Clock) -> OpencvConnection:
    """Open a camera of this machine.

    Raises:
        SourceError: it does not open.
    """
    # V4L2 refuses time-outs as parameters; its own limit, in seconds, is this variable.
    os.environ.setdefault("OPENCV_VIDEOIO_V4L_SELECT_TIMEOUT", str(max(1, math.ceil(timeout_s))))
    capture = cv2.VideoCapture(device, cv2.CAP_V4L2 if sys.platform == "linux" else cv2.CAP_ANY)
    # The driver's queue would only age frames. With a single buffer a camera loses what comes while one is converted.
    capture.set(cv2.CAP_PROP_BUFFERSIZE, 2)
    why = "used by another program, or you are not in the group 'video'; check it and start again"
    return OpencvConnection(_checked(Opened(capture), name, why).capture, name, clock)


def open_stream(
    url: str, name: str, timeout_s: float, silent_s: float, *, clock: Clock, interrupt: Interrupt
) -> StreamConnection:
    """Open a network stream within `timeout_s`, or until `interrupt`; a `read` then waits for `silent_s`.

    While FFmpeg opens one that is silent, it closes no video: a command that ends would wait for that.

    Raises:
        RefusedError: the camera wants another login.
        SourceError: it does not open.
    """
    # OpenCV opens one stream after the other: a silent one keeps the others waiting.
    open_ms, read_ms = round(1000 * timeout_s), round(1000 * silent_s)
    limits = [cv2.CAP_PROP_OPEN_TIMEOUT_MSEC, open_ms, cv2.CAP_PROP_READ_TIMEOUT_MSEC, read_ms]

    def open_url(url: str) -> Any:
        with _variable(_OPTIONS_NAME, _STREAM_OPTIONS):
            # Each further decoder thread would hold one frame back.
            return cv2.VideoCapture(url, cv2.CAP_FFMPEG, [*limits, cv2.CAP_PROP_N_THREADS, 1])

    def open_capture() -> Opened:
        ours = os.environ.get(_OPTIONS_NAME, _STREAM_OPTIONS) == _STREAM_OPTIONS  # the user's may ask for UDP
        if not (ours and url.lower().startswith("rtsp://")) or url in _without_relay:
            return Opened(open_url(url))
        try:
            relay = Relay(url, timeout_s)
        except (OSError, ValueError):
            return Opened(open_url(url))
        began_s = time.monotonic()
        interrupt.add(relay.hang_up)
        try:
            with relay:
                capture = open_url(relay.url)
        finally:
            interrupt.remove(relay.hang_up)  # whoever reads it is left to say farewell
        if _is_open(capture):
            return Opened(capture, relay.stamps)
        at_once = relay.reached and not relay.hung_up and time.monotonic() - began_s < timeout_s / 2
        if not at_once or url in _logins_refused:
            return Opened(capture, relay.stamps, relay.wants_login)
        capture.release()
        capture = open_url(url)  # it may mind the relay
        if _is_open(capture):
            _without_relay.add(url)
        elif relay.wants_login:
            _logins_refused.add(url)
        return Opened(capture, None, relay.wants_login)

    opened = _checked(open_capture(), name, "away, or no video")
    return StreamConnection(opened, open_capture, name, silent_s, clock)


def open_pipeline(pipeline: str, name: str, timeout_s: float, silent_s: float, clock: Clock) -> StreamConnection:
    """Open what GStreamer makes of a pipeline; what it lacks to give us the newest picture is added.

    Raises:
        SourceError: this OpenCV has no GStreamer, or the pipeline does not start.
    """
    if not cv2.videoio_registry.hasBackend(cv2.CAP_GSTREAMER):
        raise SourceError(
            f"{name}: this OpenCV is built without GStreamer, as those of pip are; Debian's python3-opencv has it"
        )
    open_ms, read_ms = round(1000 * timeout_s), round(1000 * silent_s)
    limits = [cv2.CAP_PROP_OPEN_TIMEOUT_MSEC, open_ms, cv2.CAP_PROP_READ_TIMEOUT_MSEC, read_ms]
    if tuple(map(int, cv2.__version__.split(".")[:2])) < (4, 7):  # Debian 12's knows no limits here
        limits = []
    whole = pipeline if "appsink" in pipeline else f"{pipeline} {_NEWEST_PICTURE}"

    def open_capture() -> Opened:
        return Opened(cv2.VideoCapture(whole, cv2.CAP_GSTREAMER, limits))

    opened = _checked(open_capture(), name, "away, or not what gst-launch-1.0 runs either; try it there")
    return StreamConnection(opened, open_capture, name, silent_s, clock)


def _checked(opened: Opened, name: str, why: str) -> Opened:
    if _is_open(opened.capture):
        return opened
    opened.capture.release()
    if opened.wants_login:
        raise RefusedError(f"{name} wants another login; write it as rtsp://NAME:PASSWORD@...")
    raise SourceError(f"{name} does not open: {why}")


def _is_open(capture: Any) -> bool:
    """Whether it will give pictures: a stream that was silent while it was opened has no size, and never does."""
    return bool(capture.isOpened()) and _size(capture) > (0, 0)


def _size(capture: Any) -> tuple[float, float]:
    return capture.get(cv2.CAP_PROP_FRAME_WIDTH), capture.get(cv2.CAP_PROP_FRAME_HEIGHT)


_setting = threading.Lock()
_set_by: dict[str, int] = {}


@contextlib.contextmanager
def _variable(name: str, value: str) -> Iterator[None]:
    """Set an environment variable for a while, unless the user has set it; several threads may want the same at a time."""
    with _setting:
        if name not in os.environ:
            _set_by[name] = 0
        if ours := name in _set_by:
            _set_by[name] += 1
            os.environ[name] = value
    try:
        yield
    finally:
        if ours:
            with _setting:
                _set_by[name] -= 1
                if not _set_by[name]:
                    del _set_by[name], os.environ[name]
