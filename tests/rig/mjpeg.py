"""A camera stand-in: MJPEG over HTTP on loopback, with the moment of each frame burned in, and faults on command.

The camera is a process of its own (this file as a program). Its background is encoded once, with a restart marker after
each row of macroblocks; a frame is that JPEG with the first and the last row replaced by the freshly encoded strip of
the clock (0.1 ms), so the clock is true when the frame is sent.
"""

from __future__ import annotations

import collections
import contextlib
import json
import math
import random
import re
import select
import socket
import struct
import sys
import threading
import time
from collections.abc import Callable

import numpy as np
from remote import Fault, Remote, later, obey
from stamps import STRIP, Stamp, stamp_row

from edgeattn._cv2 import cv2


class MjpegCamera(Remote):
    """Serves frames at `fps` to whoever asks. Its methods are faults, possible at any moment; they return when begun.

    Args:
        fps: frames a second; a viewer that reads too slowly misses some, as with a real camera, once the sockets'
            buffers are full.
        size: width (a multiple of 64) and height (of 16).
        end_after: end each connection after that many frames.
        stall_after: fall silent on each connection after that many frames.
        backlog: old frames that each connection gets at once when it starts.
        missing_s: refuse connections for that long at first.
        content_length: tell the length of each JPEG; some cameras do not.
    """

    def __init__(
        self,
        *,
        fps: float = 30.0,
        size: tuple[int, int] = (640, 480),
        end_after: int | None = None,
        stall_after: int | None = None,
        backlog: int = 0,
        missing_s: float = 0.0,
        content_length: bool = True,
    ) -> None:
        options = {"fps": fps, "size": size, "end_after": end_after, "stall_after": stall_after, "backlog": backlog}
        more = {"missing_s": missing_s, "content_length": content_length}
        super().__init__([sys.executable, __file__], options | more)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/video"

    def stall(self, seconds: float) -> Fault:
        """Send nothing for a while and then go on, on the same connections."""
        return self._fault("stall", seconds, seconds=seconds)

    def reset(self) -> Fault:
        """Break all connections off (RST)."""
        return self._fault("hang_up", "reset")

    def end(self) -> Fault:
        """End the stream on all connections, in good order."""
        return self._fault("hang_up", "end")

    def refuse(self, seconds: float) -> Fault:
        """Break all connections off and refuse new ones for a while, as during a restart."""
        return self._fault("refuse", seconds, seconds=seconds)

    def silent(self, seconds: float) -> Fault:
        """Break all connections off; never answer those that come within that time, though they are accepted."""
        return self._fault("silent", seconds, seconds=seconds)

    def unplug(self, seconds: float) -> Fault:
        """As if the cable was pulled: no connection carries anything, and new ones are neither made nor refused."""
        return self._fault("unplug", seconds, seconds=seconds)

    def garbage(self, frames: int = 1) -> Fault:
        """Send random bytes instead of that many frames, headers and all."""
        return self._fault("spoil", "garbage", frames)

    def corrupt(self, frames: int = 1) -> Fault:
        """Spoil the picture data of that many JPEGs."""
        return self._fault("spoil", "corrupt", frames)

    def truncate(self, frames: int = 1) -> Fault:
        """Send only the first half of that many JPEGs, and say so in their length."""
        return self._fault("spoil", "truncate", frames)

    def resize(self, width: int, height: int) -> Fault:
        """Send all further frames in another size."""
        return self._fault("resize", width, height)

    def connections(self) -> tuple[int, int]:
        """How many viewers there are now, and how many connections were ever accepted."""
        now, ever = self.ask("connections")
        return now, ever


