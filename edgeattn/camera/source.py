"""Where frames come from: a camera or network stream (live), a video (every frame, or replayed live), a folder.

A source is opened as a context manager and iterated for its frames, both by one thread: OpenCV's captures do not
survive a `release` from another one. A live source raises when its stream ends, a file just ends.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Protocol
from urllib.parse import urlsplit, urlunsplit

from edgeattn._cv2 import cv2
from edgeattn.errors import DataError, PictureError, SourceError
from edgeattn.imaging import HEIC_SUFFIXES, SUFFIXES, Picture, list_pictures, read_picture
from edgeattn.timing import Clock, monotonic_ns

AgeFrom = Literal["kernel", "sender", "due", "received"]

TIMEOUT_S = 5.0
"""How long opening a stream, or waiting for its next frame, may take."""

_STREAM_OPTIONS = "rtsp_transport;tcp|fflags;nobuffer"  # without nobuffer a stream starts a second late and stays so


@dataclass(frozen=True)
class Frame:
    """One picture and the moment it was taken."""

    picture: Picture
    """(H, W, 3) bytes in BGR."""
    index: int
    """Place in the source, from 0; a gap is a dropped frame."""
    captured_ns: int
    """Moment of capture on the monotonic clock."""
    age_from: AgeFrom
    """Whose time it is: `due` (a replayed video's), `received` (read by us: excludes camera and network)."""
    truth: Mapping[str, Any] | None = None
    """What a labelled video says about this frame: `label`, None where it shows nothing of any class."""


class Source(Protocol):
    """Gives frames: a context manager and an iterable, both for one thread."""

    name: str
    """What to call it in messages; holds no password."""
    live: bool
    """True: frames come at their own pace and are worth most when fresh; False: every one of them counts."""
    fps: float | None
    """Frames a second as the source says; None: unknown. Set once it is open."""

    def __enter__(self) -> Source: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...

    def __iter__(self) -> Iterator[Frame]: ...


class Camera:
    """A local camera (`0`, `/dev/video0`) or a network stream (`rtsp://`, `http://`): frames when they come.

    Opening waits for at most `timeout_s`, and so does every frame; a stream that stays silent, breaks off or ends
    raises `SourceError`. The age of its frames counts from when they were received.
    """

    live = True

    def __init__(self, device: int | str = 0, *, timeout_s: float = TIMEOUT_S, clock: Clock = monotonic_ns) -> None:
        local = isinstance(device, int) or device.isdigit() or device.startswith("/dev/")
        self._device: int | str = int(device) if str(device).isdigit() else device
        self._local, self._timeout_s, self._clock = local, timeout_s, clock
        self._capture: Any = None
        self.fps: float | None = None
        self.name = _without_password(str(device)) if not local else f"camera {device}"
        node = Path(f"/dev/video{device}" if str(device).isdigit() else str(device))
        if local and sys.platform == "linux" and not node.exists():
            raise SourceError(
                f"there is no {self.name} ({node}); {_cameras()}; a video, folder or stream works as well"
            )

    def __enter__(self) -> Camera:
        self._capture = self._open_local() if self._local else self._open_stream()
        if not self._capture.isOpened():
            self._capture.release()
            why = "used by another program, or you are not in the group 'video'" if self._local else "away, or no video"
            raise SourceError(f"{self.name} does not open: {why}; check it and start again")
        self.fps = _plausible(self._capture.get(cv2.CAP_PROP_FPS))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._capture.release()

    def __iter__(self) -> Iterator[Frame]:
        """Frames as they come.

        Raises:
            SourceError: the stream ended or was silent for too long. A capture never recovers from that.
        """
        index = 0
        while self._capture.grab():
            captured_ns = self._clock()  # before the decoding that `retrieve` may do
            readable, picture = self._capture.retrieve()
            if not readable:
                break
            yield Frame(picture, index, captured_ns, "received")
            index += 1
        raise SourceError(f"{self.name} gave no more frames after {index}; check it and start again")

    def _open_local(self) -> Any:
        # V4L2 refuses time-outs as parameters; its own limit, in seconds, is this variable.
        os.environ.setdefault("OPENCV_VIDEOIO_V4L_SELECT_TIMEOUT", str(max(1, math.ceil(self._timeout_s))))
        capture = cv2.VideoCapture(self._device, cv2.CAP_V4L2 if sys.platform == "linux" else cv2.CAP_ANY)
        capture.set(cv2.CAP_PROP_BUFFERSIZE, 1)  # the driver's queue would only age frames
        return capture

    def _open_stream(self) -> Any:
        timeout_ms = round(1000 * self._timeout_s)
        parameters = [cv2.CAP_PROP_OPEN_TIMEOUT_MSEC, timeout_ms, cv2.CAP_PROP_READ_TIMEOUT_MSEC, timeout_ms]
        with _variable("OPENCV_FFMPEG_CAPTURE_OPTIONS", _STREAM_OPTIONS):
            # Each further decoder thread would hold one frame back.
            return cv2.VideoCapture(self._device, cv2.CAP_FFMPEG, [*parameters, cv2.CAP_PROP_N_THREADS, 1])


class Video:
    """A video file: every frame as fast as asked for, or with `realtime` replayed live at its own pace.

    Replayed, a frame is captured when it is due, whether or not anybody was ready for it. A file `NAME.truth.jsonl`
    beside the video, one object `{"index": 0, "label": "seven"}` a frame, gives its frames their `truth`.
    """

    def __init__(
        self,
        path: str | Path,
        *,
        realtime: bool = False,
        clock: Clock = monotonic_ns,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self.path = Path(path)
        self.name, self.live = str(path), realtime
        self.fps: float | None = None
        self._clock, self._sleep = clock, sleep
        self._capture: Any = None
        if not self.path.is_file():
            raise SourceError(f"{path}: there is no such video; check the path")
        self._truth = _read_truth(self.path.with_suffix(".truth.jsonl"))

    def __enter__(self) -> Video:
        self._capture = cv2.VideoCapture(str(self.path), cv2.CAP_FFMPEG, [cv2.CAP_PROP_N_THREADS, 1])
        if not self._capture.isOpened():
            self._capture.release()
            raise SourceError(f"{self.path}: not a video that can be read; convert it to MP4 (H.264) first")
        self.fps = _plausible(self._capture.get(cv2.CAP_PROP_FPS))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._capture.release()

    def __iter__(self) -> Iterator[Frame]:
        """Every frame in order; the count that the file claims is not trusted.

        Raises:
            SourceError: the file holds no frame at all.
        """
        period_ns = 1e9 / (self.fps or 30.0)
        index, start_ns = 0, 0
        while True:
            readable, picture = self._capture.read()
            now_ns = self._clock()
            if not readable:
                break
            start_ns = start_ns if index else now_ns
            captured_ns = start_ns + round(index * period_ns) if self.live else now_ns
            if captured_ns > now_ns:
                self._sleep((captured_ns - now_ns) / 1e9)
            yield Frame(picture, index, captured_ns, "due" if self.live else "received", self._truth.get(index))
            index += 1
        if index == 0:
            raise SourceError(
                f"{self.path}: the video holds no frame that can be read; convert it to MP4 (H.264) first"
            )


class Folder:
    """Pictures of a folder and the folders below, in the order of their paths; or a single picture.

    Pictures that cannot be read are passed over and kept in `skipped`, as (path, reason).
    """

    live = False
    fps: float | None = None

    def __init__(self, path: str | Path, *, clock: Clock = monotonic_ns) -> None:
        self.name = str(path)
        self.skipped: list[tuple[Path, str]] = []
        self._clock = clock
        self._paths = list_pictures(Path(path)) if Path(path).is_dir() else [Path(path)]
        if not self._paths:
            raise SourceError(f"{path}: the folder holds no picture; it may hold {', '.join(sorted(SUFFIXES))}")

    def __enter__(self) -> Folder:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        return

    def __iter__(self) -> Iterator[Frame]:
        """Every picture that can be read; `index` counts the unreadable ones too.

        Raises:
            SourceError: not one of them can be read.
        """
        self.skipped.clear()
        for index, path in enumerate(self._paths):
            try:
                picture = read_picture(path)
            except PictureError as error:
                self.skipped.append((path, str(error)))
                continue
            yield Frame(picture, index, self._clock(), "received")
        if len(self.skipped) == len(self._paths):
            raise SourceError(f"{self.name}: none of {len(self._paths)} pictures can be read; {self.skipped[0][1]}")


def open_source(text: str, *, realtime: bool = False) -> Camera | Video | Folder:
    """The source that a command line names: a camera, a network stream, a folder, a video or a picture.

    Args:
        text: as in `0`, `/dev/video2`, `rtsp://camera/1`, `clip.mp4`, `photos/`.
        realtime: replay a video live, at its own pace.

    Raises:
        SourceError: there is nothing of that name.
    """
    if text.isdigit() or text.startswith("/dev/video") or "://" in text:
        return Camera(text)
    path = Path(text).expanduser()
    if path.is_dir() or (path.is_file() and path.suffix.lower() in SUFFIXES | HEIC_SUFFIXES):
        return Folder(path)
    if path.is_file():
        return Video(path, realtime=realtime)
    raise SourceError(f"{text}: no such file or folder, and no camera's number or address (rtsp://, http://); check it")


def _cameras() -> str:
    found = sorted(str(path) for path in Path("/dev").glob("video*"))
    return f"here is {', '.join(found)}" if found else "no camera is plugged in"


def _plausible(fps: float) -> float | None:
    """Streams without a rate say 0, NaN or their clock's 90000."""
    return fps if 0.1 <= fps <= 1000.0 else None


def _without_password(url: str) -> str:
    parts = urlsplit(url)
    return urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2]))


def _read_truth(path: Path) -> dict[int, Mapping[str, Any]]:
    if not path.is_file():
        return {}
    truth = {}
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        try:
            entry = json.loads(line)
            truth[int(entry["index"])] = entry
        except (ValueError, KeyError, TypeError) as error:
            raise DataError(
                f'{path}, line {number}: not an object with an "index" ({error}); mend or delete it'
            ) from error
    return truth


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
