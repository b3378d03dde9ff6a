"""Between an RTSP camera and FFmpeg: says where each picture ends, so that FFmpeg need not wait for the next one to know.

FFmpeg takes the pieces of a picture from RTP and looks for the start of the next picture before it decodes: each frame is
a period of the camera old, 33 ms of 38 at 30 fps. RTP does mark a picture's last packet, but FFmpeg passes the mark over.
So the stream goes through a relay on loopback, which puts an access unit delimiter after each marked packet: a NAL unit
without content that stands where a new picture starts. Nothing that the camera sends is changed.

On the way it sees when each picture has come, the reports that say what time it is at the camera, and whether the
pictures' form was changed; FFmpeg tells none of this.

Standards: RTP (RFC 3550), its payloads of H.264 (RFC 6184) and H.265 (RFC 7798), RTSP and its interleaved RTP (RFC 2326).
"""

from __future__ import annotations

import contextlib
import re
import socket
import socketserver
import threading
import time
from collections import deque
from collections.abc import Iterator
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from edgeattn.camera.frame import OLDEST_NS, AgeFrom
from edgeattn.timing import Clock, monotonic_ns

_PORT = 554
_RTP_HEADER = 12
_MARKED = 0x80
_LONGEST = 65_536
_EMPTY_LINE = re.compile(rb"\r?\n\r?\n")
_PIECE = 65_536
_DOUBTFUL = 12
_TICKS = 90_000
"""RTP's clock of video, per second."""
_SENDER_REPORT = 200
_NTP_TO_UNIX_S = 2_208_988_800
_REMEMBERED = 128
_SETTLED = 10
_SLACK = _TICKS // 2000


class _Codec(NamedTuple):
    """What is known of a payload's NAL units."""

    delimiter: bytes
    """An access unit delimiter that allows any kind of slice in what follows."""
    shift: int
    """How far left the type stands in a unit's first byte."""
    mask: int
    """The type's bits, there."""
    parameters: int
    """The type of a sequence parameter set, which tells the pictures' size."""
    several: int
    """The type of a packet that holds several units, each after its length in two bytes."""
    header: int
    """Bytes before the first of them."""

    def type_of(self, unit: bytes) -> int:
        return unit[0] >> self.shift & self.mask

    def parameter_sets(self, packet: bytes) -> Iterator[bytes]:
        """The sequence parameter sets in an interleaved packet."""
        payload = packet[_payload_at(packet) :]
        if payload and self.type_of(payload) == self.several:
            at = self.header
            while unit := payload[at + 2 : at + 2 + int.from_bytes(payload[at : at + 2], "big")]:
                at += 2 + len(unit)
                if self.type_of(unit) == self.parameters:
                    yield unit
        elif payload and self.type_of(payload) == self.parameters:
            yield payload


_CODECS = {
    b"H264": _Codec(b"\x09\xf0", shift=0, mask=0x1F, parameters=7, several=24, header=1),
    b"H265": _Codec(b"\x46\x01\x50", shift=1, mask=0x3F, parameters=33, several=48, header=2),
}
"""By the name of the payload in SDP."""


class Picture(NamedTuple):
    """A picture that has come whole."""

    timestamp: int
    """RTP's, in `_TICKS` from a random start, 32 bits."""
    arrived_ns: int
    """When its last packet came, on the monotonic clock."""


class Report(NamedTuple):
    """What time it was at the camera, from its latest sender report (RFC 3550, section 6.4.1)."""

    timestamp: int
    """RTP's."""
    unix_ns: int
    """The camera's clock, since 1970."""


