"""Ctrl-C and SIGTERM in every state of a camera: the command ends at once, with its video and its report."""

from __future__ import annotations

import contextlib
import json
import signal
import time
from pathlib import Path

import pytest
import rtsp
from calm import in_calm
from command import ENDS_S, Run, frames_of
from mjpeg import MjpegCamera
from rtsp import RtspCamera

from edgeattn.bundle import Bundle

pytestmark = pytest.mark.rig

needs_rtsp = pytest.mark.skipif(rtsp.missing() is not None, reason=rtsp.missing() or "")


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
            assert frames_of(run.video) > 0

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
        assert frames_of(run.video) > 0

    in_calm(check)


def test_a_signal_ends_the_command_while_an_inference_takes_seconds(tiny_bundle: Bundle, tmp_path: Path) -> None:
    def check() -> None:
        with MjpegCamera() as camera, Run(tiny_bundle, camera.url, tmp_path, ["-c", SLOW]) as run:
            run.wait_for("now")
            report = run.ends(signal.SIGINT)
        assert 0 < report["frames"] <= 20
        assert frames_of(run.video) > 0

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


@needs_rtsp
def test_a_signal_ends_the_command_while_one_camera_of_two_is_frozen(tiny_bundle: Bundle, tmp_path: Path) -> None:
    """Its reader is stuck, and it is just being opened anew; both are left behind while the video is closed."""

    def check() -> None:
        with (
            RtspCamera() as camera,
            RtspCamera() as other,
            Run(tiny_bundle, camera.url, tmp_path, more=("--source", other.url)) as run,
        ):
            run.wait_for_frames(10)
            other.freeze(4)
            run.wait_for("down")
            assert run.ends(signal.SIGINT)["frames"] >= 10
        assert frames_of(run.video) > 0

    in_calm(check)
