"""A camera's faults under our reader: what is shown of each, and how soon frames are back."""

from __future__ import annotations

import contextlib
import functools
import socket
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rtsp
import tiny
from calm import in_calm
from judge import Judge
from mjpeg import MjpegCamera
from remote import later
from rtsp import RtspCamera
from stamps import read_stamp
from waits import HTTP_MS, RTSP_MS, states, watched

from edgeattn.bundle import Bundle
from edgeattn.camera import Camera, Pipeline
from edgeattn.camera.frame import Interrupt
from edgeattn.camera.opencv import open_stream
from edgeattn.camera.watch import Watch
from edgeattn.engines.fake import FakeEngine
from edgeattn.errors import SourceError

pytestmark = pytest.mark.rig

needs_rtsp = pytest.mark.skipif(rtsp.missing() is not None, reason=rtsp.missing() or "")
SHOWN_MS = 500


ENDED = ["stalled", "down", "live"]
FAULTS: list[tuple[str, tuple[float, ...], list[list[str]], int]] = [
    ("unplug", (1.5,), [ENDED], 0),
    ("silent", (1.3,), [ENDED[1:]], 1),
    ("refuse", (0.7,), [ENDED[1:]], 1),
    ("stall", (3.0,), [ENDED], 0),
    ("stall", (0.8,), [["stalled", "live"]], 0),
    ("stall", (0.4,), [[], ["stalled", "live"]], 0),
    ("reset", (), [ENDED[1:]], 1),
    ("end", (), [ENDED[1:]], 1),
    ("garbage", (1,), [[]], 0),
    ("corrupt", (1,), [[]], 0),
    ("truncate", (1,), [[]], 0),
]
"""Each with the states that it may lead to, and the reconnects; longer ones are in `waits.py`."""


@pytest.mark.parametrize(
    ("faults", "content_length"), [(FAULTS, True), (FAULTS[-5:], False)], ids=["all", "no lengths"]
)
def test_an_mjpeg_camera_comes_back_from_every_fault(faults: list[Any], content_length: bool) -> None:
    """One after the other on one camera: the worst of them come first."""
    with MjpegCamera(content_length=content_length) as camera, watched(camera) as (watch, judge):

        def check(name: str, arguments: tuple[float, ...], expected: list[list[str]], reconnects: int) -> None:
            judge.wait_for(len(judge.sights) + 8)
            before, shown = watch.status, len(judge.sights)
            fault = getattr(camera, name)(*arguments)
            back_ms = judge.wait_for_recovery(fault, 5)
            after = watch.status
            seen = states(after, fault.began_ns)
            assert back_ms < HTTP_MS, name
            assert list(seen) in expected, name
            assert "stalled" not in seen or seen["stalled"] < SHOWN_MS, name
            assert after.reconnects - before.reconnects >= reconnects, name
            assert after.damaged - before.damaged == (name in ("corrupt", "truncate")), name
            assert all(sight.stamp for sight in judge.sights[shown:]), f"{name}: a damaged frame was shown"

        for fault in faults:
            in_calm(functools.partial(check, *fault))
        assert camera.connections()[0] == 1


def test_a_changed_size_is_noticed_and_followed() -> None:
    def check() -> None:
        with MjpegCamera() as camera, watched(camera) as (watch, judge):
            for count, size in enumerate(((320, 240), (1280, 720)), start=1):
                fault, shown = camera.resize(*size), len(judge.sights)
                judge.wait_for(shown + 10)
                first = next(sight for sight in judge.sights[shown - 1 :] if sight.size == size)
                assert first.ns - fault.began_ns < HTTP_MS * 1e6
                assert judge.sights[-1].size == watch.status.size == size
                assert watch.status.resizes == count
                assert all(sight.stamp for sight in judge.sights)

    in_calm(check)


