"""A long run, minute by minute."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import tiny
from scripted import BLACK, Clock, File, Live

from edgeattn.bundle import Bundle
from edgeattn.camera import Frame, Pipeline, Result
from edgeattn.camera.live import Live as Loop
from edgeattn.camera.model import Model
from edgeattn.camera.record import Record
from edgeattn.camera.soak import Soak, line
from edgeattn.engines.fake import FakeEngine
from edgeattn.tasks import decode

RED = {"logits": np.array([[4.0, 0.0, 0.0]], np.float32)}
BUNDLE = Bundle(Path("nowhere.edgeattn"), tiny.SPEC, ())
SCRIPT = Path(__file__).parents[2] / "tools" / "run_camera.py"


MODEL = Model(BUNDLE, FakeEngine({}), "")


def result(age_ms: float) -> Result:
    answer = decode(RED, tiny.SPEC)
    return Result(Frame(BLACK, 0, 0, "received"), answer, answer, {}, age_ms, 2.0, {"infer": 2.0}, 0, MODEL)


def test_figures_are_of_their_minute_alone_and_know_their_floor() -> None:
    clock, said = Clock(), []
    live = SimpleNamespace(record=Record(clock), pipeline=SimpleNamespace(statuses=()))
    soak = Soak(live, 60, say=said.append, clock=clock)  # type: ignore[arg-type]
    soak._began_ns = soak._since_ns = clock()
    soak._before = soak._counts()
    for ages in ([100.0] * 900, [5.0] * 894 + [40.0] * 6 + [80.0] * 6, [], [7.0] * 300):
        for age_ms in ages:
            live.record.add(result(age_ms))
        clock.advance_ms(60_000)
        soak._add()
    slow, quick, silent, few = soak.minutes
    assert [each["minute"] for each in soak.minutes] == [1, 2, 3, 4]
    assert (slow["fps"], slow["frames"], slow["age_ms"]["p50"], slow["age_ms"]["p99"]) == (15.0, 900, 100.0, 100.0)
    assert (quick["age_ms"]["p50"], quick["age_ms"]["max"], quick["frames"]) == (5.0, 80.0, 906)
    assert 5.0 < quick["age_ms"]["p99"] <= 80.0
    assert (silent["fps"], silent["age_ms"]["n"], silent["age_ms"]["p50"]) == (0.0, 0, None)
    assert few["age_ms"]["p99"] is None, "300 are too few for a p99"
    assert said[0].startswith("minute 1: 15.0 fps, age p50 100 ms, p99 100 ms, ")
    assert ": 0.0 fps, no frame, " in said[2]
    assert "p99 not enough samples (300 of 662)" in said[3]


def test_what_a_machine_does_not_tell_is_unavailable() -> None:
    minute: dict[str, Any] = {"minute": 1, "fps": 30.0, "frames": 0, "age_ms": {}, "rss_mb": 90.12, "dropped": 2,
                              "reconnects": 1, "hottest_c": "unavailable", "frequency_mhz": "unavailable"}  # fmt: skip
    assert line(minute) == (
        "minute 1: 30.0 fps, no frame, 90.1 MB, temperature unavailable, frequency unavailable, 2 dropped, 1 reconnects"
    )
    assert "51 °C, 1800 MHz" in line(minute | {"hottest_c": 51.2, "frequency_mhz": 1800})


def test_it_ends_a_camera_that_is_silent() -> None:
    """Three short minutes; the camera gives one frame and then none."""
    source, said = Live([[0.0], [1.0]]), []
    with (
        Pipeline(BUNDLE, source, opened_engine=FakeEngine(RED)) as pipeline,
        contextlib.closing(Loop(pipeline)) as loop,
        Soak(loop, 2.5, say=said.append, minute_s=0.1) as soak,
    ):
        began = time.monotonic()
        loop.run()
        assert 0.2 < time.monotonic() - began < 2
        source._wanted[1].set()
    assert [each["frames"] for each in soak.minutes] == [1, 0, 0]
    assert soak.minutes[-1]["seconds"] < soak.minutes[0]["seconds"], "the last one is half a minute"
    assert len(said) == 3


def test_it_ends_a_file_and_a_run_that_ends_by_itself_ends_it() -> None:
    def played(frames: int, minutes: float) -> tuple[Loop, Soak]:
        with (
            Pipeline(BUNDLE, File(frames, Clock()), opened_engine=FakeEngine(RED, 1.0)) as pipeline,
            contextlib.closing(Loop(pipeline)) as loop,
            Soak(loop, minutes, say=lambda _: None, minute_s=0.1) as soak,
        ):
            loop.run()
        return loop, soak

    loop, soak = played(10_000, 3)
    assert 0 < loop.record.frames < 10_000
    assert len(soak.minutes) == 3
    loop, soak = played(5, 1000)
    assert sum(each["frames"] for each in soak.minutes) <= loop.record.frames == 5
    assert not any(thread.name == "soak" for thread in threading.enumerate())


def test_a_record_does_not_grow(monkeypatch: pytest.MonkeyPatch) -> None:
    import tracemalloc

    monkeypatch.setattr("edgeattn.camera.record.KEPT", 1000)
    record, one = Record(), result(5.0)
    for _ in range(1010):
        record.add(one)
    tracemalloc.start()
    try:
        before, _ = tracemalloc.get_traced_memory()
        for _ in range(5000):
            record.add(one)
        after, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert after - before < 2_000, "bytes over 5,000 frames"
    assert record.report()["age_ms"]["n"] == 1000
    assert record.frames == 6010


def test_run_says_every_minute(tiny_bundle: Bundle, tmp_path: Path) -> None:
    command = [sys.executable, str(SCRIPT), str(tiny_bundle.path), "--engine", "onnxruntime", "--precision", "float"]
    began = time.monotonic()
    done = subprocess.run(
        [*command, "--source", "test", "--sink", "none", "--minutes", "0.03", "--json", "run.json"],
        capture_output=True, text=True, timeout=60, check=True, cwd=tmp_path,
    )  # fmt: skip
    assert 1.8 < time.monotonic() - began < 20
    report = json.loads((tmp_path / "run.json").read_text())
    (minute,) = report["minutes"]
    assert minute["seconds"] == pytest.approx(1.8, abs=0.3)
    assert minute["fps"] == pytest.approx(30, rel=0.3)
    assert minute["age_ms"]["p50"] > 0
    assert minute["rss_mb"] > 20
    assert {"hottest_c", "frequency_mhz", "dropped", "reconnects", "time"} <= set(minute)
    assert "\nminute 1: " in done.stdout
