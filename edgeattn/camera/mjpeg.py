"""MJPEG over HTTP, read without FFmpeg: the newest whole JPEG of what has arrived.

FFmpeg's reader dies of the first garbage or silence, shows half of a frame that was cut off, scales a changed size back
silently, and cannot be stopped by another thread. This one goes on after all that as long as the connection stands.
"""

from __future__ import annotations

import base64
import contextlib
import errno
import os
import re
import selectors
import socket
import time
from collections.abc import Iterator
from urllib.parse import SplitResult, unquote, urlsplit

import numpy as np

from edgeattn._cv2 import cv2
from edgeattn.camera.frame import AgeFrom, Interrupt
from edgeattn.errors import RefusedError, SourceError
from edgeattn.imaging import Picture
from edgeattn.timing import Clock

LARGEST = 1 << 24
"""Bytes of one JPEG, at most."""
_KNOCK_S = 0.1
_KNOCKS = 3
_MOST_PIXELS = 1 << 26
_DRAIN_S = 0.1
_HEAD = 1 << 14
_MARKER = re.compile(rb"\xff[^\x00\xff\xd0-\xd7]")
_BETWEEN_SCANS = b"\xc4\xda\xdb\xdc\xdd"
_BETWEEN_JPEGS = b"\r\n\t -\0\xff"  # a boundary's line, or what fills a buffer up


class NotMjpegError(Exception):
    """The address answers, but with something that this reader does not speak."""


class HttpMjpeg:
    """A connection to a camera that sends JPEGs as `multipart/x-mixed-replace`."""

    fps: float | None = None
    age_from: AgeFrom = "received"
    held = 1.0

    def __init__(
        self, url: str, name: str, timeout_s: float, silent_s: float, *, clock: Clock, interrupt: Interrupt
    ) -> None:
        """Connect within `timeout_s`; a `read` then waits for `silent_s`, or until `interrupt`.

        Raises:
            NotMjpegError: another reader should try.
            RefusedError: the camera wants another login or address.
            SourceError: the camera is away.
        """
        self.skipped = self._undecodable = 0
        self._name, self._silent_s, self._clock = name, silent_s, clock
        self._jpegs = JpegScanner()
        try:
            self._socket, head, rest = _connect(urlsplit(url), timeout_s)
        except (OSError, EOFError, ValueError) as error:
            raise SourceError(f"{name} does not answer ({_reason(error)})") from error
        try:
            _check(head, name)
        except BaseException:
            self._socket.close()
            raise
        self._ready = list(self._jpegs.feed(rest))
        interrupt.add(self._hang_up)

    @property
    def damaged(self) -> int:
        """Frames that were cut off, spoilt, or not to be decoded."""
        return self._jpegs.damaged + self._undecodable

    def read(self) -> tuple[Picture, int]:
        """The newest frame, waiting for one; it and when its last byte came.

        Raises:
            SourceError: the stream ended, broke off, or was silent.
        """
        while True:
            jpeg = self._newest()
            received_ns = self._clock()
            if 0 < pixels(jpeg) <= _MOST_PIXELS:  # else a spoilt size would take gigabytes, or be refused by an error
                picture = cv2.imdecode(np.frombuffer(jpeg, np.uint8), cv2.IMREAD_COLOR)
                if picture is not None:
                    return np.asarray(picture, np.uint8), received_ns
            self._undecodable += 1

    def close(self) -> None:
        """Close."""
        self._socket.close()

    def _hang_up(self) -> None:
        """End a `read` at once, with an error."""
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)

    def _newest(self) -> bytes:
        """The last whole JPEG of all that has arrived."""
        jpegs, self._ready = self._ready, []
        enough = time.monotonic() + _DRAIN_S  # a sender that never pauses is not followed for ever
        while True:
            self._socket.settimeout(0.0 if jpegs else self._silent_s)
            try:
                data = self._socket.recv(1 << 18)
            except TimeoutError as error:
                raise SourceError(f"{self._name} is silent") from error
            except BlockingIOError:
                break
            except OSError as error:
                raise SourceError(f"{self._name} broke off ({_reason(error)})") from error
            if not data:
                raise SourceError(f"{self._name} ended the stream")
            jpegs += self._jpegs.feed(data)
            if jpegs and time.monotonic() > enough:
                break
        self.skipped += len(jpegs) - 1
        return jpegs[-1]


