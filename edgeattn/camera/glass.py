"""The whole way of a picture, from a screen through the air and the camera to us: a clock on another screen is read back.

A page shows the time as black and white fields that a camera can read; its clock is set by ours over HTTP, as NTP does it.
What a frame shows, taken off the moment at which we have it, is its age: the screen's delay, the camera's exposure and
encoding, the network and our own reading.
"""

from __future__ import annotations

import contextlib
import json
import socket
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urlsplit

import numpy as np
from numpy.typing import NDArray

from edgeattn._cv2 import cv2
from edgeattn.camera.frame import AgeFrom, Frame
from edgeattn.errors import EdgeAttnError
from edgeattn.imaging import Picture
from edgeattn.timing import NS_PER_MS, Clock, monotonic_ns

PAGE = Path(__file__).with_name("glass.html")
WIDTH, HEIGHT = 17.0, 10.0
"""Of the clock, in units."""
COLUMNS, ROWS = 6, 6
BITS, CHECK_BITS = 24, 12
"""Milliseconds (the clock wraps after 4.6 hours) and their checksum, a field a bit, row by row."""
WRAPS_MS = 1 << BITS
_DICTIONARY = cv2.aruco.getPredefinedDictionary(cv2.aruco.DICT_4X4_50)
_MARKER = 4.0
_CORNERS = ((0.5, 0.5), (12.5, 0.5), (12.5, 5.5), (0.5, 5.5))
"""Where the markers 0 to 3 stand."""
_GREY = 0.2
"""How near to the middle a field may be, as a part of the contrast, before the picture counts as blurred in time."""


@dataclass
class Reading:
    """What was measured."""

    seen: int = 0
    """Frames in all."""
    whole_ms: list[float] = field(default_factory=list)
    """From when the clock was drawn to when we had the picture, of each frame in which it could be read."""
    ours_ms: list[float] = field(default_factory=list)
    """The part after the frame's own stamp."""
    age_from: AgeFrom = "received"

    def add(self, frame: Frame, now_ns: int) -> None:
        """Read the clock in a frame that is in our hands since `now_ns`."""
        self.seen += 1
        shown_ms = read_clock(frame.picture)
        if shown_ms is not None:
            if frame.age_from != self.age_from:  # an RTSP camera tells its time after some seconds
                self.age_from, self.whole_ms, self.ours_ms = frame.age_from, [], []
            whole_ms = (now_ns / NS_PER_MS - shown_ms) % WRAPS_MS
            self.whole_ms.append(whole_ms - WRAPS_MS if whole_ms > WRAPS_MS / 2 else whole_ms)
            self.ours_ms.append((now_ns - frame.captured_ns) / NS_PER_MS)


def fields(milliseconds: int) -> list[bool]:
    """Which fields are white, row by row, at that time."""
    shown = milliseconds % WRAPS_MS
    value = shown << CHECK_BITS | _checksum(shown)
    return [bool(value >> shift & 1) for shift in range(BITS + CHECK_BITS - 1, -1, -1)]


def places() -> list[tuple[float, float, float, float]]:
    """Each field's left, top, width and height, in units."""
    width, height = 7.0 / COLUMNS, 9.0 / ROWS
    return [(5.0 + c * width, 0.5 + r * height, width, height) for r in range(ROWS) for c in range(COLUMNS)]


def marker_squares() -> list[tuple[float, float, float, float]]:
    """The black squares of the four markers, likewise."""
    side = _MARKER / 6
    squares = []
    for number, (left, top) in enumerate(_CORNERS):
        modules = cv2.aruco.generateImageMarker(_DICTIONARY, number, 6)
        squares += [
            (left + x * side, top + y * side, side, side) for y in range(6) for x in range(6) if modules[y, x] == 0
        ]
    return squares


