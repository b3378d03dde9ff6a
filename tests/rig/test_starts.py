"""Starts that cannot go as asked, for want of a screen or of a whole OpenCV: said at once, with what is done instead."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from calm import in_calm
from command import Run, frames_of
from mjpeg import MjpegCamera

from edgeattn.bundle import Bundle

pytestmark = pytest.mark.rig
SAID_S = 5.0
"""A start alone takes a second or two, and trying the display another one."""


def test_two_builds_of_opencv_that_broke_each_other_are_named(tmp_path: Path) -> None:
    """As pip leaves it after one of both was removed: two records of installs, and a `cv2` without its library."""
    for name in ("opencv_python-99.0", "opencv_python_headless-99.0"):
        (tmp_path / f"{name}.dist-info").mkdir()
        package = name.partition("-")[0].replace("_", "-")
        (tmp_path / f"{name}.dist-info" / "METADATA").write_text(
            f"Metadata-Version: 2.1\nName: {package}\nVersion: 99.0\n"
        )
    (tmp_path / "cv2").mkdir()
    (tmp_path / "cv2" / "__init__.py").write_text("raise ImportError('libopencv is not there')\n")
    code = f"import sys; sys.path.insert(0, {str(tmp_path)!r}); from edgeattn.cli import main; main()"

    def check() -> None:
        began = time.monotonic()
        done = subprocess.run(
            [sys.executable, "-c", code, "run", "sign-digits", "--source", "test"],
            capture_output=True, text=True, timeout=60, check=False,
        )  # fmt: skip
        assert done.returncode == 2
        assert done.stderr.count("\n") == 1
        assert "opencv-python 99.0 and opencv-python-headless 99.0 both own cv2 and broke each other" in done.stderr
        assert "pip install 'edgeattn[camera]'" in done.stderr
        assert time.monotonic() - began < SAID_S

    in_calm(check)


@pytest.mark.parametrize("display", [None, ":4711"])
def test_without_a_display_a_video_is_written_at_once(display: str | None, tiny_bundle: Bundle, tmp_path: Path) -> None:
    """None, and one that is told but not there, where OpenCV would end the process."""
    env = {name: value for name, value in os.environ.items() if name not in ("DISPLAY", "WAYLAND_DISPLAY")}
    env |= {"DISPLAY": display} if display else {}

    def check() -> None:
        with MjpegCamera() as camera:
            began = time.monotonic()
            with Run(tiny_bundle, camera.url, tmp_path, sinks="window,mp4", env=env) as run:
                run.wait_for("no window, ")
                run.wait_for("writing ")
                assert time.monotonic() - began < SAID_S
                time.sleep(1)
                assert run.ends(signal.SIGINT)["frames"] > 10
        assert frames_of(run.video) > 10

    in_calm(check)
