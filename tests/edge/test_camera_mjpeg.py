"""JPEGs in a stream of bytes, and what a camera's answer says."""

from __future__ import annotations

import socket
import threading
import time

import numpy as np
import pytest

from edgeattn._cv2 import cv2
from edgeattn.camera.frame import Interrupt
from edgeattn.camera.mjpeg import HttpMjpeg, JpegScanner, NotMjpegError, _check, _request, pixels
from edgeattn.errors import RefusedError, SourceError
from edgeattn.timing import monotonic_ns


def jpeg(seed: int, *options: int) -> bytes:
    noise = np.random.default_rng(seed).integers(0, 256, (48, 64, 3), np.uint8)
    return cv2.imencode(".jpg", noise, list(options))[1].tobytes()


@pytest.mark.parametrize("options", [(), (cv2.IMWRITE_JPEG_PROGRESSIVE, 1), (cv2.IMWRITE_JPEG_RST_INTERVAL, 2)])
@pytest.mark.parametrize("step", [1, 7, 1000, 1 << 20])
def test_whole_jpegs_are_found_however_they_arrive(step: int, options: tuple[int, ...]) -> None:
    thumbnail = jpeg(9)
    inside = b"\xff\xe1" + (len(thumbnail) + 2).to_bytes(2, "big") + thumbnail
    pictures = [jpeg(i, *options) for i in range(3)]
    pictures[1] = pictures[1][:2] + inside + pictures[1][2:]
    stream = b"".join(b"--frame\r\nContent-Type: image/jpeg\r\n\r\n" + each + b"\r\n" for each in pictures)
    scanner = JpegScanner()
    found = [each for i in range(0, len(stream), step) for each in scanner.feed(stream[i : i + step])]
    assert found == pictures
    assert scanner.damaged == 0


def test_damaged_ones_are_counted_and_passed_over() -> None:
    whole, spoilt = jpeg(0), bytearray(jpeg(1))
    spoilt[-200:-198] = b"\xff\x41"
    scanner = JpegScanner()
    noise = np.random.default_rng(0).integers(0, 255, 5000, np.uint8).tobytes()
    assert list(scanner.feed(whole[:-300] + whole + bytes(spoilt) + noise + whole)) == [whole, whole]
    assert scanner.damaged == 2


def test_one_that_seems_to_end_within_its_data_is_damaged() -> None:
    whole, spoilt = jpeg(0), bytearray(jpeg(1))
    spoilt[-200:-198] = b"\xff\xd9"
    assert cv2.imdecode(np.frombuffer(bytes(spoilt[:-198]), np.uint8), cv2.IMREAD_COLOR) is not None, (
        "half of a picture"
    )
    for between in (b"\r\n--frame\r\n", b"\0\0", b""):
        scanner = JpegScanner()
        assert list(scanner.feed(whole + between + bytes(spoilt) + between + whole)) == [whole, whole]
        assert scanner.damaged == 1


def test_a_spoilt_size_costs_one_frame() -> None:
    """OpenCV would refuse it by an error of its own, or take gigabytes for it."""
    whole, spoilt = jpeg(0), bytearray(jpeg(1))
    at = spoilt.index(b"\xff\xc0") + 5
    assert (pixels(whole), pixels(whole[:100]), pixels(b"")) == (48 * 64, 0, 0)
    spoilt[at : at + 4] = b"\xff\xdc\xff\xdc"
    with socket.create_server(("127.0.0.1", 0)) as door:

        def serve() -> None:
            with door.accept()[0] as viewer:
                viewer.recv(1000)
                viewer.sendall(
                    b"HTTP/1.0 200 OK\r\nContent-Type: multipart/x-mixed-replace\r\n\r\n" + bytes(spoilt) + b"--x"
                )
                time.sleep(0.3)
                viewer.sendall(whole + b"--x")
                viewer.recv(1000)

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        camera = HttpMjpeg(
            f"http://127.0.0.1:{door.getsockname()[1]}/", "door", 2, 2, clock=monotonic_ns, interrupt=Interrupt()
        )
        assert camera.read()[0].shape == (48, 64, 3)
        assert camera.damaged == 1
        camera.close()
        thread.join(5)


def test_a_login_is_sent_as_basic() -> None:
    from urllib.parse import urlsplit

    request = _request(urlsplit("http://me:p%40ss@[::1]:81/video?x=1")).decode()
    assert request.startswith("GET /video?x=1 HTTP/1.0\r\nHost: [::1]:81\r\n")
    assert "Authorization: Basic bWU6cEBzcw==\r\n" in request


@pytest.mark.parametrize(
    ("head", "error"),
    [
        ("HTTP/1.1 401 Unauthorized", RefusedError),
        ("HTTP/1.1 401 Unauthorized\r\nWWW-Authenticate: Digest realm=x", NotMjpegError),
        ("HTTP/1.1 404 Not Found", RefusedError),
        ("HTTP/1.1 503 Busy", SourceError),
        ("HTTP/1.1 302 Found\r\nLocation: /", NotMjpegError),
        ("HTTP/1.1 200 OK\r\nContent-Type: video/mp4", NotMjpegError),
        ("HTTP/1.1 200 OK\r\nContent-Type: multipart/x-mixed-replace\r\nTransfer-Encoding: chunked", NotMjpegError),
        ("SSH-2.0-OpenSSH", SourceError),
    ],
)
def test_what_a_camera_answers(head: str, error: type[Exception]) -> None:
    with pytest.raises(error):
        _check(head.encode(), "the camera")


def test_a_stream_of_pictures_is_taken() -> None:
    _check(b"HTTP/1.0 200 OK\r\nContent-Type: multipart/x-mixed-replace; boundary=x", "the camera")
