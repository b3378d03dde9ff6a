"""Files under a cap: rotation, what is removed, and a disk that is full for a while."""

from __future__ import annotations

import functools
import json
import re
import signal
import subprocess
import sys
import time
from datetime import datetime, timedelta, timezone
from pathlib import Path

import numpy as np
import pytest
from scripted import Clock, read_video
from test_camera_sinks import result

from edgeattn.bundle import Bundle
from edgeattn.camera.feed import Feed
from edgeattn.camera.rotate import Rotating, Rotation, Segments
from edgeattn.camera.sinks import JsonLines, Sink, VideoFile
from edgeattn.cli.units import size, time_or_size
from edgeattn.errors import EdgeAttnError
from edgeattn.timing import Spans

NAME = re.compile(r"cam-\d{8}T\d{6}\.\d{3}Z\.(mp4|jsonl)")
HERE = Path(__file__).parent
SCRIPT = HERE.parents[1] / "tools" / "run_camera.py"


class Day:
    """A wall clock that is a second further at every look."""

    def __init__(self) -> None:
        self.time = datetime(2026, 11, 22, 23, 59, 30, tzinfo=timezone.utc)

    def __call__(self) -> datetime:
        self.time += timedelta(seconds=1)
        return self.time


class Disk:
    """A disk of 1 GB that has as much free as it is told."""

    def __init__(self) -> None:
        self.free = 900_000_000

    def __call__(self, folder: Path) -> tuple[int, int, int]:
        return 1_000_000_000, 1_000_000_000 - self.free, self.free


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_file_gives_way_after_its_time_and_each_is_playable_by_itself(tmp_path: Path) -> None:
    clock, say = Clock(), []
    segments = Segments(tmp_path / "new", "cam", now=Day())
    make = functools.partial(VideoFile, fps=10)
    sink = Rotating(make, tmp_path / "new" / "cam.mp4", segments, Rotation(every_s=10), say=say.append, clock=clock)
    for second in range(25):
        assert sink.draws == "all"
        sink.write(result(second), np.full((48, 64, 3), 10 * second, np.uint8))
        if second:
            done = names(tmp_path / "new")[:-1]
            assert all(read_video(tmp_path / "new" / name) for name in done), "whole as soon as the next begins"
        clock.advance_ms(1000)
    sink.close()
    files = names(tmp_path / "new")
    assert all(NAME.fullmatch(name) for name in files)
    assert files[0] == "cam-20261122T235931.000Z.mp4"
    pictures = [read_video(tmp_path / "new" / name) for name in files]
    assert [len(each) for each in pictures] == [10, 10, 5]
    levels = [round(float(picture.mean()) / 10) for each in pictures for picture in each]
    assert levels == list(range(25)), "in the order of the names, each picture once"
    assert sink.figures() == {"files": 3, "removed": 0, "missed": 0}
    assert say == []


def test_the_cap_holds_at_every_moment_and_over_a_restart(tmp_path: Path) -> None:
    """A video of noise and its lines under 20 MB together; the oldest go first, strangers and the running file stay."""
    keep, noise = 20_000_000, np.random.default_rng(0).integers(0, 255, (480, 640, 3), np.uint8)
    strangers = ["cam-holiday.mp4", "cam.mp4", "other-20200101T000000.000Z.mp4", "cam-20200101T000000.000Z.mp4.part"]
    for name in strangers:
        (tmp_path / name).write_bytes(b"mine")
    earlier = tmp_path / "cam-20200101T000000.000Z.mp4"
    earlier.write_bytes(bytes(3_000_000))
    day, most, first_names = Day(), 0, []
    for run in range(2):
        segments = Segments(tmp_path, "cam", keep, now=day)
        video = Rotating(VideoFile, tmp_path / "cam.mp4", segments, Rotation(None, None, keep))
        lines = Rotating(JsonLines, tmp_path / "cam.jsonl", segments, Rotation(None, None, keep))
        for index in range(250):
            video.write(result(index), np.roll(noise, 7 * index, axis=1))
            lines.write(result(index), None)
            ours = [path for path in tmp_path.iterdir() if NAME.fullmatch(path.name)]
            most = max(most, sum(path.stat().st_size for path in ours))
            assert video._path in ours
            assert lines._path in ours
        video.close()
        lines.close()
        assert segments.removed >= 3
        first_names.append(min(name for name in names(tmp_path) if NAME.fullmatch(name)))
        if run == 0:
            assert not earlier.exists(), "an earlier run's files count, and are the oldest"
    assert 0.8 * keep < most <= keep
    assert first_names[0] < first_names[1]
    assert set(strangers) <= set(names(tmp_path))
    videos = sorted(tmp_path.glob("cam-2026*.mp4"))
    assert len(videos) >= 6
    assert all(len(read_video(path)) >= 5 for path in videos)


