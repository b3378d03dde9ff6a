"""A local camera's faults under our reader, on the driver `vivid`, inside the machine that `vivid.py` starts."""

from __future__ import annotations

import fcntl
import itertools
import os
import struct
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from calm import in_calm

from edgeattn._cv2 import cv2
from edgeattn.camera import Camera
from edgeattn.camera.watch import Watch
from edgeattn.cli.v4l2 import formats
from edgeattn.errors import SourceError

DRIVER = Path("/dev/shm/vivid.ko")
NODE = Path("/dev/video0")
BUS, DEVICE = "/sys/bus/platform/drivers/vivid", "vivid.0"
CONTROLS = {
    "timestamp_source": 0xF0F018,
    "percentage_of_dropped_buffers": 0xF0F040,
    "disconnect": 0xF0F041,
    "inject_v4l2_buf_flag_error": 0xF0F042,
    "inject_vidioc_streamon_error": 0xF0F045,
    "inject_fatal_streaming_error": 0xF0F046,
}
"""The driver's own, by the names that v4l2-ctl shows."""
S_CTRL, G_FMT, S_FMT = 0xC008561C, 0xC0D05604, 0xC0D05605
SHOWN_S, BACK_S = 0.5, 1.0


def run(*command: str) -> bool:
    return subprocess.run(command, capture_output=True, check=False).returncode == 0


def plug_in() -> None:
    Path(f"{BUS}/bind").write_text(DEVICE)
    wait_for(NODE.exists)


def pull_out() -> None:
    Path(f"{BUS}/unbind").write_text(DEVICE)
    assert not NODE.exists()


def order(control: str, value: int) -> None:
    with NODE.open("rb") as node:
        fcntl.ioctl(node, S_CTRL, struct.pack("Ii", CONTROLS[control], value))


def wait_for(what: Callable[[], object], most_s: float = 10.0) -> float:
    """Wait until it is so; gives how long that took."""
    begin = time.monotonic()
    while not what():
        assert time.monotonic() < begin + most_s
        time.sleep(0.01)
    return time.monotonic() - begin


@pytest.fixture(scope="module", autouse=True)
def plugged_in() -> None:
    options = ("n_devs=1", "node_types=0x1", "num_inputs=1", "input_types=0x0", "no_error_inj=0")
    assert run("insmod", str(DRIVER), *options)
    wait_for(NODE.exists)
    order("timestamp_source", 1)  # as a camera's driver stamps; by default its stamps may lie ahead


@pytest.fixture
def watch() -> Iterator[Watch]:
    with Watch(Camera(0)) as watch:
        wait_for(lambda: watch.status.state == "live")
        time.sleep(0.5)
        yield watch


def test_ages_count_from_the_kernels_stamp() -> None:
    def check() -> None:
        with Camera("/dev/video0") as source:
            frames, ages_ms = [], []
            for frame in itertools.islice(source, 60):
                frames.append(frame)
                ages_ms.append((time.monotonic_ns() - frame.captured_ns) / 1e6)
        assert {frame.age_from for frame in frames} == {"kernel"}
        assert {frame.picture.shape for frame in frames} == {(480, 640, 3)}
        assert len({frame.picture.tobytes() for frame in frames}) > 1
        periods_ms = np.diff([frame.captured_ns for frame in frames]) / 1e6
        print(
            f"ages p50 {np.median(ages_ms):.1f} ms; periods p50 {np.median(periods_ms):.2f}, most {periods_ms.max():.1f}"
        )
        assert source.fps
        assert np.median(periods_ms) == pytest.approx(1000 / source.fps, abs=0.5)
        assert (periods_ms < 1500 / source.fps).mean() >= 0.9, "no frame is lost while another one is converted"
        assert 0 < np.median(ages_ms) < 60

    in_calm(check)


def test_its_formats_are_told() -> None:
    told = formats(NODE)
    print(told)
    assert any(each.startswith("YUYV to ") for each in told)
    assert all(" to " in each for each in told)


