"""Sources: what they give, how they end, and what they say when they cannot."""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from scripted import Clock, write_video

from edgeattn._cv2 import cv2
from edgeattn.camera import Camera, Folder, Video, open_source
from edgeattn.camera.files import plausible
from edgeattn.camera.opencv import Keyframes, OpencvConnection, _variable
from edgeattn.camera.pattern import TestPattern
from edgeattn.errors import DataError, SourceError

PERIOD_NS = 40_000_000  # 25 fps


@pytest.fixture
def video(tmp_path: Path) -> Path:
    """Twelve frames at 25 fps, each brighter than the one before."""
    return write_video(tmp_path / "clip.mp4", [np.full((48, 64, 3), 20 * i, np.uint8) for i in range(12)], fps=25)


def write_truth(video: Path, lines: list[str]) -> None:
    video.with_suffix(".truth.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")


def test_video_gives_every_frame_in_order(video: Path) -> None:
    clock = Clock()
    with Video(video, clock=clock) as source:
        assert source.live is False
        assert source.fps == 25
        frames = []
        for frame in source:
            assert frame.captured_ns == clock()
            clock.advance_ms(500)  # slow work drops nothing
            frames.append(frame)
    assert [f.index for f in frames] == list(range(12))
    assert {f.age_from for f in frames} == {"received"}
    assert [round(float(f.picture.mean()) / 20) for f in frames] == list(range(12))
    assert all(f.truth is None for f in frames)


