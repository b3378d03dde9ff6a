"""Ctrl-C and SIGTERM in every state of a camera: the command ends at once, with its video and its report."""

from __future__ import annotations

import contextlib
import json
import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path

import pytest
import rtsp
from calm import in_calm
from mjpeg import MjpegCamera
from rtsp import RtspCamera

from edgeattn._cv2 import cv2
from edgeattn.bundle import Bundle

pytestmark = pytest.mark.rig

needs_rtsp = pytest.mark.skipif(rtsp.missing() is not None, reason=rtsp.missing() or "")
SCRIPT = Path(__file__).parents[2] / "tools" / "run_camera.py"
ENDS_S = 0.2


class Run:
    """`edgeattn run` on a camera, whose lines can be waited for."""

    def __init__(self, bundle: Bundle, url: str, folder: Path, program: Sequence[str | Path] = (SCRIPT,)) -> None:
        self.video, self.lines, self.report = folder / "seen.mp4", folder / "seen.jsonl", folder / "run.json"
        for path in (self.video, self.lines, self.report):
            path.unlink(missing_ok=True)
        options = ["--engine", "onnxruntime", "--precision", "float", "--sink", "mp4,jsonl", "--out", self.video]
        command = [sys.executable, *program, bundle.path, "--source", url, *options, "--json", self.report]
        self.process = subprocess.Popen(
            list(map(str, command)), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        self._said: queue.Queue[str] = queue.Queue()
        self._listener = threading.Thread(target=lambda: [self._said.put(line) for line in self.process.stdout])
        self._listener.start()

    def __enter__(self) -> Run:
        return self

    def __exit__(self, *_: object) -> None:
        with self.process as process:  # closes its pipes
            process.kill()
            self._listener.join(5)

    def wait_for(self, text: str) -> None:
        while text not in self._said.get(timeout=20):
            pass

    def wait_for_frames(self, frames: int) -> None:
        deadline = time.monotonic() + 20
        while not self.lines.exists() or self.lines.read_text().count("\n") < frames:
            assert time.monotonic() < deadline
            time.sleep(0.02)

    def ends(self, number: signal.Signals) -> dict[str, object]:
        """Send a signal; checks how the command ends and gives its report."""
        begin = time.monotonic()
        self.process.send_signal(number)
        code = self.process.wait(10)
        took_s = time.monotonic() - begin
        assert (code, self.process.stderr.read()) == (0, "")
        print(f"ended after {1000 * took_s:.0f} ms")
        assert took_s < ENDS_S
        return json.loads(self.report.read_text(encoding="utf-8"))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("state", ["connecting", "live", "stalled", "down"])
def test_a_signal_ends_the_command(state: str, number: signal.Signals, tiny_bundle: Bundle, tmp_path: Path) -> None:
    def check() -> None:
        with MjpegCamera() as camera, contextlib.ExitStack() as stack:
            if state == "connecting":
                camera.silent(60)
            run = stack.enter_context(Run(tiny_bundle, camera.url, tmp_path))
            if state == "connecting":
                time.sleep(0.3)
                while camera.connections()[1] == 0:
                    time.sleep(0.02)
            else:
                run.wait_for_frames(10)
            if state == "stalled":
                camera.stall(0.9)
            elif state == "down":
                camera.refuse(60)
            if state in ("stalled", "down"):
                run.wait_for(state)
            report = run.ends(number)
        assert report["source_status"]["state"] == state
        if state != "connecting":
            assert report["frames"] >= 10
            capture = cv2.VideoCapture(str(run.video))
            assert capture.read()[0]
            capture.release()

    in_calm(check)


FROM_THE_21ST = """
import hashlib, sys
from edgeattn import cli
from edgeattn.engines.onnxruntime import OnnxRuntimeEngine
from edgeattn.errors import EngineError

plain, calls = OnnxRuntimeEngine.infer, []

def other(self, image):
    calls.append(1)
    if len(calls) > 20:
        print("now", flush=True)
        {}
    return plain(self, image)

OnnxRuntimeEngine.infer = other
sys.argv[1:1] = ["run"]
cli.command()
"""
SLOW = FROM_THE_21ST.format('hashlib.pbkdf2_hmac("sha256", b"", b"", 20_000_000)')  # seconds of C, which no signal ends
RAISES = FROM_THE_21ST.format('raise EngineError("out of memory")')


def test_an_inference_that_raises_ends_the_command_at_once(tiny_bundle: Bundle, tmp_path: Path) -> None:
    """With its video and its report, and an exit code by which a service starts it again."""

    def check() -> None:
        with MjpegCamera() as camera, Run(tiny_bundle, camera.url, tmp_path, ["-c", RAISES]) as run:
            run.wait_for("now")
            begin = time.monotonic()
            assert run.process.wait(10) == 2
            assert time.monotonic() - begin < 2 * ENDS_S
            assert "out of memory" in run.process.stderr.read()
        assert 0 < json.loads(run.report.read_text(encoding="utf-8"))["frames"] <= 20
        capture = cv2.VideoCapture(str(run.video))
        assert capture.read()[0]
        capture.release()

    in_calm(check)


def test_a_signal_ends_the_command_while_an_inference_takes_seconds(tiny_bundle: Bundle, tmp_path: Path) -> None:
    def check() -> None:
        with MjpegCamera() as camera, Run(tiny_bundle, camera.url, tmp_path, ["-c", SLOW]) as run:
            run.wait_for("now")
            report = run.ends(signal.SIGINT)
        assert 0 < report["frames"] <= 20
        capture = cv2.VideoCapture(str(run.video))
        assert capture.read()[0]
        capture.release()

    in_calm(check)


@needs_rtsp
@pytest.mark.parametrize("fault", [None, "freeze"])
def test_a_signal_ends_the_command_while_ffmpeg_reads(fault: str | None, tiny_bundle: Bundle, tmp_path: Path) -> None:
    def check() -> None:
        with RtspCamera() as camera, Run(tiny_bundle, camera.url, tmp_path) as run:
            run.wait_for_frames(10)
            if fault:
                camera.freeze(4)
                run.wait_for("down")
            assert run.ends(signal.SIGTERM)["frames"] >= 10

    in_calm(check)
