"""The relay between an RTSP camera and FFmpeg: what is added, when nothing is, and that all else passes as it came."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgeattn.camera.frame import Interrupt
from edgeattn.camera.opencv import open_stream
from edgeattn.camera.rtsp import PictureEnds, Relay, Stamps
from edgeattn.errors import SourceError
from edgeattn.timing import monotonic_ns

SDP = (
    b"v=0\r\nm=audio 0 RTP/AVP 0\r\na=rtpmap:0 PCMU/8000\r\n"
    b"m=video 0 RTP/AVP 96 97\r\na=rtpmap:96 H264/90000\r\na=rtpmap:97 H265/90000\r\n"
)
DESCRIBED = b"RTSP/1.0 200 OK\r\nCSeq: 2\r\nContent-Length: %d\r\n\r\n" % len(SDP) + SDP
PLAYING = b"RTSP/1.0 200 OK\r\nCSeq: 5\r\n\r\n"
END = {96: b"\x09\xf0", 97: b"\x46\x01\x50"}


def packet(number: int, time: int, *, marked: bool = False, kind: int = 96, body: bytes = b"\x41slice") -> bytes:
    """RTP, interleaved: 12 bytes of header with the mark above the payload type, after 4 that give channel and length."""
    header = bytes([0x80, kind | 0x80 * marked]) + number.to_bytes(2, "big") + time.to_bytes(4, "big") + b"from"
    return b"$\x00" + (len(header) + len(body)).to_bytes(2, "big") + header + body


def report(timestamp: int, unix_ns: int) -> bytes:
    """A sender's report, on the channel of RTCP."""
    ntp = (unix_ns + 2_208_988_800 * 10**9) * 2**32 // 10**9
    body = b"\x80\xc8\x00\x06from" + ntp.to_bytes(8, "big") + timestamp.to_bytes(4, "big") + 8 * b"\x00"
    return b"$\x01" + len(body).to_bytes(2, "big") + body


def picture(number: int, time: int, *, kind: int = 96) -> bytes:
    """Two packets, the second one marked."""
    return packet(number, time, kind=kind) + packet(number + 1, time, marked=True, kind=kind)


@pytest.mark.parametrize("kind", END)
def test_a_picture_is_followed_by_a_delimiter_of_its_codec(kind: int) -> None:
    ends = PictureEnds()
    assert ends.feed(DESCRIBED + PLAYING) == DESCRIBED + PLAYING
    came = picture(7, 3000, kind=kind)
    assert ends.feed(came) == came + packet(8, 3000, marked=True, kind=kind, body=END[kind])
    assert ends.status == 200


def test_a_packet_with_padding_and_an_extension_gets_a_plain_delimiter() -> None:
    came = bytearray(packet(7, 3000, marked=True, body=b"\x00\x01\x00\x00\x41slice\x00\x02"))
    came[4] |= 0x20 | 0x10
    ends = PictureEnds()
    ends.feed(DESCRIBED)
    assert ends.feed(bytes(came)) == bytes(came) + packet(7, 3000, marked=True, body=END[96])


@pytest.mark.parametrize(
    "came",
    [
        packet(1, 160, marked=True, kind=0),  # audio
        b"$\x01\x00\x1c" + b"\x80\xc8\x00\x06" + 24 * b"r",  # a sender's report
        b"$\x00\x00\x00",
        b"OPTIONS * RTSP/1.0\r\nCSeq: 9\r\n\r\n",
    ],
    ids=["audio", "report", "empty", "request"],
)
def test_what_is_no_end_of_a_picture_passes_alone(came: bytes) -> None:
    ends = PictureEnds()
    ends.feed(DESCRIBED)
    assert ends.feed(came) == came
    whole = picture(1, 3000)
    assert ends.feed(whole) == whole + packet(2, 3000, marked=True, body=END[96]), "and the next picture has its end"


def test_without_a_description_nothing_is_added() -> None:
    assert PictureEnds().feed(picture(1, 3000)) == picture(1, 3000)


def test_a_camera_that_marks_every_slice_is_found_out() -> None:
    ends = PictureEnds()
    ends.feed(DESCRIBED)
    added = []
    for number in range(12):
        came = packet(2 * number, number, marked=True) + packet(2 * number + 1, number, marked=True)
        added.append(len(ends.feed(came)) > len(came))
    assert added == [True] * 3 + [False] * 9


