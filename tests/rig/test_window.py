"""The window on a real screen: it shows what comes, hears keys, and a display that goes away or hangs ends no run badly."""

from __future__ import annotations

import json
import re
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import xvfb
from calm import in_calm
from command import Run, frames_of
from mjpeg import MjpegCamera
from xvfb import Screen

from edgeattn._cv2 import cv2
from edgeattn.bundle import Bundle

NO_WINDOWS = "this OpenCV has no windows: pip install --no-deps --target GUI opencv-python, and PYTHONPATH=GUI"
pytestmark = [
    pytest.mark.rig,
    pytest.mark.skipif(re.search(r"GUI:\s*NONE", cv2.getBuildInformation()) is not None, reason=NO_WINDOWS),
    pytest.mark.skipif(xvfb.missing() is not None, reason=xvfb.missing() or ""),
]
TITLE = "edgeattn: tiny"
MIDDLE = np.s_[100:300, 100:500]


@pytest.fixture
def display(tmp_path: Path) -> Iterator[Screen]:
    with Screen(tmp_path) as display:
        yield display


def moves(display: Screen) -> bool:
    """Whether the camera's picture changes within a third of a second; figures beside it always do."""
    before = display.seen()
    time.sleep(0.3)
    return not np.array_equal(display.seen()[MIDDLE], before[MIDDLE])


def test_the_window_shows_what_comes_and_hears_keys(display: Screen, tiny_bundle: Bundle, tmp_path: Path) -> None:
    with MjpegCamera() as camera, Run(tiny_bundle, camera.url, tmp_path, sinks="window", env=display.env) as run:
        display.wait_for_window(TITLE)
        assert moves(display)
        display.press(TITLE, "space")
        time.sleep(0.3)
        assert not moves(display), "paused"
        display.press(TITLE, "space")
        time.sleep(0.3)
        assert moves(display)
        camera.refuse(60)
        run.wait_for("down")
        display.press(TITLE, "q")
        assert run.process.wait(5) == 0, "keys are heard while the camera is away"
        assert run.process.stderr.read() == ""
    assert json.loads(run.report.read_text(encoding="utf-8"))["frames"] > 10


def test_a_run_goes_on_when_its_display_has_gone(display: Screen, tiny_bundle: Bundle, tmp_path: Path) -> None:
    """Before, the window system ended the whole process: without a report, and the video could not be played."""
    with MjpegCamera() as camera, Run(tiny_bundle, camera.url, tmp_path, sinks="window,mp4", env=display.env) as run:
        display.wait_for_window(TITLE)
        display.go()
        run.wait_for("window stopped: the display :")
        time.sleep(1)
        report = run.ends(signal.SIGINT)
    assert report["frames"] > 30
    assert frames_of(run.video) > 30


def test_a_run_that_had_a_window_alone_ends_with_its_display(
    display: Screen, tiny_bundle: Bundle, tmp_path: Path
) -> None:
    with MjpegCamera() as camera, Run(tiny_bundle, camera.url, tmp_path, sinks="window", env=display.env) as run:
        display.wait_for_window(TITLE)
        display.go()
        assert run.process.wait(5) == 0
    assert json.loads(run.report.read_text(encoding="utf-8"))["frames"] > 0


def test_ctrl_c_ends_a_run_whose_display_hangs(display: Screen, tiny_bundle: Bundle, tmp_path: Path) -> None:
    def check() -> None:
        with MjpegCamera() as camera, Run(tiny_bundle, camera.url, tmp_path, sinks="window", env=display.env) as run:
            display.wait_for_window(TITLE)
            display.freeze()
            time.sleep(1)
            assert run.ends(signal.SIGINT)["frames"] > 30, "and the loop has turned meanwhile"

    in_calm(check)