class PictureEnds:
    """What a camera sends over an RTSP connection, with an access unit delimiter after each picture.

    Where a camera marks packets in the midst of its pictures, this is noticed after some, and nothing more is added.
    """

    def __init__(self, clock: Clock = monotonic_ns) -> None:
        self.status: int | None = None
        """Of the last answer (RFC 2326, section 7.1.1); None: there was none."""
        self.pictures: deque[Picture] = deque(maxlen=_REMEMBERED)
        """The latest ones, for any thread."""
        self.report: Report | None = None
        """The latest one of the pictures' sender."""
        self.reshapes = 0
        """How often other parameters than before came with a picture: its size may be another one."""
        self.repeats_parameters = False
        """Whether they come again and again, so that none are missed."""
        self._clock = clock
        self._sender = b""
        self._rest = bytearray()
        self._codecs: dict[int, _Codec] = {}  # by payload type
        self._parameters: list[bytes] = []  # of the picture in hand
        self._parameters_before: list[bytes] = []  # of the picture before that had any
        self._timestamp = b""  # of the picture in hand
        self._ended = self._torn = False  # whether its end was marked, and whether it went on all the same
        self._doubts = 0

    @property
    def told(self) -> bool:
        """Whether the ends of pictures are added at present."""
        return self._doubts < _DOUBTFUL

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
        if self._rest[at] in b"\r\n":  # between messages
            return 1
        head = _EMPTY_LINE.search(self._rest, at)
        body = re.search(rb"\ncontent-length: *(\d+)", self._rest[at : head.start()], re.IGNORECASE) if head else None
        length = head.end() - at + (int(body[1]) if body else 0) if head else rest + 1
        if length <= rest:
            return length
        return rest if rest > _LONGEST else 0  # what is longer is not RTSP: as it comes

    def _read(self, message: bytes) -> None:
        """Of an answer: its status, and of a description the payload types that we know."""
        if status := re.match(rb"RTSP/\S+ (\d+)", message):
            self.status = int(status[1])
        for payload_type, codec in re.findall(rb"\na=rtpmap: *(\d+) +(H26[45])/", message, re.IGNORECASE):
            self._codecs[int(payload_type)] = _CODECS[codec.upper()]

    def _after(self, packet: bytes) -> bytes:
        """What is put after an interleaved packet: a delimiter where a picture ends, in a packet of the same number."""
        header = packet[4 : 4 + _RTP_HEADER]
        if header[1:2] == bytes([_SENDER_REPORT]) and len(packet) >= 24 and packet[8:12] == self._sender:
            whole_s, part, timestamp = (int.from_bytes(packet[at : at + 4], "big") for at in (12, 16, 20))
            self.report = Report(timestamp, (whole_s - _NTP_TO_UNIX_S) * 10**9 + (part * 10**9 >> 32))
        if len(header) < _RTP_HEADER or (codec := self._codecs.get(header[1] & 0x7F)) is None:
            return b""
        if header[4:8] != self._timestamp:
            self._compare_parameters()
            self._doubts = min(2 * _DOUBTFUL, self._doubts + 4) if self._torn else max(0, self._doubts - 1)
            self._timestamp, self._ended, self._torn = header[4:8], False, False
        elif self._ended:
            self._torn = True
        self._parameters += codec.parameter_sets(packet)
        if not header[1] & _MARKED:
            return b""
        if self._ended:
            self.pictures.pop()
        self._ended, self._sender = True, header[8:12]
        self.pictures.append(Picture(int.from_bytes(self._timestamp, "big"), self._clock()))
        if not self.told:
            return b""
        plain = b"\x80" + header[1:]  # no padding, no extension, no contributors
        return packet[:2] + (len(plain) + len(codec.delimiter)).to_bytes(2, "big") + plain + codec.delimiter

    def _compare_parameters(self) -> None:
        """Hold those that came with a picture against those before; most pictures have none."""
        now, self._parameters = self._parameters, []
        if now:
            before, self._parameters_before = self._parameters_before, now
            self.repeats_parameters = bool(before)
            self.reshapes += bool(before) and before != now


def _payload_at(packet: bytes) -> int:
    """Where the payload of an interleaved packet begins (RFC 3550, sections 5.1 and 5.3.1)."""
    at = 4 + _RTP_HEADER + 4 * (packet[4] & 0x0F)
    has_extension = packet[4] & 0x10
    return at + 4 + 4 * int.from_bytes(packet[at + 2 : at + 4], "big") if has_extension else at