def pixels(jpeg: bytes) -> int:
    """Width times height as a JPEG's header says (ITU-T T.81, B.2.2); 0: it has none."""
    at = 2
    while at + 9 <= len(jpeg) and jpeg[at] == 0xFF:
        kind = jpeg[at + 1]
        if 0xC0 <= kind <= 0xCF and kind not in (0xC4, 0xC8, 0xCC):
            return int.from_bytes(jpeg[at + 5 : at + 7], "big") * int.from_bytes(jpeg[at + 7 : at + 9], "big")
        at += 1 if kind == 0xFF else 2 + int.from_bytes(jpeg[at + 2 : at + 4], "big")
    return 0


class JpegScanner:
    """Finds whole JPEGs in a stream of bytes by their own markers, whatever stands between them.

    A JPEG that is cut off, or whose data hold what no encoder writes, is counted as damaged and passed over.
    """

    def __init__(self) -> None:
        self.damaged = 0
        self._buffer = bytearray()
        self._inside = self._scanning = False
        self._place = 0

    def feed(self, data: bytes) -> Iterator[bytes]:
        """The JPEGs that are whole with these bytes."""
        self._buffer += data
        while self._inside or self._find_start():
            found = self._find_end()
            if found is None:
                return
            end, whole = found
            jpeg = bytes(self._buffer[:end])
            del self._buffer[:end]
            self._inside = False
            if whole:
                yield jpeg
            else:
                self.damaged += 1

    def _find_start(self) -> bool:
        start = self._buffer.find(b"\xff\xd8\xff")
        if start < 0:
            del self._buffer[:-2]
            return False
        del self._buffer[:start]
        self._inside, self._scanning, self._place = True, False, 2
        return True

    def _find_end(self) -> tuple[int, bool] | None:
        """Where the JPEG ends that the buffer starts with, and whether it is whole; None: more has to come."""
        buffer = self._buffer
        while True:
            place = _find_marker(buffer, self._place) if self._scanning else self._place
            if place + 2 > len(buffer):
                self._place = place
                return (len(buffer), False) if len(buffer) > LARGEST else None
            code, length = buffer[place + 1], int.from_bytes(buffer[place + 2 : place + 4], "big")
            if buffer[place] == code == 0xFF:  # filling
                self._place = place + 1
                continue
            if code == 0xD9 and self._scanning:  # within spoilt data, it is followed by more of them
                return place + 2, not buffer[place + 2 : place + 3].strip(_BETWEEN_JPEGS)
            if buffer[place] != 0xFF or code < 0xC0 or code == 0xD8:
                return place, False
            if place + 4 > len(buffer):
                self._place = place
                return None
            if self._scanning and (code not in _BETWEEN_SCANS or length > 4096):
                return place + 2, False
            self._place = place + 2 + length
            self._scanning = self._scanning or code == 0xDA


def _find_marker(buffer: bytearray, place: int) -> int:
    """Where the next marker is within a JPEG's data, or where to go on looking once more has come."""
    found = _MARKER.search(buffer, place)
    return found.start() if found else max(place, len(buffer) - 1)