class Scene:
    """Encodes frames of one size: the same background, each with its own stamp."""

    def __init__(self, width: int, height: int) -> None:
        if width % 64 or height % STRIP:
            raise ValueError(f"{width}x{height}: the width must be a multiple of 64 and the height of {STRIP}")
        noise = np.random.default_rng(0)
        coarse = noise.integers(40, 216, (12, 16, 3)).astype(np.uint8)
        scene = cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC) + noise.normal(
            0, 6, (height, width, 3)
        )
        self._width = width
        head, self._rows = self._encode(np.clip(scene, 0, 255).astype(np.uint8))
        self._head = head

    def jpeg(self, stamp: Stamp) -> bytes:
        strip = np.broadcast_to(
            np.frombuffer(stamp_row(stamp, self._width), np.uint8)[:, None], (STRIP, self._width, 3)
        )
        rows = self._rows.copy()
        rows[0] = rows[-1] = self._encode(strip)[1][0]
        parts = [self._head]
        for number, row in enumerate(rows):
            parts += [row, bytes([0xFF, 0xD0 + number % 8])]
        parts[-1] = b"\xff\xd9"
        return b"".join(parts)

    def _encode(self, picture: np.ndarray) -> tuple[bytes, list[bytes]]:
        """A JPEG's headers, and the data of each row of macroblocks, which a restart marker makes independent."""
        options = [cv2.IMWRITE_JPEG_QUALITY, 80, cv2.IMWRITE_JPEG_RST_INTERVAL, self._width // 16]
        jpeg = cv2.imencode(".jpg", picture, options)[1].tobytes()
        scan = jpeg.index(b"\xff\xda")
        data = scan + 2 + struct.unpack(">H", jpeg[scan + 2 : scan + 4])[0]
        return jpeg[:data], re.split(rb"\xff[\xd0-\xd7]", jpeg[data:-2])


class _Viewer:
    """One connection."""

    def __init__(self, connection: socket.socket) -> None:
        self.socket = connection
        self.ordered = threading.Event()
        self.order = "end"

    def hang_up(self, order: str) -> None:
        self.order = order
        self.ordered.set()

    def wait(self, moment: Callable[[], float]) -> bool:
        """Wait until that moment, which may be put off meanwhile; True: told to hang up before. Raises if they left."""
        while (left := moment() - time.monotonic()) > 0 and not self.ordered.wait(min(left, 0.05)):
            if select.select([self.socket], [], [], 0)[0] and not self.socket.recv(1, socket.MSG_PEEK):
                raise ConnectionResetError
        return self.ordered.is_set()

    def send(self, data: bytes) -> None:
        rest = memoryview(data)
        while rest and not self.ordered.is_set():
            with contextlib.suppress(TimeoutError):
                rest = rest[self.socket.send(rest) :]


class _Server:
    """The camera's side: a thread at the door and one a viewer; the commands come on the main thread."""

    def __init__(
        self,
        *,
        fps: float,
        size: tuple[int, int],
        end_after: int | None,
        stall_after: int | None,
        backlog: int,
        missing_s: float,
        content_length: bool,
    ) -> None:
        self._fps, self._end_after, self._stall_after = fps, end_after, stall_after
        self._backlog, self._content_length = backlog, content_length
        self._scene = Scene(*size)
        self._spoilt: collections.deque[str] = collections.deque()
        self._viewers: dict[_Viewer, threading.Thread] = {}
        self._accepted = 0
        self._held = threading.Event()
        self._refusing = time.monotonic() + missing_s  # until then; so are the next three
        self._stalled = self._unplugged = self._deaf = 0.0
        self.port = 0
        self._keeper = self._bind()  # never listens: refuses, and keeps the port
        self.port = self._keeper.getsockname()[1]
        self._moving = threading.Lock()  # the door, while it is opened or shut
        self._door: socket.socket | None = None
        self._open_door()
        threading.Thread(target=self._attend, daemon=True).start()

    # Commands.

    def stall(self, seconds: float) -> None:
        self._stalled = time.monotonic() + seconds

    def hang_up(self, order: str) -> None:
        viewers = list(self._viewers.items())
        for viewer, _ in viewers:
            viewer.hang_up(order)
        for _, thread in viewers:
            if thread.is_alive():  # one that was not even started will find its orders
                thread.join(2)

    def refuse(self, seconds: float) -> None:
        self._shut_door(time.monotonic() + seconds)
        self._unplugged = 0.0
        self.hang_up("reset")

    def silent(self, seconds: float) -> None:
        self._deaf = time.monotonic() + seconds
        self.hang_up("reset")

    def unplug(self, seconds: float) -> None:
        was, self._stalled = self._unplugged, time.monotonic() + seconds
        self._unplugged = self._stalled
        if was > time.monotonic():
            return  # the queue is full already
        self._refusing = 0.0
        self._open_door()
        self._held.clear()
        self._door.listen(0)
        fillers = [socket.socket() for _ in range(4)]  # once the queue is full, the kernel ignores who knocks
        for filler in fillers:
            filler.setblocking(False)
            filler.connect_ex(("127.0.0.1", self.port))
            self._held.wait(2)  # the first one is taken out of the queue, see `_attend`
        later(seconds, lambda: [filler.close() for filler in fillers])

    def spoil(self, how: str, frames: int) -> None:
        self._spoilt.extend([how] * frames)

    def resize(self, width: int, height: int) -> None:
        self._scene = Scene(width, height)

    def connections(self) -> tuple[int, int]:
        return len(self._viewers), self._accepted

    # The door.

    def _bind(self) -> socket.socket:
        door = socket.socket()
        door.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        door.bind(("127.0.0.1", self.port))
        return door

    def _open_door(self) -> None:
        with self._moving:
            if self._door is None and self._refusing <= time.monotonic():
                self._door = self._bind()
                self._door.listen()

    def _shut_door(self, until: float) -> None:
        with self._moving:
            self._refusing = until
            if self._door is not None:
                self._door.shutdown(socket.SHUT_RDWR)  # wakes who attends it
                self._door.close()
                self._door = None

    def _attend(self) -> None:
        while True:
            _sleep_until(lambda: self._refusing)
            self._open_door()
            with contextlib.suppress(OSError, AttributeError):  # it was shut
                while True:
                    connection = self._door.accept()[0]
                    self._held.set()
                    if self._unplugged > time.monotonic():
                        _sleep_until(lambda: self._unplugged)
                        self._door.listen()
                    self._welcome(connection)

    def _welcome(self, connection: socket.socket) -> None:
        connection.settimeout(0.05)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._accepted += 1
        viewer = _Viewer(connection)
        self._viewers[viewer] = threading.Thread(target=self._serve, args=(viewer,), daemon=True)
        self._viewers[viewer].start()

    # A viewer.

    def _serve(self, viewer: _Viewer) -> None:
        with viewer.socket:
            with contextlib.suppress(OSError):  # the viewer left
                if time.monotonic() < self._deaf:
                    viewer.wait(lambda: math.inf)
                elif self._asked(viewer):
                    self._stream(viewer)
            if viewer.order == "reset":
                viewer.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        del self._viewers[viewer]

    def _asked(self, viewer: _Viewer) -> bool:
        request = b""
        while b"\r\n\r\n" not in request and not viewer.ordered.is_set():
            with contextlib.suppress(TimeoutError):
                if not (part := viewer.socket.recv(4096)):
                    return False
                request += part
        return not viewer.ordered.is_set()

    def _stream(self, viewer: _Viewer) -> None:
        viewer.send(b"HTTP/1.0 200 OK\r\nContent-Type: multipart/x-mixed-replace; boundary=frame\r\n\r\n")
        period_s = 1 / self._fps
        old = [
            Stamp(time.monotonic_ns() - round(age * period_s * 1e9), -age % 256) for age in range(self._backlog, 0, -1)
        ]
        viewer.send(b"".join(map(self._part, old)))
        sent, due = 0, time.monotonic()
        while sent != self._end_after:
            if sent == self._stall_after:
                viewer.wait(lambda: math.inf)
            if viewer.wait(lambda due=due: max(due, self._stalled)):
                break
            viewer.send(self._spoilt_part(self._spoilt.popleft(), sent) if self._spoilt else self._part(_now(sent)))
            sent += 1
            due += period_s
            if due < time.monotonic():  # frames that nobody could take are not made up for
                due = time.monotonic() + period_s
        if viewer.order == "end":
            viewer.socket.send(b"--frame--\r\n")

    def _part(self, stamp: Stamp) -> bytes:
        return self._wrap(self._scene.jpeg(stamp))

    def _wrap(self, jpeg: bytes) -> bytes:
        length = f"Content-Length: {len(jpeg)}\r\n" if self._content_length else ""
        return f"--frame\r\nContent-Type: image/jpeg\r\n{length}\r\n".encode() + jpeg + b"\r\n"

    def _spoilt_part(self, how: str, index: int) -> bytes:
        jpeg = self._scene.jpeg(_now(index))
        if how == "garbage":
            return random.randbytes(len(jpeg))
        if how == "truncate":
            return self._wrap(jpeg[: len(jpeg) // 2])
        start = jpeg.index(b"\xff\xda") + 14  # where the picture data begins
        return self._wrap(jpeg[:start] + random.randbytes(len(jpeg) // 2) + jpeg[start + len(jpeg) // 2 :])


def _now(index: int) -> Stamp:
    return Stamp(time.monotonic_ns(), index % 256)


def _sleep_until(moment: Callable[[], float]) -> None:
    while (left := moment() - time.monotonic()) > 0:
        time.sleep(min(left, 0.05))


if __name__ == "__main__":
    obey(_Server(**json.loads(sys.argv[1])))
