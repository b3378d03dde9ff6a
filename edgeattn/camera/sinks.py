"""Where results go: a video file, JSON lines. A browser is `web`, a window is `window`."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any, Protocol, TextIO

from edgeattn._cv2 import cv2
from edgeattn.camera.canvas import Draws
from edgeattn.camera.lines import Tell, frame_line
from edgeattn.camera.pipeline import Result
from edgeattn.errors import EdgeAttnError
from edgeattn.imaging import Picture
from edgeattn.tasks import drawing

NAMES = ("window", "mp4", "jsonl", "none")
"""Sinks by the names that a command line gives them."""
PACE_FPS = 25.0
"""Rate of a video file whose source does not say its own."""
WAITING = 16
"""Results that may wait for the disk."""
_HOLD_S = 2.0


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
            self._append(self._last)
        if missing >= 0:
            self._last = drawing.fitted(picture, self._size)
            self._append(self._last)
            self._written += missing + 1

    def close(self) -> None:
        """Write the index without which no player opens the file.

        Raises:
            EdgeAttnError: the file cannot be played, as where the disk was full.
        """
        if self._writer is not None:
            self._writer.release()
            self._writer = None
            if not cv2.VideoCapture(str(self.path)).isOpened():
                raise EdgeAttnError(
                    f"{self.path}: cannot be played (is the disk full?); make room or choose another --out"
                )

    def _append(self, picture: Picture | None) -> None:
        if self._writer.write(picture) is False:  # OpenCV 4 does not tell
            raise EdgeAttnError(
                f"{self.path}: cannot be written (is the disk full?); make room or choose another --out"
            )

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
    """JSON objects, one a line: one a frame, or whatever `tell` makes of the results."""

    name, waiting = "jsonl", WAITING
    draws: Draws | None = "nothing"

    def __init__(self, path: Path | None, tell: Tell = frame_line) -> None:
        """Write to a file, or to the standard output where `path` is None.

        Raises:
            EdgeAttnError: the file cannot be written.
        """
        self.path, self._tell = path, tell
        self._stream: TextIO = sys.stdout
        if path is not None:
            try:
                path.parent.mkdir(parents=True, exist_ok=True)
                self._stream = path.open("w", encoding="utf-8")
            except OSError as error:
                raise self._failure(error) from error

    def write(self, result: Result, picture: Picture | None) -> None:
        """Write a line and flush it, for whoever reads along.

        Raises:
            EdgeAttnError: the file cannot be written.
            BrokenPipeError: the reader of our output has left.
        """
        line = self._tell(result)
        if line is None:
            return
        try:
            self._stream.write(json.dumps(line, ensure_ascii=False) + "\n")
            self._stream.flush()
        except BrokenPipeError:
            raise
        except OSError as error:
            raise self._failure(error) from error

    def close(self) -> None:
        """Close the file.

        Raises:
            EdgeAttnError: its end cannot be written.
        """
        if self.path is not None:
            try:
                self._stream.close()
            except OSError as error:
                raise self._failure(error) from error

    def _failure(self, error: OSError) -> EdgeAttnError:
        where = self.path or "the standard output"
        return EdgeAttnError(f"{where}: cannot be written ({error.strerror}); make room or choose another --out")
