"""A camera stand-in: MJPEG over HTTP on loopback, with the moment of each frame drawn into it."""

from __future__ import annotations

import http.server
import threading
import time

import numpy as np

from edgeattn._cv2 import cv2

BITS, BLOCK = 48, 8  # microseconds of the monotonic clock, a bit a block of pixels: JPEG does not blur them away


def stamp(picture: np.ndarray) -> None:
    """Draw the present moment into the upper rows of a picture at least 384 pixels wide."""
    now_us = time.monotonic_ns() // 1000
    for bit in range(BITS):
        picture[:BLOCK, bit * BLOCK : (bit + 1) * BLOCK] = 255 * (now_us >> bit & 1)


def stamped_ns(picture: np.ndarray) -> int:
    """The moment that was drawn into a picture."""
    row = picture[BLOCK // 2, BLOCK // 2 : BITS * BLOCK : BLOCK, 0] > 127
    return 1000 * sum(1 << bit for bit, is_set in enumerate(row) if is_set)


class MjpegCamera:
    """Serves frames at `fps` to whoever asks, and fails on command: see `stall_after` and `end_after`."""

    def __init__(self, *, fps: float = 30.0, end_after: int | None = None, stall_after: int | None = None) -> None:
        self.fps, self.end_after, self.stall_after = fps, end_after, stall_after
        self._closed = threading.Event()
        camera = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self.send_response(200)
                self.send_header("Content-Type", "multipart/x-mixed-replace; boundary=frame")
                self.end_headers()
                camera._stream(self)

            def log_message(self, *_: object) -> None:
                pass

        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self._server.block_on_close = False
        self.url = f"http://127.0.0.1:{self._server.server_port}/video"

    def __enter__(self) -> MjpegCamera:
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._closed.set()
        self._server.shutdown()
        self._server.server_close()

    def _stream(self, handler: http.server.BaseHTTPRequestHandler) -> None:
        start, sent = time.monotonic(), 0
        picture = np.full((480, 640, 3), 90, np.uint8)
        while not self._closed.is_set() and sent != self.end_after:
            if sent == self.stall_after:
                self._closed.wait(60)
                return
            stamp(picture)
            jpeg = cv2.imencode(".jpg", picture)[1].tobytes()
            head = f"--frame\r\nContent-Type: image/jpeg\r\nContent-Length: {len(jpeg)}\r\n\r\n"
            try:
                handler.wfile.write(head.encode() + jpeg + b"\r\n")
            except OSError:  # the viewer left
                return
            sent += 1
            time.sleep(max(0.0, start + sent / self.fps - time.monotonic()))