def test_a_camera_that_marks_slices_of_most_pictures_is_found_out_too() -> None:
    ends = PictureEnds()
    ends.feed(DESCRIBED)
    for number in range(40):
        if number % 4:
            ends.feed(packet(2 * number, number, marked=True) + packet(2 * number + 1, number, marked=True))
        else:
            ends.feed(picture(2 * number, number))
        assert ends.told or number > 3
        assert not ends.told or number < 8
    for number in range(40, 70):
        ends.feed(picture(2 * number, number))
    assert ends.told, "and believed again when it does so no more"


def test_headers_may_end_with_bare_line_feeds_and_line_ends_may_stand_between_packets() -> None:
    ends = PictureEnds()
    described = DESCRIBED.replace(b"\r\n", b"\n")
    described = described.replace(b"%d" % len(SDP), b"%d" % len(SDP.replace(b"\r\n", b"\n")))
    whole = picture(1, 3000)
    assert ends.feed(described + b"\r\n" + whole) == (
        described + b"\r\n" + whole + packet(2, 3000, marked=True, body=END[96])
    )


def test_parameter_sets_that_are_marked_do_not_count_against_a_camera() -> None:
    """Before a keyframe each second, as some cameras do."""
    ends = PictureEnds()
    ends.feed(DESCRIBED)
    for number in range(90):
        if number % 30 == 0:
            ends.feed(packet(0, number, marked=True, body=b"\x67set"))
        came = picture(1, number)
        assert ends.feed(came) == came + packet(2, number, marked=True, body=END[96])


PARAMETERS = {
    96: (b"\x67small", b"\x67large", b"\x18\x00\x06\x67large\x00\x03\x68pp"),
    97: (b"\x42\x01small", b"\x42\x01large", b"\x60\x01\x00\x03\x40\x01v\x00\x07\x42\x01large"),
}
"""By payload type: two sequence parameter sets, and the second one within a packet of several units."""


@pytest.mark.parametrize("kind", PARAMETERS)
def test_other_parameters_than_before_tell_of_another_size(kind: int) -> None:
    ends = PictureEnds()
    ends.feed(DESCRIBED)
    small, large, among_others = PARAMETERS[kind]

    def reshapes(time: int, *sets: bytes) -> int:
        ends.feed(b"".join(packet(1, time, kind=kind, body=each) for each in sets) + picture(2, time, kind=kind))
        ends.feed(picture(4, time + 1, kind=kind))
        return ends.reshapes

    assert reshapes(0, small) == 0
    assert not ends.repeats_parameters, "they may have come just this once"
    assert reshapes(10, small) == 0
    assert ends.repeats_parameters
    assert reshapes(20, large) == 1
    assert reshapes(30, among_others) == 1, "the same, in another packet"
    assert reshapes(40) == 1, "a picture without any"
    assert reshapes(50, small, large) == 2
    assert reshapes(60, small, large) == 2, "a camera with two sizes tells both each time"


def test_parameters_are_found_behind_an_extension_and_a_torn_packet_is_none() -> None:
    ends = PictureEnds()
    ends.feed(DESCRIBED)
    for at, body in enumerate((b"\x67small", b"\x67large", b"", b"\x18", b"\x18\x00\x99\x67", b"\x18\x00\x00")):
        came = bytearray(packet(1, at, body=b"\x00\x01\x00\x01ext." + body))
        came[4] |= 0x10
        ends.feed(bytes(came) + packet(2, at, marked=True))
        ends.feed(picture(3, at + 1))
    assert ends.reshapes == 2, "also the set that claims to be longer than it is"


@given(
    st.lists(
        st.sampled_from([DESCRIBED, PLAYING, picture(1, 1), picture(3, 2, kind=97), packet(9, 9, kind=0)]), max_size=8
    ),
    st.lists(st.integers(1, 40), min_size=1, max_size=20),
)
def test_the_pieces_it_came_in_do_not_matter(units: list[bytes], lengths: list[int]) -> None:
    came = b"".join(units)
    whole, pieces, at, k = PictureEnds().feed(came), PictureEnds(), 0, 0
    out = b""
    while at < len(came):
        out += pieces.feed(came[at : at + lengths[k % len(lengths)]])
        at += lengths[k % len(lengths)]
        k += 1
    assert out == whole


