"""Where results go: a window, a video file, JSON lines. A browser is `web`."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any, Protocol, TextIO

from edgeattn._cv2 import cv2
from edgeattn.camera.canvas import Draws
from edgeattn.camera.pipeline import Result
from edgeattn.errors import EdgeAttnError
from edgeattn.imaging import Picture
from edgeattn.tasks import drawing
from edgeattn.timing import NS_PER_MS, Clock, monotonic_ns

NAMES = ("window", "mp4", "jsonl", "none")
"""Sinks by the names that a command line gives them."""
PACE_FPS = 25.0
"""Rate of a video file whose source does not say its own."""
WAITING = 16
"""Results that may wait for the disk."""
_HOLD_S = 2.0
_PROBE = "import cv2; cv2.namedWindow('edgeattn', cv2.WINDOW_NORMAL); cv2.waitKey(1); cv2.destroyAllWindows()"


class Sink(Protocol):
    """Takes results, in a thread of its own (see `feed`)."""

    name: str
    """What to call it in messages and reports."""
    waiting: int
    """How many results may wait for it; a live source's newer ones then replace the oldest."""

    @property
    def draws(self) -> Draws | None:
        """How much it wants drawn just now; None: it wants no result at all."""

    def write(self, result: Result, picture: Picture | None) -> None:
        """Take a result and the picture painted for it, where one was."""

    def close(self) -> None:
        """Finish; what was written so far is whole."""


