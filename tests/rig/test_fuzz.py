"""Faults at random, one upon another: no crash, no hang, no leak. The seed is printed; FAULTS=1000 makes it a long run.

FAULTS=1000 FAULT_SEED=7 pytest -s tests/rig/test_fuzz.py      (about 8 minutes)
"""

from __future__ import annotations

import collections
import os
import random
import threading
import time
from pathlib import Path

import psutil
import pytest
import rtsp
from judge import watching
from mjpeg import MjpegCamera
from rtsp import RtspCamera

from edgeattn.camera import Camera
from edgeattn.camera.watch import LEFT_BEHIND, Watch

pytestmark = pytest.mark.rig

FAULTS = int(os.environ.get("FAULTS", "30"))
SEED = int(os.environ.get("FAULT_SEED", str(random.randrange(10_000))))
KINDS = {
    MjpegCamera: ("stall", "refuse", "silent", "unplug", "reset", "end", "garbage", "corrupt", "truncate", "resize"),
    RtspCamera: ("stall", "refuse", "freeze", "end", "resize"),
}
THREADS = {MjpegCamera: 1, RtspCamera: 6}
"""Of a reader at most: of RTSP a relay's three, two of them again for another connection, and the look at that."""
SIZES = ((320, 240), (640, 480), (1280, 720))


def order(camera: MjpegCamera | RtspCamera, kind: str, chance: random.Random) -> str:
    seconds, frames = round(chance.uniform(0.05, 1.2), 2), chance.randint(1, 4)
    arguments: tuple[float, ...] = {"resize": chance.choice(SIZES), "reset": (), "end": ()}.get(
        kind, (seconds,) if kind in ("stall", "refuse", "silent", "unplug", "freeze") else (frames,)
    )
    getattr(camera, kind)(*arguments)
    return f"{kind}{arguments}"


def open_handles() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def memory_mb() -> float:
    return psutil.Process().memory_info().rss / 1e6


@pytest.mark.parametrize(
    "kind_of_camera",
    [MjpegCamera, pytest.param(RtspCamera, marks=pytest.mark.skipif(rtsp.missing() is not None, reason="no server"))],
)
def test_random_faults(kind_of_camera: type[MjpegCamera] | type[RtspCamera]) -> None:
    print(f"FAULT_SEED={SEED}")
    chance, done = random.Random(SEED), []
    every = KINDS[kind_of_camera]
    kinds = [kind for _ in range(-(-FAULTS // len(every))) for kind in every]  # as many of each
    chance.shuffle(kinds)
    with kind_of_camera() as camera:
        threads, handles = threading.active_count(), open_handles()
        most_threads, memory = threads, [0.0]
        with Watch(Camera(camera.url)) as watch, watching(frame.picture for frame in watch.slot) as judge:
            judge.wait_for(10)
            for number, kind in enumerate(kinds[:FAULTS]):
                done.append(order(camera, kind, chance))
                time.sleep(chance.choice([0.0, 0.05, 0.3, 0.8]))
                assert judge.error is None, f"seed {SEED}, fault {number}: {done[-3:]}"
                most_threads = max(most_threads, threading.active_count())
                assert most_threads <= threads + 3 + THREADS[kind_of_camera] * (1 + LEFT_BEHIND), done[-3:]
                if number % 10 == 9:  # let it come to rest: what lasts longest is over after that
                    shown = len(judge.good)
                    deadline = time.monotonic() + 30
                    while len(judge.good) < shown + 30 and time.monotonic() < deadline:
                        time.sleep(0.05)
                    assert len(judge.good) >= shown + 30, f"seed {SEED}: dead after {done[-10:]}"
                    memory.append(memory_mb())
            assert watch.status.state == "live"
            damaged = judge.report()["damaged"]
            seen = watch.status
        deadline = time.monotonic() + 8
        while (threading.active_count(), open_handles()) > (threads, handles) and time.monotonic() < deadline:
            time.sleep(0.1)
        print(
            f"{dict(collections.Counter(kinds[:FAULTS]))}; {len(judge.sights)} frames, {damaged} damaged ones shown, "
            f"{seen.damaged} passed over, {seen.reconnects} reconnects, {seen.stalls} stalls, {seen.resizes} resizes; "
            f"threads {threads}, at most {most_threads}, {threading.active_count()} in the end; "
            f"handles {handles}, {open_handles()} in the end; "
            f"RSS {memory[1]:.0f} MB after 10 faults, at most {max(memory):.0f}, {memory[-1]:.0f} in the end"
        )
        assert damaged == 0
        assert threading.active_count() <= threads
        assert open_handles() <= handles
        assert memory[-1] < memory[1] + 40
