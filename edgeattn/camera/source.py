"""Where frames come from, by name: a camera or network stream (live), a video, a folder, a test picture.

A source is opened as a context manager and iterated for its frames, both by one thread.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType

from edgeattn.camera.address import from_environment, public_address
from edgeattn.camera.files import Folder, Video
from edgeattn.camera.frame import Connection, Frame, Interrupt
from edgeattn.camera.mjpeg import HttpMjpeg, NotMjpegError
from edgeattn.camera.opencv import open_device, open_pipeline, open_stream
from edgeattn.camera.pattern import TestPattern
from edgeattn.errors import EdgeAttnError, SourceError
from edgeattn.imaging import HEIC_SUFFIXES, SUFFIXES
from edgeattn.timing import Clock, monotonic_ns

TIMEOUT_S = 1.0
"""How long opening a stream, or waiting for its next frame, may take."""


class Camera:
    """A local camera (`0`, `/dev/video0`), a network stream (`rtsp://`, `http://`), or what GStreamer gives (`gst:PIPELINE`).

    In a `Pipeline` it is reconnected for as long as it takes. Iterated by itself it is one connection, which raises
    `SourceError` when it breaks off, ends, or stays silent for `timeout_s`; likewise when it does not open. The age of
    a local camera's frames counts from the driver's stamp, of a stream's from when they were received.
    """

    live = True

    def __init__(
        self,
        device: int | str = 0,
        *,
        timeout_s: float = TIMEOUT_S,
        wait: bool = False,
        clock: Clock = monotonic_ns,
    ) -> None:
        """Name a camera; with `wait`, one that is not plugged in yet is no error in a `Pipeline`, but waited for.

        Raises:
            SourceError: there is no such device.
        """
        self._here = isinstance(device, int) or device.isdigit() or device.startswith("/dev/")
        self.local = self._here and not wait
        self.timeout_s = timeout_s
        self.fps: float | None = None
        self._device: int | str = int(device) if str(device).isdigit() else device
        self._clock = clock
        self._connection: Connection | None = None
        self._pipeline = str(device).removeprefix("gst:") if str(device).startswith("gst:") else None
        self.name = f"camera {device}" if self._here else public_address(str(device))
        if self._pipeline:
            self.name = f"gst:{self._pipeline.partition(' ')[0]}"  # what follows may be a password
        self._node = Path(f"/dev/video{device}" if str(device).isdigit() else str(device))
        if not wait:
            self._check_node()

    def connect(self, timeout_s: float, silent_s: float, interrupt: Interrupt) -> Connection:
        """Open once more within `timeout_s`, whatever became of earlier connections; reads wait for `silent_s`.

        Of a device nothing can be interrupted, of a stream that FFmpeg reads only the opening.

        Raises:
            SourceError: it does not open.
        """
        connection = self._open(timeout_s, silent_s, interrupt)
        self.fps = connection.fps
        return connection

    def __enter__(self) -> Camera:
        self._connection = self.connect(self.timeout_s, self.timeout_s, Interrupt())
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def __iter__(self) -> Iterator[Frame]:
        """Frames as they come.

        Raises:
            SourceError: the stream broke off, ended, or was silent for too long.
        """
        index = 0
        while self._connection is not None:
            picture, captured_ns = self._connection.read()
            yield Frame(picture, index, captured_ns, self._connection.age_from)
            index += 1

    def _open(self, timeout_s: float, silent_s: float, interrupt: Interrupt) -> Connection:
        if self._here:
            self._check_node()
            return open_device(self._device, self.name, timeout_s, self._clock)
        if self._pipeline:
            return open_pipeline(self._pipeline, self.name, timeout_s, silent_s, self._clock)
        url = str(self._device)
        if url.lower().startswith("http://"):
            try:
                return HttpMjpeg(url, self.name, timeout_s, silent_s, clock=self._clock, interrupt=interrupt)
            except NotMjpegError:
                pass
        return open_stream(url, self.name, timeout_s, silent_s, clock=self._clock, interrupt=interrupt)

    def _check_node(self) -> None:
        if self._here and sys.platform == "linux" and not self._node.exists():
            raise SourceError(
                f"there is no {self.name} ({self._node}); {_cameras()}; a video, folder or stream works as well"
            )


def open_source(text: str, *, realtime: bool = False, wait: bool = False) -> Camera | Video | Folder | TestPattern:
    """The source that a command line names: a camera, a network stream, a folder, a video, a picture or a test picture.

    Args:
        text: as in `0`, `/dev/video2`, `rtsp://camera/1`, `clip.mp4`, `photos/`, `test`; `env:CAMERA` stands for what
            the environment's variable CAMERA says, so that no login is seen among the processes; `gst:PIPELINE` for
            cameras that only GStreamer reads, where this OpenCV has it.
        realtime: replay a video live, at its own pace.
        wait: a local camera that is not there yet is waited for.

    Raises:
        SourceError: there is nothing of that name.
    """
    try:
        text = from_environment(text, "--source", "rtsp://NAME:PASSWORD@...")
    except EdgeAttnError as error:
        raise SourceError(str(error)) from error
    if text.isdigit() or text.startswith(("/dev/video", "gst:")) or "://" in text:
        return Camera(text, wait=wait)
    path = Path(text).expanduser()
    if text == "test" and not path.exists():
        return TestPattern()
    if path.is_dir() or (path.is_file() and path.suffix.lower() in SUFFIXES | HEIC_SUFFIXES):
        return Folder(path)
    if path.is_file():
        return Video(path, realtime=realtime)
    raise SourceError(f"{text}: no such file or folder, and no camera's number or address (rtsp://, http://); check it")


def _cameras() -> str:
    found = sorted(str(path) for path in Path("/dev").glob("video*"))
    return f"here is {', '.join(found)}" if found else "no camera is plugged in"