def _connect(url: SplitResult, timeout_s: float) -> tuple[socket.socket, bytes, bytes]:
    """Knock every 100 ms and take the first connection that answers; its head and what followed.

    A knock that a camera has swallowed while it was away is not answered when it is back. Only a few are in flight: the
    first one is given all the time, for cameras that are far.
    """
    if not url.hostname:
        raise ValueError("the address names no host")
    addresses = socket.getaddrinfo(url.hostname, url.port or 80, type=socket.SOCK_STREAM)
    request, error = _request(url), OSError(errno.ETIMEDOUT, os.strerror(errno.ETIMEDOUT))
    begin, knocks = time.monotonic(), 0
    answers: dict[socket.socket, bytearray] = {}
    with selectors.DefaultSelector() as selector, contextlib.ExitStack() as stack:

        def drop(knock: socket.socket) -> None:
            selector.unregister(knock)
            del answers[knock]
            knock.close()

        def drop_all() -> None:
            for knock in list(answers):
                drop(knock)

        stack.callback(drop_all)
        while (now := time.monotonic()) < begin + timeout_s:
            if not answers or now >= begin + knocks * _KNOCK_S:
                if not answers and knocks >= len(addresses):
                    raise error
                if len(answers) == _KNOCKS:
                    drop(list(answers)[1])
                family, kind, protocol, _, address = addresses[knocks % len(addresses)]
                knock = socket.socket(family, kind, protocol)
                answers[knock] = bytearray()
                knock.setblocking(False)
                knock.connect_ex(address)
                selector.register(knock, selectors.EVENT_WRITE)
                knocks += 1
            for key, event in selector.select(max(0.0, begin + min(knocks * _KNOCK_S, timeout_s) - time.monotonic())):
                knock = key.fileobj  # type: ignore[assignment]
                try:
                    if event == selectors.EVENT_WRITE:
                        _send(knock, request)
                        selector.modify(knock, selectors.EVENT_READ)
                    elif _has_head(knock, answers[knock]):
                        selector.unregister(knock)
                        head, _, rest = bytes(answers.pop(knock)).partition(b"\r\n\r\n")
                        return knock, head, rest
                except OSError as failure:
                    error = failure
                    drop(knock)
    raise error


def _send(knock: socket.socket, request: bytes) -> None:
    if failed := knock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
        raise OSError(failed, os.strerror(failed))
    knock.sendall(request)


def _has_head(knock: socket.socket, answer: bytearray) -> bool:
    data = knock.recv(_HEAD)
    answer += data
    if not data or len(answer) > 2 * _HEAD:
        raise ConnectionError("no answer of a web server")
    return b"\r\n\r\n" in answer


def _request(url: SplitResult) -> bytes:
    path = (url.path or "/") + (f"?{url.query}" if url.query else "")
    host = url.netloc.rpartition("@")[2]
    lines = [f"GET {path} HTTP/1.0", f"Host: {host}", "Accept: */*"]  # 1.0: the answer comes without chunks
    if url.username is not None:
        login = f"{unquote(url.username)}:{unquote(url.password or '')}"
        lines.append(f"Authorization: Basic {base64.b64encode(login.encode()).decode()}")
    return "\r\n".join([*lines, "", ""]).encode()


def _check(head: bytes, name: str) -> None:
    """Look whether an answer is a stream of pictures."""
    first, *lines = head.decode("latin-1").lower().split("\r\n")
    fields = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines)}
    status = first.split(" ")[1] if first.startswith("http/") and " " in first else ""
    if status == "401" and "digest" in fields.get("www-authenticate", ""):
        raise NotMjpegError
    if status in ("401", "403"):
        raise RefusedError(f"{name} wants another login (HTTP {status}); write it as http://NAME:PASSWORD@...")
    if status in ("400", "404", "410"):
        raise RefusedError(f"{name} has no stream at this address (HTTP {status}); check its path")
    if status.startswith("3"):
        raise NotMjpegError
    if status != "200":
        raise SourceError(f"{name} gives no stream now (HTTP {status or 'no status'})")
    if not fields.get("content-type", "").startswith("multipart/") or "transfer-encoding" in fields:
        raise NotMjpegError


def _reason(error: Exception) -> str:
    return (getattr(error, "strerror", None) or str(error) or type(error).__name__).lower()
