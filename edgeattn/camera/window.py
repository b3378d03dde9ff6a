"""A window on the screen, drawn by a process of its own: where the display goes away, its library ends the whole process.

As a program, `python -m edgeattn.camera.window TITLE` is that process: it takes pictures from its input, each after a
header, and gives a key for each.
"""

from __future__ import annotations

import contextlib
import os
import re
import struct
import subprocess
import sys
from typing import IO

import numpy as np

from edgeattn._cv2 import cv2
from edgeattn.errors import EdgeAttnError
from edgeattn.imaging import Picture
from edgeattn.timing import NS_PER_MS, Clock, monotonic_ns

_PROGRAM = (sys.executable, "-m", __name__)
_HEADER = struct.Struct("<III")
"""Height and width of the picture that follows, in pixels; for how long keys are waited for, in milliseconds."""
_NO_KEY = 255
_LEAST_WIDTH = 640
_PATIENCE_S = 0.1


class WindowLostError(EdgeAttnError):
    """The display has gone, and the window with it."""


def display_problem() -> str | None:
    """Why no window can be shown here; None: it can."""
    if re.search(r"GUI:\s*NONE", cv2.getBuildInformation()):
        return "this OpenCV is built without windows (pip install 'edgeattn[camera]' has them)"
    if sys.platform == "linux" and not (os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")):
        return "there is no display (DISPLAY and WAYLAND_DISPLAY are not set)"
    try:
        probe = subprocess.run(
            [*_PROGRAM, "edgeattn"], stdin=subprocess.DEVNULL, capture_output=True, timeout=20, check=False
        )
    except (OSError, subprocess.SubprocessError) as error:
        return f"the display could not be tried ({type(error).__name__})"
    if probe.returncode == 0:
        return None
    return f"the display {_display()} opens none (OpenCV wants an X server, or Xwayland)"


class Window:
    """A window on the screen, which also gives the keys that were pressed in it.

    Only where `display_problem` has none. Pictures of files are held for the file's own frame period.
    """

    def __init__(self, title: str, *, fps: float | None = None, clock: Clock = monotonic_ns) -> None:
        self._clock = clock
        self._period_ns = round(1e9 / fps) if fps else 0
        self._due_ns = clock()
        # Ctrl-C at the terminal is for us to answer: it is not sent to another session.
        self._process = subprocess.Popen(
            [*_PROGRAM, title],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, start_new_session=True,
        )  # fmt: skip

    def show(self, picture: Picture) -> int:
        """Show a picture and return the key pressed meanwhile: -1 none, `q` when the window was closed.

        Raises:
            WindowLostError: there is no window any more.
        """
        height, width = picture.shape[:2]
        wait_ms = max(1, round((self._due_ns - self._clock()) / NS_PER_MS))
        key = b""
        with contextlib.suppress(OSError):
            into = _pipe(self._process.stdin)
            into.write(_HEADER.pack(height, width, wait_ms))
            into.write(np.ascontiguousarray(picture).data)
            into.flush()
            key = _pipe(self._process.stdout).read(1)
        if not key:
            raise WindowLostError(f"the display {_display()} has gone")
        self._due_ns = max(self._due_ns + self._period_ns, self._clock())
        return -1 if key[0] == _NO_KEY else key[0]

    def close(self) -> None:
        """Close the window; a display that is stuck is not waited for."""
        self._process.kill()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(_PATIENCE_S)
        for pipe in (self._process.stdin, self._process.stdout):
            with contextlib.suppress(OSError):
                _pipe(pipe).close()


def _display() -> str:
    return os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY") or "of this machine"


def _pipe(pipe: IO[bytes] | None) -> IO[bytes]:
    assert pipe is not None
    return pipe


def _serve(title: str) -> None:
    """Show what comes, until its sender ends."""
    os.environ.setdefault("QT_LOGGING_RULES", "default.warning=false")  # its complaints about fonts, never drawn with
    cv2.namedWindow(title, cv2.WINDOW_NORMAL | cv2.WINDOW_KEEPRATIO | cv2.WINDOW_GUI_NORMAL)
    sized = False
    while len(header := sys.stdin.buffer.read(_HEADER.size)) == _HEADER.size:
        height, width, wait_ms = _HEADER.unpack(header)
        pixels = sys.stdin.buffer.read(3 * height * width)
        if len(pixels) < 3 * height * width:
            return
        if not sized:
            scale = max(1.0, _LEAST_WIDTH / width)
            cv2.resizeWindow(title, round(width * scale), round(height * scale))
            sized = True
        elif _is_closed(title):
            _answer(ord("q"))
            continue
        cv2.imshow(title, np.frombuffer(pixels, np.uint8).reshape(height, width, 3))
        key = int(cv2.waitKey(wait_ms))
        _answer(key & 0xFF if key >= 0 else _NO_KEY)


def _answer(key: int) -> None:
    sys.stdout.buffer.write(bytes([key]))
    sys.stdout.buffer.flush()


def _is_closed(title: str) -> bool:
    try:
        return bool(cv2.getWindowProperty(title, cv2.WND_PROP_VISIBLE) < 1)
    except cv2.error:  # Qt forgets its last window altogether
        return True


if __name__ == "__main__":
    _serve(sys.argv[1])