def test_replayed_video_is_captured_when_due(video: Path) -> None:
    clock = Clock()
    clock.advance_ms(5)
    with Video(video, realtime=True, clock=clock, sleep=clock.sleep) as source:
        assert source.live is True
        seen = []
        for frame in source:
            seen.append((frame.index, frame.captured_ns, clock()))
            assert frame.age_from == "due"
            if frame.index == 3:
                clock.advance_ms(100)  # held up for more than two frames: they are late, and say so
    start = seen[0][1]
    assert start == 5_000_000
    assert [due for _, due, _ in seen] == [start + i * PERIOD_NS for i in range(12)]
    assert [(now - due) // 1_000_000 for _, due, now in seen] == [0, 0, 0, 0, 60, 20, 0, 0, 0, 0, 0, 0]


def test_labels_beside_a_video_become_truth(video: Path) -> None:
    entries = [{"index": i, "label": None if i % 2 else "7", "box": [1, 2, 3, 4]} for i in range(11)]
    write_truth(video, [json.dumps(entry) for entry in entries])
    with Video(video) as source:
        truths = [frame.truth for frame in source]
    assert truths == [*entries, None]


@pytest.mark.parametrize("line", ["{", "[1]", '{"label": "7"}', "7"])
def test_a_bad_line_of_labels_is_named(video: Path, line: str) -> None:
    write_truth(video, ['{"index": 0, "label": "7"}', line])
    with pytest.raises(DataError, match="line 2"):
        Video(video)


def test_what_is_no_video_is_named(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    garbage = tmp_path / "noise.mp4"
    garbage.write_bytes(np.random.default_rng(0).bytes(4000))
    with pytest.raises(SourceError, match=r"noise\.mp4: not a video"), Video(garbage):
        pass
    with pytest.raises(SourceError, match="no such video"):
        Video(tmp_path / "absent.mp4")
    assert capfd.readouterr().err == "", "OpenCV and FFmpeg stay quiet"


def test_folder_passes_over_bad_pictures_and_names_them(tmp_path: Path) -> None:
    for name in ("b.png", "a.jpg", "inner/c.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        cv2.imwrite(str(tmp_path / name), np.full((20, 30, 3), 90, np.uint8))
    (tmp_path / "bad.jpg").write_bytes((tmp_path / "a.jpg").read_bytes()[:200])
    (tmp_path / "notes.txt").write_text("no picture")
    with Folder(tmp_path) as source:
        frames = list(source)
        assert [f.index for f in frames] == [0, 1, 3]
        assert all(f.picture.shape == (20, 30, 3) for f in frames)
        assert [path.name for path, _ in source.skipped] == ["bad.jpg"]
        assert "cut off" in source.skipped[0][1]


def test_folder_without_a_readable_picture(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="holds no picture"):
        Folder(tmp_path)
    (tmp_path / "a.png").write_bytes(b"no picture")
    with pytest.raises(SourceError, match=r"none of 1 pictures can be read; .*a\.png"), Folder(tmp_path) as source:
        list(source)


@pytest.mark.skipif(sys.platform != "linux", reason="looks into /dev")
@pytest.mark.parametrize("device", [99, "99", "/dev/video99"])
def test_a_camera_that_is_not_there(device: int | str) -> None:
    with pytest.raises(SourceError, match=r"there is no camera .*video99.*; .*camera|here is"):
        Camera(device)


def test_a_stream_that_refuses_is_named_without_its_password(capfd: pytest.CaptureFixture[str]) -> None:
    stream = Camera("http://someone:secret@127.0.0.1:9/video", timeout_s=1)
    assert stream.name == "http://127.0.0.1:9/video"
    with pytest.raises(SourceError, match=r"does not answer \(connection refused\)") as caught, stream:
        pass
    assert "secret" not in str(caught.value)
    assert capfd.readouterr().err == ""


@pytest.mark.skipif(cv2.videoio_registry.hasBackend(cv2.CAP_GSTREAMER), reason="this OpenCV has GStreamer")
def test_a_pipeline_without_gstreamer_is_named_without_its_password() -> None:
    source = open_source("gst:rtspsrc location=rtsp://me:secret@camera/ latency=0 ! decodebin")
    with pytest.raises(SourceError, match="gst:rtspsrc: this OpenCV is built without GStreamer") as caught, source:
        pass
    assert "secret" not in str(caught.value)


def test_the_command_lines_text_decides(tmp_path: Path, video: Path) -> None:
    picture = tmp_path / "one.PNG"
    cv2.imwrite(str(picture), np.zeros((9, 9, 3), np.uint8))
    assert isinstance(open_source(str(video)), Video)
    assert open_source(str(video), realtime=True).live is True
    assert isinstance(open_source(str(tmp_path)), Folder)
    assert isinstance(open_source("rtsp://127.0.0.1/1"), Camera)
    with open_source(str(picture)) as single:
        assert [f.picture.shape for f in single] == [(9, 9, 3)]
    with pytest.raises(SourceError, match="no such file or folder"):
        open_source("nowhere.mp4")


def test_an_address_from_the_environment_and_the_test_picture(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CAMERA", "http://me:secret@127.0.0.1:9/video?pwd=secret")
    source = open_source("env:CAMERA")
    assert isinstance(source, Camera)
    assert source.name == "http://127.0.0.1:9/video?..."
    with pytest.raises(SourceError, match="the variable NO_CAMERA is not set"):
        open_source("env:NO_CAMERA")
    clock = Clock()
    pattern = TestPattern(clock=clock, sleep=clock.sleep)
    frames = list(itertools.islice(pattern, 3))
    clock.advance_ms(200)
    assert [f.index for f in frames] == [0, 1, 2]
    assert [f.captured_ns for f in frames] == [round(i * 1e9 / 30) for i in range(3)]
    assert (frames[0].picture != frames[2].picture).any()
    assert open_source("test").live


def test_rates_that_cannot_be_are_unknown() -> None:
    assert [plausible(fps) for fps in (29.97, 0.0, float("nan"), 90000.0)] == [29.97, None, None, None]


def test_a_keyframe_out_of_turn_is_noticed() -> None:
    def noticed(*gaps: int) -> list[int]:
        keyframes = Keyframes()
        return [
            place
            for place, gap in enumerate((1, *gaps))
            if any(keyframes.out_of_turn(i == 1) for i in range(gap, 0, -1))
        ]

    assert noticed(30, 30, 30) == []
    assert noticed(30, 30, 16, 30, 30) == [3], "an encoder that starts anew"
    assert noticed(30, 7, 30) == [2]
    assert noticed(30, 30, 60, 60, 60) == [3], "another period"
    assert noticed(30, 31, 32, 33) == [2, 3, 4]


class Driver:
    """Stamps its frames, in milliseconds of the monotonic clock."""

    def __init__(self, stamp_ms: float) -> None:
        self.stamp_ms = stamp_ms

    def get(self, name: int) -> float:
        return self.stamp_ms if name == cv2.CAP_PROP_POS_MSEC else 30.0

    def grab(self) -> bool:
        return True

    def retrieve(self) -> tuple[bool, np.ndarray]:
        return True, np.zeros((9, 9, 3), np.uint8)


@pytest.mark.parametrize(("stamp_ms", "believed"), [(9_990.5, True), (10_030.0, False), (0.0, False), (7_000.0, False)])
def test_a_drivers_stamp_is_believed_where_it_can_be_true(stamp_ms: float, believed: bool) -> None:
    """On a true driver: tests/rig/vivid.py."""
    clock = Clock()
    clock.advance_ms(10_000)
    connection = OpencvConnection(Driver(stamp_ms), "camera 0", clock)
    _, captured_ns = connection.read()
    assert connection.age_from == ("kernel" if believed else "received")
    assert captured_ns == (round(1e6 * stamp_ms) if believed else 10_000_000_000)


def test_options_of_streams_do_not_outlive_opening(monkeypatch: pytest.MonkeyPatch) -> None:
    name = "EDGEATTN_TEST_VARIABLE"
    with _variable(name, "ours"), _variable(name, "ours"):
        assert os.environ[name] == "ours"
    assert name not in os.environ
    first, second = _variable(name, "ours"), _variable(name, "ours")  # two threads open streams
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)
    assert os.environ[name] == "ours"
    second.__exit__(None, None, None)
    assert name not in os.environ
    monkeypatch.setenv(name, "the user's")
    with _variable(name, "ours"):
        assert os.environ[name] == "the user's"


def test_opencv_is_quiet_in_a_new_process(tmp_path: Path) -> None:
    """The variables are read when OpenCV is loaded, so that only a new process proves them."""
    code = "from edgeattn._cv2 import cv2; cv2.VideoCapture(0, cv2.CAP_ANY); cv2.VideoCapture('absent.mp4')"
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout + done.stderr == ""