@pytest.mark.parametrize(
    "came",
    [b"HTTP garbage " * 6000, b"RTSP/1.0 200 OK\r\nContent-Length: 999999999\r\n\r\n" + b"x" * 70_000],
    ids=["no message", "a body without end"],
)
def test_what_is_not_rtsp_is_not_kept_for_ever(came: bytes) -> None:
    assert PictureEnds().feed(came) == came


@pytest.mark.parametrize(("clock", "tells"), [(0, "sender"), (-5, "received"), (3, "received")])
def test_a_frame_is_taken_when_the_sender_says_if_its_clock_can_be_right(clock: int, tells: str) -> None:
    """Pictures come 20 ms after they were taken, by a clock that is right, 5 s behind or 3 s ahead."""
    now = [0]
    ends = PictureEnds(lambda: now[0])
    ends.feed(DESCRIBED)
    stamps, start, began_ns = Stamps(ends), 2**32 - 90_000, monotonic_ns()
    for number in range(60):
        taken_ns = began_ns + number * 33_333_333
        timestamp = (start + 3000 * number) % 2**32
        if number == 30:
            unix_ns = taken_ns + time.time_ns() - monotonic_ns() + clock * 10**9
            ends.feed(report(timestamp, unix_ns))
        now[0] = taken_ns + 20_000_000
        ends.feed(picture(2 * number, timestamp))
        position_ms = max(0, number - 1) * 1000 / 30  # FFmpeg's, of the delimiter before
        when_ns, whose = stamps.taken(position_ms, now[0] + 2_000_000)
        if number < 9:
            assert (when_ns, whose) == (now[0] + 2_000_000, "received"), "when it was grabbed, until that is settled"
        elif number < 30 or tells == "received":
            assert (when_ns, whose) == (now[0], "received"), "when it came"
        else:
            assert whose == "sender"
            assert abs(when_ns - taken_ns) < 1_000_000


def test_a_frame_that_waited_is_known_for_the_older_one_that_it_is() -> None:
    ends = PictureEnds(lambda: now)
    ends.feed(DESCRIBED)
    stamps, now = Stamps(ends), 0
    for number in range(40):
        now = number * 33_000_000
        ends.feed(picture(2 * number, 3000 * number))
        late = 2 if number > 20 else 0  # frames that FFmpeg has not given yet
        when_ns, _ = stamps.taken(max(0, number - late - 1) * 1000 / 30, now + 1_000_000)
    assert when_ns == now - 2 * 33_000_000


def test_without_ends_a_frame_counts_from_when_it_was_grabbed() -> None:
    ends = PictureEnds(lambda: 5)
    ends.feed(DESCRIBED)
    stamps = Stamps(ends)
    for number in range(30):
        ends.feed(packet(2 * number, number, marked=True) + packet(2 * number + 1, number, marked=True))
        assert stamps.taken(number * 1000 / 30, 99) == (99, "received")


@contextlib.contextmanager
def camera(answer: bytes) -> Iterator[tuple[int, list[bytes]]]:
    """A camera that answers once to whatever it is asked, and hangs up when it is asked again; its port and questions."""
    asked: list[bytes] = []

    def serve() -> None:
        with contextlib.suppress(OSError):
            connection = door.accept()[0]
            with connection:
                asked.append(connection.recv(1000))
                connection.sendall(answer)
                asked.append(connection.recv(1000))

    with socket.create_server(("127.0.0.1", 0)) as door:
        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield door.getsockname()[1], asked
    thread.join(5)
    assert not thread.is_alive()


def relay_threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name.startswith("rtsp relay")]