def test_below_the_floor_nothing_is_written_and_it_goes_on_when_there_is_space(tmp_path: Path) -> None:
    clock, disk, said = Clock(), Disk(), []
    segments = Segments(tmp_path, "cam", now=Day(), usage=disk)
    sink = Rotating(JsonLines, tmp_path / "cam.jsonl", segments, say=said.append, clock=clock)
    written = []
    for second in range(40):
        disk.free = 49_000_000 if 10 <= second < 20 else 55_000_000 if 20 <= second < 30 else 900_000_000
        if sink.draws is not None:
            sink.write(result(second), None)
            written.append(second)
        clock.advance_ms(1000)
    sink.close()
    assert written == [*range(10), *range(30, 40)], "a twentieth of 1 GB is the floor; a little more to go on"
    assert sink.figures() == {"files": 2, "removed": 0, "missed": 20}
    first, second_name = "cam.jsonl", "cam-20261122T235931.000Z.jsonl"
    assert names(tmp_path) == [second_name, first], "without a rotation the first file has the name asked for"
    indices = [
        json.loads(line)["index"]
        for name in (first, second_name)
        for line in (tmp_path / name).read_text().splitlines()
    ]
    assert indices == written
    assert len(said) == 2
    assert said[0] == f"jsonl is not written for now: only 49 MB are free in {tmp_path}"
    assert said[1].startswith("jsonl is written again: ")


def test_a_write_that_the_kernel_refuses_is_tried_again(tmp_path: Path) -> None:
    """/dev/full refuses every byte with ENOSPC, as a full disk does: said once, however long it lasts."""
    clock, said, opened = Clock(), [], []

    def make(path: Path) -> Sink:
        opened.append(path)
        return JsonLines(Path("/dev/full") if 2 <= len(opened) <= 4 else path)

    segments = Segments(tmp_path, "cam", now=Day())
    sink = Rotating(make, tmp_path / "cam.jsonl", segments, Rotation(every_s=5), say=said.append, clock=clock)
    for second in range(60):
        if sink.draws is not None:
            sink.write(result(second), None)
        clock.advance_ms(1000)
    sink.close()
    kept = [
        json.loads(line)["index"] for name in names(tmp_path) for line in (tmp_path / name).read_text().splitlines()
    ]
    assert kept == [*range(5), *range(35, 60)], "three tries ten seconds apart"
    assert sink.missed == 30
    assert len(said) == 2
    assert "No space left on device" in said[0]
    assert said[1].startswith("jsonl is written again")


def test_a_disk_that_is_pulled_out_and_comes_back(tmp_path: Path) -> None:
    clock, said = Clock(), []
    stick = tmp_path / "stick"
    segments = Segments(stick, "cam", now=Day())
    sink = Rotating(VideoFile, stick / "cam.mp4", segments, Rotation(every_s=5), say=said.append, clock=clock)
    for second in range(30):
        if second == 7:
            stick.rename(tmp_path / "away")
        if second == 14:
            (tmp_path / "away").rename(stick)
        if sink.draws is not None:
            sink.write(result(second), np.full((48, 64, 3), 8 * second, np.uint8))
        clock.advance_ms(1000)
    sink.close()
    assert said[0].startswith(f"mp4 is not written for now: {stick} cannot be reached (No such file")
    assert said[-1].startswith("mp4 is written again")
    assert [len(read_video(stick / name)) for name in names(stick)] == [5, 2, 5, 5, 5, 1]


def test_a_first_file_that_cannot_be_written_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(EdgeAttnError, match="choose another --out"):
        Rotating(VideoFile, tmp_path / "file" / "a.mp4", Segments(tmp_path / "file", "a"))
    full = Rotating(JsonLines, Path("/dev/full"), Segments(tmp_path, "full"))
    with pytest.raises(EdgeAttnError, match="No space left on device"):
        full.write(result(), None)
    with pytest.raises(EdgeAttnError, match="No space left on device"):
        full.close()


