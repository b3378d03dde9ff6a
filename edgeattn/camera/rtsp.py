"""Between an RTSP camera and FFmpeg: says where each picture ends, so that FFmpeg need not wait for the next one to know.

FFmpeg takes the pieces of a picture from RTP and looks for the start of the next picture before it decodes: each frame is
a period of the camera old, 33 ms of 38 at 30 fps. RTP does mark a picture's last packet, but FFmpeg passes the mark over.
So the stream goes through a relay on loopback, which puts an access unit delimiter after each marked packet: a NAL unit
without content that stands where a new picture starts. Nothing that the camera sends is changed.

Standards: RTP (RFC 3550), its payloads of H.264 (RFC 6184) and H.265 (RFC 7798), RTSP and its interleaved RTP (RFC 2326).
"""

from __future__ import annotations

import contextlib
import re
import socket
import socketserver
import threading
from typing import Any
from urllib.parse import urlsplit

_PORT = 554
_RTP_HEADER = 12
_MARKED = 0x80
_LONGEST = 65_536
_PIECE = 65_536
_DELIMITERS = {b"H264": b"\x09\xf0", b"H265": b"\x46\x01\x50"}
"""An access unit delimiter that allows any kind of slice in what follows, by the name of the payload in SDP."""
_TORN_AT_MOST = 3


class PictureEnds:
    """What a camera sends over an RTSP connection, with an access unit delimiter after each picture.

    Where a camera marks packets in the midst of its pictures, this is noticed after some, and nothing more is added.
    """

    def __init__(self) -> None:
        self.status: int | None = None
        """Of the last answer (RFC 2326, section 7.1.1); None: there was none."""
        self._rest = bytearray()
        self._delimiters: dict[int, bytes] = {}  # by payload type
        self._timestamp = b""  # of the picture in hand
        self._ended = self._torn = False  # whether its end was marked, and whether it went on all the same
        self._torn_in_a_row = 0

    def feed(self, data: bytes) -> bytes:
        """What to pass on after another piece of the connection: as much as is whole."""
        self._rest += data
        out, at = bytearray(), 0
        while at < len(self._rest) and (length := self._whole(at)):
            unit = bytes(self._rest[at : at + length])
            out += unit
            at += length
            if unit.startswith(b"$"):
                out += self._after(unit)
            else:
                self._read(unit)
        del self._rest[:at]
        return bytes(out)

    def _whole(self, at: int) -> int:
        """Bytes of the packet or message that begins there; 0 if not all of them have come."""
        rest = len(self._rest) - at
        if self._rest[at] == ord("$"):
            length = 4 + int.from_bytes(self._rest[at + 2 : at + 4], "big")
            return length if rest >= 4 and length <= rest else 0
        end = self._rest.find(b"\r\n\r\n", at)
        body = re.search(rb"\ncontent-length: *(\d+)", self._rest[at:end], re.IGNORECASE) if end >= 0 else None
        length = end + 4 - at + (int(body[1]) if body else 0) if end >= 0 else rest + 1
        if length <= rest:
            return length
        return rest if rest > _LONGEST else 0  # what is longer is not RTSP: as it comes

    def _read(self, message: bytes) -> None:
        """Of an answer: its status, and of a description the payload types that we know."""
        if status := re.match(rb"RTSP/\S+ (\d+)", message):
            self.status = int(status[1])
        for payload_type, codec in re.findall(rb"\na=rtpmap: *(\d+) +(H26[45])/", message, re.IGNORECASE):
            self._delimiters[int(payload_type)] = _DELIMITERS[codec.upper()]

    def _after(self, packet: bytes) -> bytes:
        """What is put after an interleaved packet: a delimiter where a picture ends, in a packet of the same number."""
        header = packet[4 : 4 + _RTP_HEADER]
        if len(header) < _RTP_HEADER or (delimiter := self._delimiters.get(header[1] & 0x7F)) is None:
            return b""
        if header[4:8] != self._timestamp:
            self._torn_in_a_row = self._torn_in_a_row + 1 if self._torn else 0
            self._timestamp, self._ended, self._torn = header[4:8], False, False
        elif self._ended:
            self._torn = True
        if not header[1] & _MARKED:
            return b""
        self._ended = True
        if self._torn_in_a_row >= _TORN_AT_MOST:
            return b""
        plain = b"\x80" + header[1:]  # no padding, no extension, no contributors
        return packet[:2] + (len(plain) + len(delimiter)).to_bytes(2, "big") + plain + delimiter


class Relay(socketserver.ThreadingTCPServer):
    """Takes FFmpeg's connections on loopback and makes each to the camera, with `PictureEnds` on the way back.

    Connections that were made outlive it; each ends when either side closes it.

    Args:
        url: the camera's, `rtsp://[NAME:PASSWORD@]HOST[:PORT]/...`.
        timeout_s: how long connecting to the camera may take.

    Raises:
        OSError: no port of loopback is free.
        ValueError: the address has no such port.
    """

    daemon_threads, block_on_close = True, False

    def __init__(self, url: str, timeout_s: float) -> None:
        parts = urlsplit(url)
        self._camera = (parts.hostname or "", parts.port or _PORT)
        self._timeout_s = timeout_s
        self._ends: list[PictureEnds] = []
        super().__init__(("127.0.0.1", 0), socketserver.BaseRequestHandler)
        login, at, camera = parts.netloc.rpartition("@")
        ours = f"127.0.0.1:{self.server_address[1]}"
        self.url = parts._replace(netloc=f"{login}{at}{ours}").geturl()
        """What FFmpeg opens instead."""
        # Servers may tell streams by the whole address. A login's hash keeps the one that FFmpeg knows, next to it.
        theirs = camera if parts.port else f"{camera}:{_PORT}"
        self._asks, self._is_asked = f" rtsp://{ours}".encode(), f" rtsp://{theirs}".encode()

    @property
    def refused(self) -> bool:
        """Whether the camera's last answer to any connection was an error (RFC 2326, section 7.1.1)."""
        return any(ends.status is not None and ends.status >= 400 for ends in self._ends)

    def __enter__(self) -> Relay:
        """Take connections from now on."""
        threading.Thread(target=self.serve_forever, args=(0.01,), name="rtsp relay", daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        """Take no more."""
        self.shutdown()
        self.server_close()

    def finish_request(self, request: Any, client_address: Any) -> None:
        """One connection, in a thread of its own, until it ends."""
        ours: socket.socket = request
        ends = PictureEnds()
        self._ends.append(ends)
        with contextlib.suppress(OSError), socket.create_connection(self._camera, self._timeout_s) as camera:
            camera.settimeout(None)
            ours.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            asked = threading.Thread(target=self._ask, args=(ours, camera), name="rtsp relay, requests", daemon=True)
            asked.start()
            with contextlib.suppress(OSError):
                while piece := camera.recv(_PIECE):
                    ours.sendall(ends.feed(piece))
            _hang_up(ours)
            asked.join()

    def _ask(self, ours: socket.socket, camera: socket.socket) -> None:
        """Pass on what FFmpeg asks for, until either connection ends."""
        with contextlib.suppress(OSError):
            while piece := ours.recv(_PIECE):
                camera.sendall(piece.replace(self._asks, self._is_asked))
        _hang_up(camera)


def _hang_up(connection: socket.socket) -> None:
    with contextlib.suppress(OSError):
        connection.shutdown(socket.SHUT_RDWR)