def test_frames_too_small_for_the_crop_are_passed_over() -> None:
    """A camera that comes back in its small profile ends no run; one that never was large enough does."""
    bundle, crop = Bundle(Path("nowhere"), tiny.SPEC, ()), (400, 300, 100, 100)
    engine = FakeEngine({"logits": np.zeros((1, 3), np.float32)})
    with MjpegCamera() as camera:
        with Pipeline(bundle, Camera(camera.url), opened_engine=engine, crop=crop) as pipeline:
            results = iter(pipeline)
            assert next(results).frame.picture.shape == (100, 100, 3)
            camera.resize(320, 240)
            later(1.0, lambda: camera.resize(640, 480))
            began, longest = time.monotonic(), 0.0
            for _ in range(60):
                before = time.monotonic()
                assert next(results).frame.picture.shape == (100, 100, 3)
                longest = max(longest, time.monotonic() - before)
            assert 0.5 < longest < time.monotonic() - began
            assert pipeline.statuses[0].drops["crop"] > 10
        camera.resize(320, 240)
        with (
            Pipeline(bundle, Camera(camera.url), opened_engine=engine, crop=crop) as pipeline,
            pytest.raises(SourceError, match="lies outside its pictures of 320x240"),
        ):
            next(iter(pipeline))


@needs_rtsp
def test_an_rtsp_camera_comes_back_from_every_fault() -> None:
    faults = [("freeze", 2.0), ("stall", 3.0), ("stall", 0.7), ("refuse", 0.7), ("end", None)]
    with RtspCamera() as camera, watched(camera) as (watch, judge):
        for name, seconds in faults:

            def check(name: str = name, seconds: float | None = seconds) -> None:
                judge.wait_for(len(judge.sights) + 8)
                fault = getattr(camera, name)(*([seconds] if seconds else []))
                assert judge.wait_for_recovery(fault, 6) < RTSP_MS, name
                seen = states(watch.status, fault.began_ns)
                assert "stalled" not in seen or seen["stalled"] < SHOWN_MS, name
                assert list(seen)[-1] == "live"
                between = [stamp.ns for ns, stamp in judge.good if fault.began_ns + 200e6 < ns < fault.ended_ns]
                assert not between, "no held-back frame is shown as if it was new"

            in_calm(check)


@needs_rtsp
@pytest.mark.parametrize("gop", [30, 1])
def test_an_rtsp_cameras_changed_size_is_followed(gop: int) -> None:
    """Within about two keyframes; until then OpenCV 5 scales it back and OpenCV 4 shows half of it.

    Where every frame is a keyframe, none comes out of turn, and only the camera's own word tells of the change.
    """

    def check() -> None:
        with RtspCamera(gop=gop) as camera, watched(camera) as (watch, judge):
            judge.wait_for(70)  # keyframes have to have come regularly
            fault = camera.resize(320, 240)
            before = len(judge.sights)
            while judge.sights[-1].size != (320, 240):
                assert time.monotonic_ns() < fault.began_ns + 2.5e9
                time.sleep(0.01)
            pauses = np.diff([sight.ns for sight in judge.sights[before:]])
            assert pauses.max() < 300e6, "frames come all the while"
            judge.wait_for(len(judge.sights) + 30)
            assert (watch.status.size, watch.status.resizes, watch.status.reconnects) == ((320, 240), 1, 0)
            assert camera.connections() == (1, 2)
            assert judge.sights[-1].stamp

    in_calm(check)


def test_a_camera_that_is_absent_at_first_is_waited_for() -> None:
    with MjpegCamera(missing_s=1.0) as camera, Watch(Camera(camera.url)) as watch:
        assert watch.status.state == "down"
        assert "connection refused" in watch.status.reason
        frame = watch.slot.take()
        assert frame is not None
        assert [change.state for change in watch.status.changes] == ["connecting", "down", "live"]
        assert watch.status.reconnects == 0