@pytest.mark.skipif(sys.platform != "linux", reason="limits a process's files")
def test_a_video_that_outgrows_what_the_kernel_allows_says_so(tmp_path: Path) -> None:
    """The real refusal in the midst of a video, which OpenCV passes over in silence: RLIMIT_FSIZE at 1 MB."""
    code = (
        "import resource, sys, numpy; sys.path[:0] = sys.argv[2:]; from pathlib import Path;"
        "from test_camera_sinks import result;"
        "from edgeattn.camera.sinks import VideoFile; sink = VideoFile(Path(sys.argv[1]));"
        "noise = numpy.random.default_rng(0).integers(0, 255, (480, 640, 3), numpy.uint8);"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1000000, 1000000));"
        "[sink.write(result(i), numpy.roll(noise, i, axis=0)) for i in range(40)]; sink.close()"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "out.mp4"), str(HERE), str(HERE.parent)],
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    last = done.stderr.strip().splitlines()[-1]
    assert done.returncode == 1
    assert "EdgeAttnError" in last
    assert "is the disk full?" in last


def test_the_loop_goes_on_while_the_disk_is_full(tmp_path: Path) -> None:
    """A sink that waits for space takes results and gives them back at once: nothing queues before it."""
    disk = Disk()
    disk.free = 0
    sink = Rotating(JsonLines, tmp_path / "cam.jsonl", Segments(tmp_path, "cam", usage=disk), say=lambda _: None)
    feed = Feed(sink, lossless=True, spans=Spans(), say=lambda _: None)
    begin = time.monotonic()
    for index in range(100):
        feed.put(FakePainting(result(index)))  # type: ignore[arg-type]
    feed.close()
    assert time.monotonic() - begin < 2
    assert feed.report() == {"name": "jsonl", "written": 0, "dropped": 0, "failed": False,
                             "files": 1, "removed": 0, "missed": 100}  # fmt: skip


class FakePainting:
    def __init__(self, seen: object) -> None:
        self.result = seen


@pytest.mark.parametrize(("text", "expected"), [("2GB", 2_000_000_000), ("1.5 gib", 1_610_612_736), ("500kb", 500_000)])
def test_sizes(text: str, expected: int) -> None:
    assert size("--keep", text) == expected


def test_times_and_sizes() -> None:
    assert time_or_size("--rotate", "10min") == (600.0, None)
    assert time_or_size("--rotate", "1H") == (3600.0, None)
    assert time_or_size("--rotate", "500MB") == (None, 500_000_000)
    for text in ("", "10", "ten minutes", "-5min", "0s", "5 parsec"):
        with pytest.raises(EdgeAttnError, match=r"--rotate .*as in 10min"):
            time_or_size("--rotate", text)
    with pytest.raises(EdgeAttnError, match="--keep 2: must be a size"):
        size("--keep", "2")


def test_a_rotation_that_makes_no_sense_says_so() -> None:
    with pytest.raises(EdgeAttnError, match="--keep 1MB is too little; give it 20MB"):
        Rotation(keep_bytes=1_000_000)
    with pytest.raises(EdgeAttnError, match="--rotate 1MB is too little"):
        Rotation(None, 1_000_000)
    with pytest.raises(EdgeAttnError, match="more than a quarter of --keep"):
        Rotation(None, 600_000_000, 2_000_000_000)
    assert Rotation(keep_bytes=2_000_000_000).file_bytes == 250_000_000
    assert Rotation().file_bytes is None


def test_a_killed_run_leaves_all_but_the_running_file(tiny_bundle: Bundle, tmp_path: Path) -> None:
    options = ["--source", "test", "--sink", "mp4,jsonl", "--out", "seen.mp4", "--rotate", "1s"]
    command = [sys.executable, str(SCRIPT), str(tiny_bundle.path), "--engine", "onnxruntime", "--precision", "float"]
    process = subprocess.Popen([*command, *options], cwd=tmp_path, stdout=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline and len(list(tmp_path.glob("*.mp4"))) < 3:
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    out, _ = process.communicate(timeout=20)
    assert "writing seen-TIME.mp4" in out
    *done, _ = sorted(tmp_path.glob("seen-*.mp4"))
    assert len(done) >= 2
    for path in done:
        assert 15 <= len(read_video(path)) <= 40, "about a second at 30 frames a second"
    for path in sorted(tmp_path.glob("seen-*.jsonl"))[:-1]:
        assert all(json.loads(line)["label"] for line in path.read_text().splitlines())
