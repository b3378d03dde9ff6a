"""The loop on a real stream and a video replayed in real time, with sleeping engines: ages and endings."""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import tiny
from calm import in_calm
from mjpeg import MjpegCamera
from remote import later
from stamps import read_stamp

from edgeattn._cv2 import cv2
from edgeattn.bundle import Bundle
from edgeattn.camera import Camera, Pipeline, Result, Video
from edgeattn.cli.run import run
from edgeattn.engines.fake import FakeEngine
from edgeattn.errors import SourceError

pytestmark = pytest.mark.rig

BUNDLE = Bundle(Path("nowhere.edgeattn"), tiny.SPEC, ())
RED = {"logits": np.array([[4.0, 0.0, 0.0]], np.float32)}
NS_PER_MS = 1_000_000


def watch(url: str, infer_ms: float, frames: int) -> tuple[list[Result], list[float]]:
    """Results, and for each its age by the clock in the picture, in milliseconds."""
    results, true_ms = [], []
    with Pipeline(BUNDLE, Camera(url, timeout_s=2), opened_engine=FakeEngine(RED, infer_ms)) as pipeline:
        for result in pipeline:
            true_ms.append((time.monotonic_ns() - read_stamp(result.frame.picture).ns) / NS_PER_MS)
            results.append(result)
            if len(results) == frames:
                break
    return results, true_ms


def test_a_fast_model_sees_every_frame_of_a_stream_fresh() -> None:
    def check() -> None:
        with MjpegCamera(fps=30) as camera:
            results, true_ms = watch(camera.url, 5.0, 45)
        indices = [r.frame.index for r in results]
        assert indices[-1] - indices[0] <= len(indices) + 1, "at most a few frames are dropped"
        assert statistics.median(true_ms) < 5 + 20
        own_ms = [r.age_ms for r in results]
        assert all(own < true for own, true in zip(own_ms, true_ms, strict=True)), "`received` excludes the way to us"
        assert statistics.median(t - o for t, o in zip(true_ms, own_ms, strict=True)) < 10
        assert {r.frame.age_from for r in results} == {"received"}

    in_calm(check)


def test_a_slow_model_stays_fresh_by_dropping() -> None:
    """At 100 ms an inference a queue would be seconds behind after 3 s; the slot stays within a frame or two."""

    def check() -> None:
        with MjpegCamera(fps=30) as camera:
            results, true_ms = watch(camera.url, 100.0, 20)
        assert results[-1].dropped > 20
        assert statistics.median(true_ms[5:]) < 100 + 2 * 33 + 20
        assert max(true_ms[15:]) < 400

    in_calm(check)


def test_a_stream_that_ends_says_so() -> None:
    before = threading.active_count()
    with MjpegCamera(fps=60, end_after=10) as camera:
        seen = []
        with (
            Camera(camera.url, timeout_s=2) as source,
            pytest.raises(SourceError, match=r":\d+/video ended the stream"),
        ):
            seen.extend(source)
    assert 5 <= len(seen) <= 10
    time.sleep(0.2)
    assert threading.active_count() <= before


def test_a_run_whose_camera_goes_away_leaves_video_and_report(tiny_bundle: Bundle, tmp_path: Path) -> None:
    video, report = tmp_path / "seen.mp4", tmp_path / "run.json"
    options = {"engine": "onnxruntime", "precision": "float", "sink": ["mp4"], "out": video, "json": report}
    with MjpegCamera(fps=60) as camera:
        later(1.0, lambda: camera.refuse(30))
        with pytest.raises(SourceError, match=r"has been away for 0\.8 s"):
            run(str(tiny_bundle.path), source=[camera.url], give_up=0.8, **options)
    figures = json.loads(report.read_text(encoding="utf-8"))
    assert 10 <= figures["frames"] <= 90
    assert figures["source_status"]["state"] == "down"
    assert figures["age_from"] == "received"
    capture = cv2.VideoCapture(str(video))
    assert capture.read()[0]
    capture.release()


def test_a_silent_stream_is_given_up_after_the_time_out() -> None:
    with MjpegCamera(fps=60, stall_after=10) as camera:
        start = time.monotonic()
        with Camera(camera.url) as source, pytest.raises(SourceError, match="is silent"):
            list(source)
        assert 1.0 <= time.monotonic() - start < 2.0


LEAVES_WHILE_READING = """
import sys, time
from pathlib import Path
sys.path.insert(0, {tests!r})
import tiny
from edgeattn.bundle import Bundle
from edgeattn.camera import Camera, Pipeline
from edgeattn.cli.run import run
from edgeattn.engines.fake import FakeEngine
import numpy as np
engine = FakeEngine({{"logits": np.zeros((1, 3), np.float32)}})
pipeline = Pipeline(Bundle(Path("nowhere"), tiny.SPEC, ()), Camera({url!r}, timeout_s=1), opened_engine=engine)
results = iter(pipeline.__enter__())
next(results)
time.sleep(0.8)  # the reader goes on reading, or is in the middle of a silence
print("leaving", flush=True)
"""


@pytest.mark.parametrize("stall_after", [12, None])
def test_leaving_the_interpreter_with_a_reader_at_work_does_not_abort(stall_after: int | None) -> None:
    """Without waiting for the thread inside OpenCV's `read` the process ends by SIGABRT now and then."""
    with MjpegCamera(fps=30, stall_after=stall_after) as camera:
        code = LEAVES_WHILE_READING.format(tests=str(Path(tiny.__file__).parent), url=camera.url)
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=30, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "leaving\n", "")


def test_overhead_on_a_replayed_video(tmp_path: Path) -> None:
    """640x480 at 30 fps: from when a frame is due to its result, beyond the inference, at most 4 ms (median)."""
    path = tmp_path / "clip.mp4"
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"mp4v"), 30, (640, 480))
    noise = np.random.default_rng(0).integers(0, 255, (12, 16, 3), np.uint8)
    scene = cv2.resize(noise, (640, 480), interpolation=cv2.INTER_CUBIC)
    for i in range(60):
        writer.write(np.roll(scene, 4 * i, axis=1))
    writer.release()

    def check() -> None:
        with Pipeline(BUNDLE, Video(path, realtime=True), opened_engine=FakeEngine(RED, 8.0)) as pipeline:
            results = list(pipeline)
        assert len(results) + results[-1].dropped == 60
        assert len(results) >= 55
        assert statistics.median(r.age_ms - r.infer_ms for r in results[5:]) <= 4.0

    in_calm(check)