def display_problem() -> str | None:
    """Why no window can be shown here; None: it can.

    A missing display makes OpenCV's window system abort the whole process, so that a process of its own tries first.
    """
    if re.search(r"GUI:\s*NONE", cv2.getBuildInformation()):
        return "this OpenCV is built without windows (pip install 'edgeattn[camera]' has them)"
    if sys.platform == "linux" and not (os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")):
        return "there is no display (DISPLAY and WAYLAND_DISPLAY are not set)"
    try:
        probe = subprocess.run([sys.executable, "-c", _PROBE], capture_output=True, timeout=20, check=False)
    except (OSError, subprocess.SubprocessError) as error:
        return f"the display could not be tried ({type(error).__name__})"
    if probe.returncode == 0:
        return None
    display = os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY") or "of this machine"
    return f"the display {display} opens none (OpenCV wants an X server, or Xwayland)"


class Window:
    """A window on the screen, which also gives the keys that were pressed in it.

    Only where `display_problem` has none. Pictures of files are held for the file's own frame period.
    """

    def __init__(self, title: str, *, fps: float | None = None, clock: Clock = monotonic_ns) -> None:
        os.environ.setdefault(
            "QT_LOGGING_RULES", "default.warning=false"
        )  # its complaints about fonts, never drawn with
        self._title, self._clock = title, clock
        self._period_ns = round(1e9 / fps) if fps else 0
        self._due_ns = clock()
        self._sized = False
        cv2.namedWindow(title, cv2.WINDOW_NORMAL | cv2.WINDOW_KEEPRATIO | cv2.WINDOW_GUI_NORMAL)

    def show(self, picture: Picture) -> int:
        """Show a picture and return the key pressed meanwhile: -1 none, `q` when the window was closed."""
        if not self._sized:
            height, width = picture.shape[:2]
            scale = max(1.0, 640 / width)
            cv2.resizeWindow(self._title, round(width * scale), round(height * scale))
            self._sized = True
        elif self._closed():
            return ord("q")
        cv2.imshow(self._title, picture)
        key = int(cv2.waitKey(max(1, round((self._due_ns - self._clock()) / NS_PER_MS))))
        self._due_ns = max(self._due_ns + self._period_ns, self._clock())
        return key & 0xFF if key >= 0 else -1

    def close(self) -> None:
        """Close the window."""
        if not self._closed():
            cv2.destroyAllWindows()
            cv2.waitKey(1)

    def _closed(self) -> bool:
        try:
            return bool(cv2.getWindowProperty(self._title, cv2.WND_PROP_VISIBLE) < 1)
        except cv2.error:  # Qt forgets its last window altogether
            return True


class VideoFile:
    """An MP4 (or AVI, by its ending) of the painted pictures, playable also when the run breaks off.

    With `hold`, for live sources, a picture stands until the next one came: the video runs at the world's speed.
    """

    name, waiting = "mp4", WAITING
    draws: Draws | None = "all"

    def __init__(self, path: Path, *, fps: float | None = None, hold: bool = False) -> None:
        self.path = path
        self._fps = min(max(fps or PACE_FPS, 1.0), 120.0)
        self._hold = hold
        self._writer: Any = None
        self._size = (0, 0)
        self._last: Picture | None = None
        self._first_ns, self._written = 0, 0

    def write(self, result: Result, picture: Picture | None) -> None:
        """Append a picture; the first one sets the size of all.

        Raises:
            EdgeAttnError: the file cannot be written.
        """
        if picture is None:
            return
        if self._writer is None:
            self._open(picture)
            self._first_ns = result.frame.captured_ns
        missing = self._missing(result.frame.captured_ns) if self._hold else 0
        for _ in range(missing):
            self._writer.write(self._last)
        if missing >= 0:
            self._last = drawing.fitted(picture, self._size)
            self._writer.write(self._last)
            self._written += missing + 1

    def close(self) -> None:
        """Write the index without which no player opens the file."""
        if self._writer is not None:
            self._writer.release()

    def _missing(self, captured_ns: int) -> int:
        """Pictures between the last one written and one captured then; -1: that one's place is already taken."""
        missing = round((captured_ns - self._first_ns) / 1e9 * self._fps) - self._written
        longest = round(_HOLD_S * self._fps)
        if missing > longest:  # a long silence is cut short in the video: writing all of it would hold up the loop
            self._first_ns += round((missing - longest) / self._fps * 1e9)
        return max(-1, min(missing, longest))

    def _open(self, picture: Picture) -> None:
        height, width = picture.shape[:2]
        self._size = (max(16, width + width % 2), max(16, height + height % 2))  # the codec wants even sides
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise EdgeAttnError(f"{self.path}: cannot be written ({error.strerror}); choose another --out") from error
        codec = cv2.VideoWriter.fourcc(*("MJPG" if self.path.suffix.lower() == ".avi" else "mp4v"))
        self._writer = cv2.VideoWriter(str(self.path), cv2.CAP_FFMPEG, codec, self._fps, self._size)
        if not self._writer.isOpened():
            raise EdgeAttnError(f"{self.path}: no video can be written there; choose another --out, ending in .mp4")


class JsonLines:
    """One JSON object a frame."""

    name, waiting = "jsonl", WAITING
    draws: Draws | None = "nothing"

    def __init__(self, path: Path | None) -> None:
        """Write to a file, or to the standard output where `path` is None.

        Raises:
            EdgeAttnError: the file cannot be written.
        """
        self.path = path
        self._stream: TextIO = sys.stdout
        if path is not None:
            try:
                path.parent.mkdir(parents=True, exist_ok=True)
                self._stream = path.open("w", encoding="utf-8")
            except OSError as error:
                raise EdgeAttnError(f"{path}: cannot be written ({error.strerror}); choose another --out") from error

    def write(self, result: Result, picture: Picture | None) -> None:
        """Write a line and flush it, for whoever reads along."""
        line = {
            "index": result.frame.index,
            "captured_ns": result.frame.captured_ns,
            "age_from": result.frame.age_from,
            "age_ms": round(result.age_ms, 3),
            "infer_ms": round(result.infer_ms, 3),
            "label": result.prediction.label,
            "score": round(result.prediction.score, 4),
            "rejected": result.prediction.rejected,
            "smoothed": result.smoothed.label,
            "dropped": result.dropped,
            "camera": result.camera,
            "truth": result.frame.truth,
        }
        self._stream.write(json.dumps(line, ensure_ascii=False) + "\n")
        self._stream.flush()

    def close(self) -> None:
        """Close the file."""
        if self.path is not None:
            self._stream.close()