def test_a_busy_camera_says_so() -> None:
    other = cv2.VideoCapture(0, cv2.CAP_V4L2)
    assert other.read()[0]
    begin = time.monotonic()
    with pytest.raises(SourceError, match="camera 0 does not open: used by another program"), Watch(Camera(0)):
        pass
    print(f"said after {time.monotonic() - begin:.2f} s")
    assert time.monotonic() - begin < 2
    other.release()
    with Camera(0) as source:
        assert next(iter(source)).index == 0


def test_a_device_that_may_not_be_opened_says_so() -> None:
    child = os.fork()
    if child == 0:
        os.setuid(65534)
        try:
            with Camera(0):
                os._exit(2)
        except SourceError as error:
            os._exit(0 if "group 'video'" in str(error) else 3)
        os._exit(4)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


@pytest.mark.parametrize(("seconds", "expected"), [(0.7, ["stalled"]), (3.0, ["stalled", "down"])])
def test_a_stall(seconds: float, expected: list[str], watch: Watch) -> None:
    known = len(watch.status.changes)
    order("percentage_of_dropped_buffers", 100)
    began_ns = time.monotonic_ns()
    time.sleep(seconds)
    order("percentage_of_dropped_buffers", 0)
    back_s = wait_for(lambda: watch.status.state == "live")
    seen = watch.status.changes[known:]
    print([(change.state, round((change.ns - began_ns) / 1e9, 2)) for change in seen], f"back after {back_s:.2f} s")
    assert [change.state for change in seen] == [*expected, "live"]
    assert seen[0].ns - began_ns < SHOWN_S * 1e9
    assert back_s < BACK_S


@pytest.mark.parametrize("seconds", [0.0, 2.0])
def test_a_camera_that_is_pulled_out_is_waited_for(seconds: float, watch: Watch) -> None:
    began_ns, known = time.monotonic_ns(), len(watch.status.changes)
    pull_out()
    shown_s = wait_for(lambda: watch.status.state == "down")
    time.sleep(seconds)
    print(watch.status.reason)
    plug_in()
    back_s = wait_for(lambda: watch.status.state == "live")
    seen = watch.status.changes[known:]
    print([(change.state, round((change.ns - began_ns) / 1e9, 2)) for change in seen], f"back after {back_s:.2f} s")
    assert watch.status.reconnects == 1
    assert shown_s < SHOWN_S
    assert back_s < BACK_S


def test_a_driver_that_disconnects_is_opened_again(watch: Watch) -> None:
    order("disconnect", 1)
    wait_for(lambda: watch.status.reconnects == 1)
    assert watch.status.state == "live"


def test_a_fatal_error_while_streaming_ends_in_a_new_connection(watch: Watch) -> None:
    order("inject_fatal_streaming_error", 1)
    wait_for(lambda: watch.status.reconnects == 1)
    assert watch.status.state == "live"


def test_a_start_that_fails_is_tried_again(watch: Watch) -> None:
    order("inject_vidioc_streamon_error", 1)
    order("inject_fatal_streaming_error", 1)
    wait_for(lambda: watch.status.reconnects == 1)
    assert watch.status.state == "live"


def test_a_bad_buffer_ends_nothing(watch: Watch) -> None:
    order("inject_v4l2_buf_flag_error", 1)
    time.sleep(0.5)
    assert (watch.status.state, watch.status.reconnects) == ("live", 0)


def test_the_size_cannot_be_changed_by_others_while_it_streams(watch: Watch) -> None:
    form = bytearray(struct.pack("I", 1).ljust(208, b"\0"))
    with NODE.open("rb") as node:
        fcntl.ioctl(node, G_FMT, form)
        struct.pack_into("II", form, 8, 320, 180)
        with pytest.raises(OSError, match="busy"):
            fcntl.ioctl(node, S_FMT, form)
    frame = watch.slot.take()
    assert frame is not None
    assert frame.picture.shape == (480, 640, 3)