def test_giving_up_is_an_error_that_says_why() -> None:
    with MjpegCamera() as camera, Watch(Camera(camera.url), give_up_s=0.6) as watch:
        watch.slot.take()
        camera.refuse(10)
        begin = time.monotonic()
        with pytest.raises(SourceError, match=r"has been away for 0\.6 s \(.*\)"):
            list(watch.slot)
        assert 0.5 < time.monotonic() - begin < 1.0


def test_a_backlog_is_dropped_undecoded() -> None:
    def check() -> None:
        with MjpegCamera(backlog=20) as camera, Watch(Camera(camera.url)) as watch:
            frames = iter(watch.slot)
            next(frames)
            assert age_ms(next(frames).picture) < 150
            assert watch.status.drops["backlog"] >= 10

    in_calm(check)


def test_a_backlog_on_a_stream_that_is_read_late_is_not_shown() -> None:
    def check() -> None:
        with MjpegCamera() as camera, Camera(camera.url) as source:
            frames = iter(source)
            next(frames)
            time.sleep(0.5)
            assert age_ms(next(frames).picture) < 150

    in_calm(check)


def age_ms(picture: np.ndarray) -> float:
    """By the clock in the picture."""
    stamp = read_stamp(picture)
    assert stamp is not None
    return (time.monotonic_ns() - stamp.ns) / 1e6


def open_handles() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def settles(measure: Callable[[], int], limit: int) -> bool:
    """Whether it falls to the limit within a few seconds."""
    return any(measure() <= limit or time.sleep(0.1) for _ in range(40))


@pytest.mark.parametrize(
    ("kind", "faults", "of_one_connection"),
    [
        (MjpegCamera, ("reset", "end") * 15, 0),
        pytest.param(RtspCamera, ("end",) * 10, 2, marks=needs_rtsp),  # the relay, one thread each way
    ],
)
def test_nothing_leaks_over_many_connections(kind: Any, faults: tuple[str, ...], of_one_connection: int) -> None:
    with kind() as camera:
        with watched(camera):
            pass
        assert settles(threading.active_count, 2 + of_one_connection)
        threads, handles = threading.active_count(), open_handles()
        with watched(camera) as (watch, judge):
            for count, name in enumerate(faults, start=1):
                judge.wait_for_recovery(getattr(camera, name)(), 5)
                # A frame that was on its way when the connection ended counts as a recovery, but as no reconnection.
                assert settles(lambda count=count: count - watch.status.reconnects, 0)
            assert watch.status.reconnects == len(faults)
            most = threads + 3 + of_one_connection  # the watcher, one reader, and the judge
            assert settles(threading.active_count, most)
        assert settles(threading.active_count, threads)
        assert settles(open_handles, handles)


@pytest.mark.parametrize("kind", [MjpegCamera, pytest.param(RtspCamera, marks=needs_rtsp)])
@pytest.mark.parametrize(("policy", "most_ms"), [("latest", 19), ("fresh", 6)])
def test_ages_under_a_slow_model(policy: str, most_ms: float, kind: Any) -> None:
    """At 60 ms an inference; the transport's own 3 ms are in the age by the camera's clock."""

    def check() -> None:
        with kind() as camera, Watch(Camera(camera.url), policy=policy) as watch:
            judge = Judge()
            for frame in watch.slot:
                time.sleep(0.06)
                judge.show(frame.picture)
                if len(judge.sights) == 50:
                    break
            assert statistics.median(judge.ages_ms[5:]) < 60 + most_ms + 4
            assert watch.slot.drops["stale" if policy == "fresh" else "replaced"] > 20

    in_calm(check)


@needs_rtsp
def test_an_rtsp_cameras_own_clock_tells_the_age() -> None:
    """It reports its time after some seconds; then our age is within 3 ms of that by the clock in the picture."""

    def check() -> None:
        untold_ms = []
        with RtspCamera() as camera, Watch(Camera(camera.url)) as watch:
            for frame in watch.slot:
                stamp = read_stamp(frame.picture)
                if frame.age_from == "sender" and stamp is not None:
                    untold_ms.append((frame.captured_ns - stamp.ns) / 1e6)
                assert frame.index < 400
                if len(untold_ms) == 60:
                    break
        assert 0 < statistics.median(untold_ms) < 3

    in_calm(check)


