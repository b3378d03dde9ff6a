"""The watcher over scripted cameras: what it does with readers that fail, hang, or come back late."""

from __future__ import annotations

import contextlib
import sys
import threading
import time
from collections.abc import Callable, Iterator

import numpy as np
import pytest
from scripted import BLACK

from edgeattn.camera.frame import Frame, Interrupt
from edgeattn.camera.source import open_source
from edgeattn.camera.watch import Watch, probe_s
from edgeattn.errors import RefusedError, SourceError
from edgeattn.imaging import Picture


class Connection:
    fps: float | None = None
    age_from = "kernel"
    held = 1.0
    damaged = skipped = 0

    def __init__(self, read: Callable[[], Picture]) -> None:
        self._read = read
        self.closed = threading.Event()

    def read(self) -> tuple[Picture, int]:
        return self._read(), time.monotonic_ns()

    def close(self) -> None:
        self.closed.set()


class Camera:
    """Each connection is the next of the script's; an error is one that does not open."""

    name, live, local, fps, timeout_s = "camera 7", True, True, None, 0.1

    def __init__(self, script: list[Callable[[], Picture] | Exception], *, local: bool = True) -> None:
        self.script, self.local = iter(script), local
        self.connections: list[Connection] = []

    def connect(self, timeout_s: float, silent_s: float, interrupt: Interrupt) -> Connection:
        step = next(self.script, SourceError("camera 7 is gone"))
        if isinstance(step, Exception):
            raise step
        self.connections.append(Connection(step))
        return self.connections[-1]

    def __enter__(self) -> Camera:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def __iter__(self) -> Iterator[Frame]:
        return iter(())


def steady(picture: Picture = BLACK) -> Callable[[], Picture]:
    def read() -> Picture:
        time.sleep(0.01)
        return picture

    return read


def hanging(let_go: threading.Event, frames: int = 3) -> Callable[[], Picture]:
    """Gives some frames and then hangs, as a driver does, until it is let go."""
    left = [frames]

    def read() -> Picture:
        left[0] -= 1
        if left[0] < 0:
            let_go.wait(20)
        return BLACK

    return read


def wait_for(what: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 10
    while not what():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def test_a_local_camera_that_does_not_open_at_the_start_is_an_error() -> None:
    with pytest.raises(SourceError, match="is in use"), Watch(Camera([SourceError("camera 7 is in use")])):
        pass


@pytest.mark.skipif(sys.platform != "linux", reason="looks into /dev")
def test_a_local_camera_that_is_not_plugged_in_may_be_waited_for() -> None:
    with pytest.raises(SourceError, match="there is no camera 97"):
        open_source("97")
    with Watch(open_source("97", wait=True)) as watch:
        assert watch.status.state == "down"
        assert watch.status.reason.startswith("there is no camera 97")


def test_a_network_camera_that_wants_another_login_is_an_error_at_the_start() -> None:
    camera = Camera([RefusedError("camera 7 wants another login")], local=False)
    with pytest.raises(RefusedError, match="another login"), Watch(camera):
        pass


@pytest.mark.parametrize("late", [False, True])
def test_what_is_being_opened_is_interrupted_when_the_watch_stops(late: bool) -> None:
    began, interrupted = threading.Event(), threading.Event()

    class Silent(Camera):
        def connect(self, timeout_s: float, silent_s: float, interrupt: Interrupt) -> Connection:
            began.set()
            if late:  # nobody wants it any more when it begins to wait
                wait_for(lambda: watch._stopped)
            interrupt.add(interrupted.set)
            assert interrupted.wait(10)
            raise SourceError("camera 7 does not open")

    camera = Silent([])
    watch = Watch(camera)
    opening = threading.Thread(target=lambda: contextlib.ExitStack().enter_context(watch))
    opening.start()
    assert began.wait(10)
    watch.stop()
    assert interrupted.wait(10)
    opening.join(10)
    assert not opening.is_alive()


def test_a_local_camera_that_vanishes_is_waited_for() -> None:
    def once() -> Picture:
        if len(camera.connections) == 1 and watch.status.size:
            raise SourceError("camera 7 gave no more frames")
        return BLACK

    gone = SourceError("there is no camera 7")
    camera = Camera([once, gone, RefusedError("not now"), gone, steady(np.zeros((20, 30, 3), np.uint8))])
    with (watch := Watch(camera)):
        wait_for(lambda: watch.status.reconnects == 1)
        status = watch.status
        assert [change.state for change in status.changes] == ["connecting", "live", "down", "live"]
        assert status.changes[2].reason == "gave no more frames"
        assert (status.size, status.resizes) == ((30, 20), 1)


def test_a_reader_that_hangs_is_left_behind_and_its_late_frames_count_no_more() -> None:
    let_go = threading.Event()
    camera = Camera([hanging(let_go), steady()])
    with Watch(camera) as watch:
        wait_for(lambda: watch.status.reconnects == 1)
        assert [change.state for change in watch.status.changes][:4] == ["connecting", "live", "stalled", "down"]
        assert not camera.connections[0].closed.is_set()
        let_go.set()
        assert camera.connections[0].closed.wait(10), "its thread ends by itself"
        assert watch.status.state == "live"
        assert watch.status.reconnects == 1


def test_an_old_connection_that_comes_back_first_is_taken() -> None:
    let_go, never = threading.Event(), threading.Event()
    camera = Camera([hanging(let_go), hanging(never, frames=0)])
    with Watch(camera) as watch:
        wait_for(lambda: len(camera.connections) == 2)
        let_go.set()
        wait_for(lambda: watch.status.state == "live")
        assert watch.status.reconnects == 0
        never.set()
    assert camera.connections[1].closed.wait(10)


def test_a_bug_in_a_reader_is_raised_where_frames_are_taken() -> None:
    camera = Camera([steady(), ZeroDivisionError("a bug")])
    with Watch(camera) as watch:
        camera.connections[0]._read = lambda: 1 // 0  # type: ignore[assignment, return-value]
        with pytest.raises(ZeroDivisionError):
            list(watch.slot)


def test_closing_with_a_hanging_reader_takes_no_time() -> None:
    never = threading.Event()
    with Watch(Camera([hanging(never)])) as watch:
        wait_for(lambda: watch.status.state == "down")
        begin = time.monotonic()
    assert time.monotonic() - begin < 0.5
    assert watch.slot.take() is not None
    assert watch.slot.take() is None, "whoever takes frames is told that none will follow"
    never.set()


def test_a_camera_is_looked_for_less_often_after_a_minute() -> None:
    assert probe_s(0) == probe_s(59) == 0.1
    assert 0.15 <= probe_s(75) <= 0.3
    assert all(1.5 <= probe_s(away_s) <= 2.0 for away_s in (3600, 86_400, 1e9) for _ in range(20))
