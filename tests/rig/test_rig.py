"""The rig itself: each fault does what it says, and the clock in the pictures is true."""

from __future__ import annotations

import contextlib
import itertools
import os
import re
import socket
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import psutil
import pytest
import rtsp
from calm import awake, in_calm
from judge import Judge, watching
from mjpeg import MjpegCamera, Scene
from remote import Fault
from rtsp import RtspCamera
from stamps import Stamp, read_stamp

from edgeattn._cv2 import cv2
from edgeattn.camera.opencv import _STREAM_OPTIONS, _variable
from edgeattn.timing import pressure

pytestmark = pytest.mark.rig

needs_rtsp = pytest.mark.skipif(rtsp.missing() is not None, reason=rtsp.missing() or "")


class Viewer:
    """Reads MJPEG off a socket, and hides nothing."""

    def __init__(self, camera: MjpegCamera, timeout_s: float = 1.0) -> None:
        self.socket = socket.create_connection(("127.0.0.1", camera.port), timeout_s)
        self.socket.sendall(b"GET /video HTTP/1.0\r\n\r\n")
        self._buffer = b""

    def __enter__(self) -> Viewer:
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()

    def frame(self) -> np.ndarray | None:
        """The next frame; None: cannot be decoded at all."""
        while (head := re.search(rb"Content-Length: (\d+)\r\n\r\n", self._buffer)) is None or (
            len(self._buffer) < head.end() + int(head[1])
        ):
            self._receive()
        jpeg = self._buffer[head.end() : head.end() + int(head[1])]
        self._buffer = self._buffer[head.end() + int(head[1]) :]
        return cv2.imdecode(np.frombuffer(jpeg, np.uint8), cv2.IMREAD_COLOR)

    def stamps(self) -> Iterator[Stamp | None]:
        while True:
            picture = self.frame()
            yield None if picture is None else read_stamp(picture)

    def drain(self) -> None:
        """Read until the connection fails or falls silent, which is raised."""
        while True:
            self._receive()

    def _receive(self) -> None:
        if not (part := self.socket.recv(1 << 16)):
            raise EOFError
        self._buffer += part


@pytest.fixture(scope="module")
def well() -> Iterator[MjpegCamera]:
    """A camera that many tests share; each leaves it well."""
    with MjpegCamera() as camera:
        yield camera


def wait_until_well(fault: Fault) -> None:
    time.sleep(max(0.0, (fault.ended_ns - time.monotonic_ns()) / 1e9) + 0.05)


def serves(camera: MjpegCamera) -> bool:
    """Whether a new viewer gets a frame, within a second or two."""
    for _ in range(20):
        with contextlib.suppress(OSError), Viewer(camera) as viewer:
            return next(viewer.stamps()) is not None
        time.sleep(0.05)
    return False