@needs_rtsp
def test_a_login_goes_through_the_relay() -> None:
    """By Digest, whose hash holds the address that FFmpeg knows."""
    with RtspCamera(login=("box", "open sesame")) as camera:
        with watched(camera) as (watch, _):
            assert watch.status.state == "live"
        url = camera.url.replace("sesame", "says me")
        with pytest.raises(SourceError, match="another login"):
            open_stream(url, "the door", 2, 1, clock=time.monotonic_ns, interrupt=Interrupt())


@needs_rtsp
def test_a_camera_that_refuses_the_relay_is_opened_without_it() -> None:
    """As one may whose login's hash is to be of the same address as the request."""
    with RtspCamera() as camera, socket.create_server(("127.0.0.1", 0)) as door:

        def refuse_one_and_connect_the_next() -> None:
            visitor = door.accept()[0]
            with visitor:
                visitor.recv(4096)
                visitor.sendall(b"RTSP/1.0 400 Bad Request\r\nCSeq: 1\r\n\r\n")
            visitor = door.accept()[0]
            with visitor, socket.create_connection(("127.0.0.1", camera.port)) as behind:
                back = threading.Thread(target=pass_on, args=(behind, visitor))
                back.start()
                pass_on(visitor, behind)
                back.join()

        thread = threading.Thread(target=refuse_one_and_connect_the_next, daemon=True)
        thread.start()
        with Camera(f"rtsp://127.0.0.1:{door.getsockname()[1]}/video") as source:
            assert next(iter(source)).picture.shape == (480, 640, 3)
        thread.join(5)
        assert not thread.is_alive(), "two connections were made"


def pass_on(source: socket.socket, sink: socket.socket) -> None:
    """Send what one connection receives on another, until either ends; then end the other."""
    with contextlib.suppress(OSError):
        while piece := source.recv(4096):
            sink.sendall(piece)
        sink.shutdown(socket.SHUT_RDWR)


HOG = "while True: pass"


def test_a_busy_processor_ends_nothing() -> None:
    """Three programs that take all they get: frames go on, late if need be, and are fresh again afterwards."""
    with MjpegCamera() as camera, watched(camera) as (watch, judge):
        hogs = [subprocess.Popen([sys.executable, "-c", HOG]) for _ in range(3)]
        try:
            before = len(judge.sights)
            time.sleep(2.5)
            assert len(judge.sights) - before > 20
        finally:
            for hog in hogs:
                hog.kill()
                hog.wait()
        assert (watch.status.state, watch.status.reconnects) == ("live", 0)

        def check() -> None:
            start = len(judge.sights)
            judge.wait_for(start + 20)
            assert judge.report(start)["age_p50_ms"] < 20

        in_calm(check)


def test_what_is_not_plain_mjpeg_is_left_to_ffmpeg() -> None:
    """A redirection, which our own reader does not follow."""
    with MjpegCamera() as camera, socket.create_server(("127.0.0.1", 0)) as door:

        def redirect() -> None:
            with contextlib.suppress(OSError):
                while True:
                    visitor = door.accept()[0]
                    with visitor:
                        visitor.recv(4096)
                        answer = f"HTTP/1.1 302 Found\r\nLocation: {camera.url}\r\nContent-Length: 0\r\n\r\n"
                        visitor.sendall(answer.encode())

        threading.Thread(target=redirect, daemon=True).start()
        with Camera(f"http://localhost:{door.getsockname()[1]}/") as source:
            assert source.fps, "FFmpeg's guess; our reader makes none"
            assert next(iter(source)).picture.shape == (480, 640, 3)
        door.shutdown(socket.SHUT_RDWR)