@pytest.mark.parametrize("first", ["viewer", "camera"])
def test_a_connection_is_passed_on_both_ways_until_either_side_ends_it(first: str) -> None:
    with camera(DESCRIBED + picture(1, 3000)) as (port, asked):
        expected = DESCRIBED + picture(1, 3000) + packet(2, 3000, marked=True, body=END[96])
        with Relay(f"rtsp://box:secret@127.0.0.1:{port}/video?channel=1", 2) as relay:
            assert relay.url == f"rtsp://box:secret@127.0.0.1:{relay.server_address[1]}/video?channel=1"
            viewer = socket.create_connection(("127.0.0.1", relay.server_address[1]), 5)
            viewer.sendall(b"DESCRIBE " + relay.url.replace("box:secret@", "").encode() + b" RTSP/1.0\r\n")
            got = b""
            while len(got) < len(expected):
                got += viewer.recv(1000)
            assert got == expected
        with viewer:  # the connection outlives the relay
            if first == "camera":
                viewer.sendall(b"TEARDOWN")
                assert viewer.recv(1000) == b""
    question = b"DESCRIBE rtsp://127.0.0.1:%d/video?channel=1 RTSP/1.0\r\n" % port
    assert asked == [question, b"TEARDOWN" if first == "camera" else b""]
    for thread in relay_threads():
        thread.join(5)
    assert not relay_threads()


@pytest.mark.parametrize("status", [200, 401, 404])
def test_a_wrong_login_is_known(status: int) -> None:
    with (
        camera(b"RTSP/1.0 %d So\r\n\r\n" % status) as (port, _),
        Relay(f"rtsp://127.0.0.1:{port}/", 2) as relay,
        socket.create_connection(("127.0.0.1", relay.server_address[1]), 5) as viewer,
    ):
        viewer.sendall(b"DESCRIBE")
        assert viewer.recv(1000).endswith(b"\r\n\r\n")
        assert relay.wants_login == (status == 401)
        assert relay.reached


@pytest.mark.parametrize(
    ("url", "asked"),
    [
        ("rtsp://box:secret@door.local/1", "rtsp://door.local:554/1"),
        ("rtsp://[fe80::1]:8554/1", "rtsp://[fe80::1]:8554/1"),
    ],
)
def test_the_camera_is_asked_for_its_own_address(url: str, asked: str) -> None:
    with Relay(url, 2) as relay:
        question = f"DESCRIBE rtsp://127.0.0.1:{relay.server_address[1]}/1 RTSP/1.0".encode()
        assert question.replace(relay._asks, relay._is_asked).decode() == f"DESCRIBE {asked} RTSP/1.0"


def test_a_camera_that_is_away_ends_the_connection_at_once() -> None:
    with socket.create_server(("127.0.0.1", 0)) as gone:
        port = gone.getsockname()[1]
    with (
        Relay(f"rtsp://127.0.0.1:{port}/", 2) as relay,
        socket.create_connection(("127.0.0.1", relay.server_address[1]), 5) as viewer,
    ):
        assert viewer.recv(1000) == b""
    assert (relay.reached, relay.wants_login) == (False, False)


@pytest.mark.parametrize("early", [True, False])
def test_opening_a_silent_camera_can_be_interrupted(early: bool) -> None:
    interrupt, errors = Interrupt(), []

    def open_it() -> None:
        try:
            open_stream(
                f"rtsp://127.0.0.1:{door.getsockname()[1]}/", "the door", 60, 1, clock=monotonic_ns, interrupt=interrupt
            )
        except SourceError as error:
            errors.append(str(error))

    with socket.create_server(("127.0.0.1", 0)) as door:
        if early:
            interrupt()
        thread = threading.Thread(target=open_it, daemon=True)
        thread.start()
        if not early:
            visitor = door.accept()[0]
            assert visitor.recv(1000).startswith(b"OPTIONS")
            interrupt()
            assert visitor.recv(1000) == b"", "hung up"
            visitor.close()
        thread.join(20)
        assert not thread.is_alive()
        door.setblocking(False)
        with pytest.raises(BlockingIOError):  # it is not tried once more without the relay
            door.accept()
    assert errors == ["the door does not open: away, or no video"]


def test_a_name_that_can_be_no_hosts_is_a_camera_that_is_away(capsys: pytest.CaptureFixture[str]) -> None:
    with (
        Relay("rtsp://door..local/", 2) as relay,
        socket.create_connection(("127.0.0.1", relay.server_address[1]), 5) as viewer,
    ):
        assert viewer.recv(1000) == b""
    assert capsys.readouterr().err == ""