@pytest.mark.parametrize("size", [(640, 480), (1280, 720), (320, 240)])
def test_a_stamp_is_read_from_a_frame_whole_or_resized(size: tuple[int, int]) -> None:
    for stamp in (Stamp(123_456_789_000, 255), Stamp(2**47 * 1000, 0), Stamp(time.monotonic_ns() // 1000 * 1000, 7)):
        picture = cv2.imdecode(np.frombuffer(Scene(*size).jpeg(stamp), np.uint8), cv2.IMREAD_COLOR)
        assert picture.shape == (size[1], size[0], 3)
        assert read_stamp(picture) == stamp
        for other in ((640, 480), (224, 224), (160, 120), (1920, 1080)):
            assert read_stamp(cv2.resize(picture, other)) == stamp


def test_a_damaged_frame_has_no_stamp() -> None:
    picture = cv2.imdecode(np.frombuffer(Scene(640, 480).jpeg(Stamp(5_000, 1)), np.uint8), cv2.IMREAD_COLOR)
    later = cv2.imdecode(np.frombuffer(Scene(640, 480).jpeg(Stamp(9_000, 1)), np.uint8), cv2.IMREAD_COLOR)
    half = np.concatenate([picture[:240], np.full((240, 640, 3), 128, np.uint8)])
    torn = np.concatenate([picture[:240], later[240:]])
    picture[:16, 100:110] = 255 - picture[:16, 100:110]
    for damaged in (half, torn, picture, np.zeros_like(picture)):
        assert read_stamp(damaged) is None


def test_what_the_judge_says_of_frames_of_known_age(monkeypatch: pytest.MonkeyPatch) -> None:
    now_ns = 0
    monkeypatch.setattr(time, "monotonic_ns", lambda: now_ns)
    judge, scene = Judge(), Scene(320, 240)
    for index in range(10):  # every 100 ms, taken 40 ms before, and nothing while the camera was away
        now_ns = 1_000_000_000 + 100_000_000 * index + (2_000_000_000 if index >= 5 else 0)
        jpeg = scene.jpeg(Stamp(now_ns - 40_000_000, index))
        judge.show(cv2.imdecode(np.frombuffer(jpeg, np.uint8), cv2.IMREAD_COLOR))
    judge.show(np.zeros((240, 320, 3), np.uint8))
    report = judge.report()
    assert (report["frames"], report["damaged"]) == (10, 1)
    assert report["age_p50_ms"] == report["age_p99_ms"] == pytest.approx(40)
    assert report["fps"] == pytest.approx(9 / 2.9)
    assert judge.recovery_ms(Fault("away", 1_400_000_000, 3_450_000_000)) == pytest.approx(50)
    assert judge.recovery_ms(Fault("away", 1_400_000_000, 3_465_000_000)) == pytest.approx(135)
    assert judge.recovery_ms(Fault("away", 9_000_000_000, 9_000_000_000)) is None


def test_frames_come_fresh_and_evenly() -> None:
    def check() -> None:
        with MjpegCamera(fps=30) as camera, Viewer(camera) as viewer:
            ages_ms, indices, start = [], [], time.monotonic()
            for stamp in itertools.islice(viewer.stamps(), 60):
                assert stamp is not None
                ages_ms.append((time.monotonic_ns() - stamp.ns) / 1e6)
                indices.append(stamp.index)
            assert 59 / 33 < time.monotonic() - start < 59 / 27
        assert indices == list(range(60))
        assert min(ages_ms) > 0
        assert statistics.median(ages_ms) < 8

    in_calm(check)


@pytest.mark.parametrize("seconds", [0.4, 1.5])
def test_a_stall_is_as_long_as_it_was_ordered_and_leaves_no_old_frames(seconds: float, well: MjpegCamera) -> None:
    def check() -> None:
        with Viewer(well, timeout_s=5) as viewer:
            next(viewer.stamps())
            fault = well.stall(seconds)
            stamp = next(s for s in viewer.stamps() if s and s.ns >= fault.began_ns + 1_000_000)
            assert 0 <= stamp.ns - fault.ended_ns < 60e6
            assert time.monotonic_ns() - fault.ended_ns < 80e6
            assert well.connections()[0] == 1

    in_calm(check)


def test_a_reset_breaks_off_and_the_next_connection_is_served(well: MjpegCamera) -> None:
    with Viewer(well) as viewer:
        viewer.frame()
        well.reset()
        with pytest.raises(ConnectionResetError):
            viewer.drain()
        assert serves(well)


def test_an_end_is_in_good_order(well: MjpegCamera) -> None:
    with Viewer(well) as viewer:
        viewer.frame()
        well.end()
        with pytest.raises(EOFError):
            viewer.drain()
        assert serves(well)


def test_refusing_is_over_after_the_time_ordered(well: MjpegCamera) -> None:
    with Viewer(well) as viewer:
        viewer.frame()
        fault = well.refuse(0.6)
        with pytest.raises(ConnectionResetError):
            viewer.drain()
        with pytest.raises(ConnectionRefusedError):
            Viewer(well)
        wait_until_well(fault)
        assert serves(well)


def test_missing_at_the_start() -> None:
    with MjpegCamera(missing_s=0.8) as camera:
        with pytest.raises(ConnectionRefusedError):
            Viewer(camera)
        time.sleep(1.0)
        assert serves(camera)


def test_a_silent_camera_accepts_and_never_answers_whoever_came_then(well: MjpegCamera) -> None:
    with Viewer(well) as before:
        before.frame()
        fault = well.silent(0.5)
        with pytest.raises(ConnectionResetError):
            before.drain()
        with Viewer(well) as viewer:
            wait_until_well(fault)
            assert serves(well)
            with pytest.raises(TimeoutError):
                viewer.drain()


def test_an_unplugged_camera_says_nothing_to_old_and_new_connections(well: MjpegCamera) -> None:
    with Viewer(well, timeout_s=0.3) as viewer:
        viewer.frame()
        fault = well.unplug(1.5)
        with pytest.raises(TimeoutError):
            viewer.drain()
        with pytest.raises(TimeoutError):
            Viewer(well, timeout_s=0.3)
        wait_until_well(fault)
        viewer.socket.settimeout(1)
        assert next(s for s in viewer.stamps() if s and s.ns >= fault.ended_ns)
        assert serves(well)


@pytest.mark.parametrize("how", ["corrupt", "truncate"])
def test_spoilt_frames_are_as_many_as_ordered(how: str, well: MjpegCamera) -> None:
    with Viewer(well) as viewer:
        viewer.frame()
        getattr(well, how)(3)
        stamps = list(itertools.islice(viewer.stamps(), 12))
    assert [stamp is None for stamp in stamps].count(True) == 3
    assert stamps[-1]
    spoilt = stamps.index(None)
    assert stamps[spoilt : spoilt + 3] == [None] * 3


def test_garbage_comes_in_place_of_a_frame_and_the_stream_goes_on(well: MjpegCamera) -> None:
    with Viewer(well) as viewer:
        indices = [next(viewer.stamps()).index]
        well.garbage(1)
        indices += [stamp.index for stamp in itertools.islice(viewer.stamps(), 8) if stamp]
    assert len(set(range(indices[-1] + 1)) - set(indices)) == 1, "one is gone"


def test_another_size_from_one_frame_to_the_next(well: MjpegCamera) -> None:
    with Viewer(well) as viewer:
        for size in ((320, 240), (1280, 720), (640, 480)):
            fault = well.resize(*size)
            picture = next(p for p in (viewer.frame() for _ in range(60)) if p.shape == (size[1], size[0], 3))
            assert read_stamp(picture).ns >= fault.began_ns


def test_a_backlog_comes_at_once_and_is_as_old_as_it_says() -> None:
    def check() -> None:
        with MjpegCamera(fps=20, backlog=10) as camera, Viewer(camera) as viewer:
            ages_ms = []
            for stamp in itertools.islice(viewer.stamps(), 13):
                ages_ms.append((time.monotonic_ns() - stamp.ns) / 1e6)
        assert 500 <= ages_ms[0] < 540
        assert 50 <= ages_ms[9] < 140
        assert max(ages_ms[11:]) < 30

    in_calm(check)


def test_lengths_can_be_left_out() -> None:
    with MjpegCamera(content_length=False) as camera, Viewer(camera) as viewer:
        while viewer._buffer.count(b"image/jpeg") < 5:
            viewer._receive()
        assert b"Content-Length" not in viewer._buffer


def test_viewers_that_leave_are_noticed_even_in_silence() -> None:
    with MjpegCamera() as camera:
        with Viewer(camera) as viewer:
            viewer.frame()
            camera.stall(30)
            assert camera.connections() == (1, 1)
        time.sleep(0.3)
        assert camera.connections() == (0, 1)


def test_the_process_ends_with_the_test() -> None:
    with MjpegCamera() as camera:
        pid = camera._process.pid
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


@pytest.fixture(scope="module")
def rtsp_judge() -> Iterator[tuple[RtspCamera, Judge]]:
    """An RTSP camera, and a judge of what OpenCV reads from it, opened again whenever it gives up."""
    options = [cv2.CAP_PROP_OPEN_TIMEOUT_MSEC, 3000, cv2.CAP_PROP_READ_TIMEOUT_MSEC, 1000, cv2.CAP_PROP_N_THREADS, 1]
    left = threading.Event()

    def pictures() -> Iterator[np.ndarray]:
        while not left.wait(0.05):
            with _variable("OPENCV_FFMPEG_CAPTURE_OPTIONS", _STREAM_OPTIONS):
                capture = cv2.VideoCapture(camera.url, cv2.CAP_FFMPEG, options)
            while not left.is_set() and (read := capture.read())[0]:
                yield read[1]
            capture.release()

    with RtspCamera() as camera, watching(pictures()) as judge:
        judge.wait_for(30)
        yield camera, judge
        left.set()
        judge.wait_for_end(5)


@needs_rtsp
def test_rtsp_frames_come_fresh(rtsp_judge: tuple[RtspCamera, Judge]) -> None:
    camera, judge = rtsp_judge

    def check() -> None:
        start = len(judge.sights)
        judge.wait_for(start + 60)
        report = judge.report(start)
        assert 27 < report["fps"] < 33
        assert report["damaged"] == 0
        assert 0 < report["age_p50_ms"] < 80

    in_calm(check)
    assert camera.connections()[0] == 1


@needs_rtsp
@pytest.mark.parametrize("fault", ["stall", "freeze"])
def test_rtsp_is_silent_for_as_long_as_ordered(fault: str, rtsp_judge: tuple[RtspCamera, Judge]) -> None:
    camera, judge = rtsp_judge

    def check() -> None:
        ordered = getattr(camera, fault)(0.7)
        assert judge.wait_for_recovery(ordered, 5) < 200
        before = max(stamp.ns for _, stamp in judge.good if stamp.ns < ordered.ended_ns)
        assert before < ordered.began_ns + 50e6

    in_calm(check)


@needs_rtsp
def test_rtsp_hangs_up_and_refuses(rtsp_judge: tuple[RtspCamera, Judge]) -> None:
    camera, judge = rtsp_judge

    def check() -> None:  # on a busy machine OpenCV gives up on a new connection, too, and makes another
        connections = camera.connections()[1]
        judge.wait_for_recovery(camera.end(), 5)
        assert camera.connections()[1] == connections + 1
        refused = camera.refuse(1.0)
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", camera.port))
        judge.wait_for_recovery(refused, 5)
        assert camera.connections()[1] == connections + 2

    in_calm(check)


@needs_rtsp
def test_rtsp_goes_on_in_another_size(rtsp_judge: tuple[RtspCamera, Judge]) -> None:
    """OpenCV scales it back; the clock is read all the same, in coarser blocks."""
    camera, judge = rtsp_judge
    judge.wait_for_recovery(camera.resize(320, 240), 5)
    assert judge.sights[-1].size == (640, 480)


@pytest.mark.parametrize(
    ("stolen", "outcome"),
    [
        ((0, 0, 0, 0, 0), AssertionError),
        ((1, 0, 1, 0, 0), AssertionError),
        ((1, 0, 1, 1, 0), pytest.skip.Exception),
    ],
    ids=["calm", "mostly calm", "mostly not"],
)
def test_a_timed_check_fails_where_most_tries_had_their_cores(
    stolen: tuple[int, ...], outcome: type[BaseException], monkeypatch: pytest.MonkeyPatch
) -> None:
    readings = iter(pressure.Pressure(ns, 0, 0, ns * share) for share in stolen for ns in (0, 10))
    monkeypatch.setattr(pressure, "read", readings.__next__)
    tried = []

    def check() -> None:
        tried.append(1)
        raise AssertionError("asked for")

    with pytest.raises(outcome, match=r"asked for|no verdict: a hypervisor took 0\.0 to 1\.0 cores"):
        in_calm(check, sleep=lambda _: None)
    assert len(tried) == 5


def test_a_timed_check_that_passes_once_passes_on_any_cores() -> None:
    tries = iter((False, True))

    def check() -> None:
        assert next(tries)

    in_calm(check, sleep=lambda _: None)


@pytest.mark.parametrize(
    ("stolen", "works_at", "outcome"),
    [((0,), 9, "failed"), ((1, 0), 9, "failed"), ((1, 1, 1), 3, "passed"), ((1, 1, 1, 1, 1), 9, "failed")],
    ids=["calm", "robbed once", "works when tried again", "robbed"],
)
def test_a_test_that_failed_on_robbed_cores_is_made_again(
    stolen: tuple[int, ...], works_at: int, outcome: str, tmp_path: Path
) -> None:
    (tmp_path / "conftest.py").write_text(
        "from calm import pytest_runtest_protocol\n"
        "from edgeattn.timing import pressure\n"
        f"readings = iter([pressure.Pressure(ns, 0, 0, ns * share) for share in {stolen} for ns in (0, 10)])\n"
        "pressure.read = lambda: next(readings)\n"
    )
    (tmp_path / "test_it.py").write_text(
        "import pytest\n\n"
        "tries = iter(range(1, 9))\n\n"
        "@pytest.fixture\ndef number(): return next(tries)\n\n"
        f"def test_works(number):\n    print('try', number)\n    assert number == {works_at}\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parent)}
    run = subprocess.run(
        [sys.executable, "-m", "pytest", "-rs", "-s", "-p", "no:cacheprovider", tmp_path],
        check=False,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert f"1 {outcome}" in run.stdout
    assert re.findall(r"try (\d)", run.stdout) == [str(number + 1) for number in range(len(stolen))]


def test_cores_are_kept_awake_by_what_gives_way() -> None:
    before = set(psutil.Process().children())
    with awake():
        spinners = set(psutil.Process().children()) - before
        assert len(spinners) == len(os.sched_getaffinity(0))
        deadline = time.monotonic() + 10
        while any(os.sched_getscheduler(each.pid) != os.SCHED_IDLE for each in spinners):
            assert time.monotonic() < deadline
            time.sleep(0.01)
    assert not any(each.is_running() for each in spinners)