def read_clock(picture: Picture) -> int | None:
    """The milliseconds that a picture shows; None: no clock is found, or it is blurred."""
    grey = cv2.cvtColor(picture, cv2.COLOR_BGR2GRAY)
    corners, numbers, _ = _detector().detectMarkers(grey)
    if numbers is None or sorted(numbers.ravel().tolist()) != [0, 1, 2, 3]:
        return None
    seen = np.concatenate([corners[i].reshape(4, 2) for i in np.argsort(numbers.ravel())])
    known = np.array(
        [(x + dx, y + dy) for x, y in _CORNERS for dx, dy in ((0, 0), (_MARKER, 0), (_MARKER, _MARKER), (0, _MARKER))]
    )
    homography, _ = cv2.findHomography(known, seen.astype(np.float64))
    if homography is None:
        return None
    middles = np.array([[[x + w / 2, y + h / 2]] for x, y, w, h in places()])
    at = cv2.perspectiveTransform(middles, homography).reshape(-1, 2)
    smooth = cv2.blur(grey, (3, 3))
    rows, columns = np.rint(at[:, 1]).astype(int), np.rint(at[:, 0]).astype(int)
    if min(rows.min(), columns.min()) < 0 or rows.max() >= grey.shape[0] or columns.max() >= grey.shape[1]:
        return None
    return _value(smooth[rows, columns].astype(np.float64))


def _value(levels: NDArray[np.float64]) -> int | None:
    low, high = levels.min(), levels.max()
    middle = (low + high) / 2
    if high - low < 20 or (np.abs(levels - middle) < _GREY * (high - low)).any():
        return None
    value = 0
    for white in levels > middle:
        value = value << 1 | int(white)
    shown, check = value >> CHECK_BITS, value & ((1 << CHECK_BITS) - 1)
    return shown if _checksum(shown) == check else None


def _checksum(shown: int) -> int:
    return (shown * 2654435761 & 0xFFFFFFFF) >> (32 - CHECK_BITS)


def _detector() -> Any:
    return cv2.aruco.ArucoDetector(_DICTIONARY, cv2.aruco.DetectorParameters())


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, *_: Any) -> None:
        """A browser that hangs up is no error."""


class ClockPage:
    """Serves the page and the time, on every address of this machine; nothing else is to be had there."""

    def __init__(self, port: int, clock: Clock = monotonic_ns) -> None:
        """Describe it; port 0: any free one."""
        self.unsure_ms: float | None = None
        """How far the page's clock may be off; None: no page has asked yet."""
        self.refresh_ms: float | None = None
        """How often its screen draws."""
        self._clock, self.port = clock, port
        self._connections: set[socket.socket] = set()

    def __enter__(self) -> ClockPage:
        """Serve.

        Raises:
            EdgeAttnError: the port is taken.
        """
        layout = {"width": WIDTH, "height": HEIGHT, "markers": marker_squares(), "places": places()}
        layout |= {"bits": BITS, "checkBits": CHECK_BITS}
        page = PAGE.read_text(encoding="utf-8").replace('"LAYOUT"', json.dumps(layout)).encode()
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def setup(self) -> None:
                outer._connections.add(self.request)
                super().setup()

            def do_GET(self) -> None:
                asked = urlsplit(self.path)
                if asked.path == "/time":
                    outer._note(dict(parse_qsl(asked.query)))
                    self._answer("application/json", str(outer._clock() / NS_PER_MS).encode())
                elif asked.path == "/":
                    self._answer("text/html; charset=utf-8", page)
                else:
                    self.send_error(404)

            def _answer(self, kind: str, body: bytes) -> None:
                self.send_response(200)
                self.send_header("Content-Type", kind)
                self.send_header("Content-Length", str(len(body)))
                self.send_header("Cache-Control", "no-store")
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: Any) -> None:
                pass

        try:
            self._server = _Server(("", self.port), Handler)
        except OSError as error:
            why = error.strerror or error
            raise EdgeAttnError(f"port {self.port} cannot be served ({why}); choose another: --port") from error
        self.port = self._server.server_port
        threading.Thread(target=self._server.serve_forever, name="clock page", daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        for connection in list(self._connections):
            connection.close()

    def _note(self, said: dict[str, str]) -> None:
        with contextlib.suppress(KeyError, ValueError):
            self.unsure_ms, self.refresh_ms = float(said["unsure"]), float(said["refresh"])