class Stamps:
    """When the frames were taken that FFmpeg gives: it tells their places on its own clock, `PictureEnds` saw the rest."""

    def __init__(self, ends: PictureEnds) -> None:
        self.ends = ends
        """Who saw them come."""
        self._start: int | None = None
        self._asked = 0
        self._doubted: Report | None = None

    def taken(self, position_ms: float, grabbed_ns: int) -> tuple[int, AgeFrom]:
        """When a frame was taken, and by whose clock.

        By the camera's, if its latest report says so and every picture since came after it was taken, within two seconds:
        else the camera's clock is not set as ours is. Else it is when the last packet came, and where that is not known,
        when the frame was grabbed.

        Args:
            position_ms: the frame's, since FFmpeg's start.
            grabbed_ns: when FFmpeg gave it.
        """
        self._asked += 1
        pictures = [each for each in tuple(self.ends.pictures) if each.arrived_ns <= grabbed_ns]
        if self._asked == 1 or len(pictures) < 2 or not self.ends.told:
            return grabbed_ns, "received"
        position = round(position_ms * _TICKS / 1000)
        # A picture begins for FFmpeg with the delimiter after the one before, and has that one's timestamp. Where FFmpeg
        # began to count is not told: the newest picture is the grabbed one, unless that was waiting.
        start = pictures[-2].timestamp - position
        if self._start is None or _ticks(start, self._start) < 0:
            self._start = start
        before = self._start + position
        pairs = zip(reversed(pictures[:-1]), reversed(pictures), strict=False)
        picture = next((one for last, one in pairs if abs(_ticks(last.timestamp, before)) <= _SLACK), None)
        if picture is None or self._asked < _SETTLED:
            return grabbed_ns, "received"
        if (report := self.ends.report) and report is not self._doubted:
            since_ns = _ticks(picture.timestamp, report.timestamp) * 10**9 // _TICKS
            taken_ns = report.unix_ns + since_ns - (time.time_ns() - monotonic_ns())
            if 0 <= picture.arrived_ns - taken_ns < OLDEST_NS:
                return taken_ns, "sender"
            self._doubted = report
        return picture.arrived_ns, "received"


def _ticks(later: int, earlier: int) -> int:
    """From one RTP timestamp to another, over the end of their 32 bits."""
    return (later - earlier + 2**31) % 2**32 - 2**31


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
        self.reached = False
        """Whether a connection was made to the camera."""
        self.hung_up = False
        """Whether `hang_up` was called."""
        self._visitors: list[socket.socket] = []
        self._lock = threading.Lock()  # guards the two
        super().__init__(("127.0.0.1", 0), socketserver.BaseRequestHandler)
        login, at, camera = parts.netloc.rpartition("@")
        ours = f"127.0.0.1:{self.server_address[1]}"
        self.url = parts._replace(netloc=f"{login}{at}{ours}").geturl()
        """What FFmpeg opens instead."""
        # Servers may tell streams by the whole address. A login's hash keeps the one that FFmpeg knows, next to it.
        theirs = camera if parts.port else f"{camera}:{_PORT}"
        self._asks, self._is_asked = f" rtsp://{ours}".encode(), f" rtsp://{theirs}".encode()

    @property
    def stamps(self) -> Stamps | None:
        """Of the latest connection; None before the first."""
        return Stamps(self._ends[-1]) if self._ends else None

    @property
    def wants_login(self) -> bool:
        """Whether that was the camera's last answer to any connection (RFC 2326, section 11.1)."""
        return any(ends.status == 401 for ends in self._ends)

    def __enter__(self) -> Relay:
        """Take connections from now on."""
        threading.Thread(target=self.serve_forever, args=(0.01,), name="rtsp relay", daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        """Take no more."""
        self.shutdown()
        self.server_close()

    def hang_up(self) -> None:
        """End the connections that FFmpeg has made, and those that it makes; by any thread."""
        with self._lock:
            self.hung_up = True
            for visitor in self._visitors:
                _hang_up(visitor)

    def finish_request(self, request: Any, client_address: Any) -> None:
        """One connection, in a thread of its own, until it ends."""
        ours: socket.socket = request
        with self._lock:
            if self.hung_up:
                return
            self._visitors.append(ours)
        ends = PictureEnds()
        self._ends.append(ends)
        # ValueError: of a name that cannot be one of a host's.
        with (
            contextlib.suppress(OSError, ValueError),
            socket.create_connection(self._camera, self._timeout_s) as camera,
        ):
            self.reached = True
            camera.settimeout(None)
            ours.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            asked = threading.Thread(target=self._ask, args=(ours, camera), name="rtsp relay, requests", daemon=True)
            asked.start()
            with contextlib.suppress(OSError):
                while piece := camera.recv(_PIECE):
                    ours.sendall(ends.feed(piece))
            _hang_up(ours)
            _hang_up(camera)
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
