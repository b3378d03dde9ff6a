from __future__ import annotations

import itertools
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
from scripted import BLACK, Clock, write_video

from edgeattn._cv2 import cv2
from edgeattn.bundle import Bundle
from edgeattn.engines.fake import FakeEngine
from edgeattn.errors import EngineError, NameNotFoundError, SourceError, SpecError
from edgeattn.profiling import Profiler, Report, profile
from edgeattn.profiling.figures import notes
from edgeattn.profiling.modes import BURST, FRAMES, SAMPLES, plan
from edgeattn.timing.pressure import Pressure

PERIOD_MS = 1000 / 30


def scripted(monkeypatch: pytest.MonkeyPatch, delay_ms: Callable[[int], float], clock: Clock) -> list[float]:
    """Engines whose n-th inference takes `delay_ms(n)` on a clock turned by hand; gives what each took."""
    taken: list[float] = []

    def delays() -> Any:
        for n in itertools.count():
            taken.append(delay_ms(n))
            yield taken[-1]

    def open_artefact(bundle: Bundle, artefact: Any, threads: int | None = None) -> FakeEngine:
        engine = FakeEngine({"logits": np.zeros((1, 3), np.float32)}, delays(), sleep=clock.sleep)
        engine.name = artefact.engine
        return engine

    monkeypatch.setattr("edgeattn.engines.open_artefact", open_artefact)
    monkeypatch.setattr("edgeattn.profiling.frames.builtin", lambda bundle: (BLACK for _ in itertools.count()))
    return taken


def in_simulated_time(bundle: Bundle, clock: Clock, **options: Any) -> Report:
    one = {"engine": "openvino", "precision": "float"}
    with Profiler(bundle, clock=clock, sleep=clock.sleep, **one, **options) as profiler:
        for _ in profiler:
            pass
        return profiler.report()


def ages_in_order(delays_ms: list[float]) -> np.ndarray:
    """Age of each frame from when it was due, where each is started when it is due and the one before is done."""
    done_ms, ages = 0.0, []
    for i, delay_ms in enumerate(delays_ms):
        done_ms = max(i * PERIOD_MS, done_ms) + delay_ms
        ages.append(done_ms - i * PERIOD_MS)
    return np.asarray(ages)


def test_p99_from_due_time_holds_what_waited(tiny_bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    """1 % of frames take 500 ms at 30 Hz: the times of inference alone say nothing of the frames that waited."""
    clock, stalls = Clock(), np.random.default_rng(11).random(10_000) < 0.01
    taken = scripted(monkeypatch, lambda n: 500.0 if n > 300 and stalls[n % 10_000] else 10.0, clock)
    report = in_simulated_time(tiny_bundle, clock, mode="paced", samples=3000)
    result = report.results[0]
    measured = result.ages_ms.size
    exact = ages_in_order(taken[-measured:])
    found = result.to_json()["age_ms"]
    for key, percentile in (("p50", 50), ("p95", 95), ("p99", 99)):
        assert found[key] == pytest.approx(np.percentile(exact, percentile), rel=0.02)
    assert found["p99"] > 400
    assert found["p95"] > 200 > result.latency_ms["p95"] == 10  # type: ignore[operator]
    assert result.age_from == "due"
    assert report.seconds == pytest.approx(measured / 30, rel=0.02)


def test_paced_frames_that_keep_up_have_the_age_of_their_way(
    tiny_bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Clock()
    scripted(monkeypatch, lambda n: 12.0, clock)
    report = in_simulated_time(tiny_bundle, clock, mode="paced", samples=40)
    assert set(report.results[0].ages_ms.round(3)) == {12.0}
    assert report.seconds == pytest.approx(39 / 30, rel=0.02)
    assert "p99: not enough samples (40 of 662); 21 s more, measured with --until p99" in list(notes(report))


def test_warm_up_ends_where_the_times_no_longer_change(tiny_bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock()
    scripted(monkeypatch, lambda n: 9.0 if n < 15 else 3.0 + 0.1 * (n % 3), clock)
    result = in_simulated_time(tiny_bundle, clock, samples=64).results[0]
    assert result.settled
    assert 34 <= result.warmup <= 40  # 14 slow frames after the first inference, then 20 steady ones
    assert result.latencies_ms.max() < 3.5


def test_warm_up_that_never_settles_is_told(tiny_bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock()
    scripted(monkeypatch, lambda n: 5.0 + n, clock)
    report = in_simulated_time(tiny_bundle, clock, samples=8)
    assert not report.results[0].settled
    assert any("at whose end the times still changed: openvino float" in note for note in notes(report))
    assert not report.results[0].to_json()["warmup_settled"]


def test_sustained_tells_the_last_minute_from_the_first(tiny_bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("hdrh")
    clock = Clock()
    scripted(monkeypatch, lambda n: 100.0 + n / 20, clock)  # the box heats up
    report = in_simulated_time(tiny_bundle, clock, mode="sustained", minutes=4.0)
    result = report.results[0]
    assert [round(w["until_s"] / 60) for w in result.more["windows"]] == [1, 2, 3, 4]
    medians = [w["latency_ms"]["p50"] for w in result.more["windows"]]
    assert medians == sorted(medians)
    ratio = result.more["last_over_first"]
    assert ratio["value"] == pytest.approx(medians[3] / medians[0])
    assert 1.0 < ratio["low"] <= ratio["value"] <= ratio["high"]
    assert result.latency_ms["n"] == sum(w["latency_ms"]["n"] for w in result.more["windows"])
    assert any("the last 60 s took" in note for note in notes(report))
    json.dumps(report.to_json(), allow_nan=False)


def test_throughput_runs_a_stream_a_core(tiny_int8_bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edgeattn.profiling.modes.usable_cores", lambda: 3)
    opened: list[FakeEngine] = []

    def open_artefact(bundle: Bundle, artefact: Any, threads: int | None = None) -> FakeEngine:
        engine = FakeEngine(
            {"logits": np.zeros((1, 3), np.float32)}, 10.0, precision=artefact.precision, threads=threads or 9
        )
        engine.name = artefact.engine
        opened.append(engine)
        return engine

    monkeypatch.setattr("edgeattn.engines.open_artefact", open_artefact)
    report = profile(tiny_int8_bundle, mode="throughput", seconds=0.5, engine="openvino", precision="int8")
    more = report.results[0].more
    assert more["streams"] == 3
    low, high = more["throughput_interval_fps"]
    assert low <= high <= 3 * 100 * 1.5
    assert 0 < more["throughput_fps"] <= 300  # three streams of 10 ms, which no machine runs faster
    assert all(engine.closed and engine.threads == 1 for engine in opened)
    assert len(opened) == 3


def test_throughput_of_an_engine_that_fails(tiny_bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    scripted(monkeypatch, lambda n: 0.0, Clock())
    calls = itertools.count()
    real = FakeEngine.infer

    def infer(self: FakeEngine, image: np.ndarray) -> dict[str, np.ndarray]:
        if next(calls) > 200:
            raise EngineError("out of memory")
        return real(self, image)

    monkeypatch.setattr(FakeEngine, "infer", infer)
    with pytest.raises(EngineError, match="out of memory"):
        profile(tiny_bundle, mode="throughput", seconds=0.2, engine="openvino")
    calls = itertools.count()
    with pytest.raises(EngineError, match="out of memory"):  # no time ends it, and no sample will ever come
        profile(tiny_bundle, mode="throughput", samples=700, engine="openvino")


def test_throughput_stopped_by_ctrl_c_keeps_what_there_is(tiny_bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    scripted(monkeypatch, lambda n: 1.0, Clock())
    naps = itertools.count()

    def interrupted(seconds: float) -> None:
        time.sleep(seconds)
        if next(naps) == 3:
            raise KeyboardInterrupt

    one = {"engine": "openvino", "precision": "float"}
    with Profiler(tiny_bundle, mode="throughput", seconds=60.0, sleep=interrupted, **one) as profiler:
        with pytest.raises(KeyboardInterrupt):
            list(profiler)
        report = profiler.report()
    assert report.stopped_early
    assert report.results[0].throughput_fps
    assert report.results[0].latencies_ms.size > 0


def test_cold_starts_real_processes(tiny_bundle: Bundle) -> None:
    report = profile(tiny_bundle, mode="cold", samples=1, engine="onnxruntime")
    result = report.results[0]
    assert list(result.stages_ms) == ["python", "import", "open", "first"]
    assert all(ms[0] > 0 for ms in result.stages_ms.values())
    assert result.latencies_ms[0] == pytest.approx(sum(ms[0] for ms in result.stages_ms.values()))
    assert (result.executed_precision, result.mode) == ("f32", "cold")
    assert 20 < result.memory["rss_mb"] < 2000
    assert json.loads(json.dumps(report.to_json(), allow_nan=False))["results"][0]["memory"]["pss_mb"]


def test_cold_start_that_fails(tiny_bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edgeattn.profiling.cold.CODE", "import sys; sys.exit('libgomp is missing')")
    with pytest.raises(EngineError, match="openvino float did not start in a process of its own: libgomp is missing"):
        profile(tiny_bundle, mode="cold", samples=1, engine="openvino")


def test_live_runs_the_camera_loop(tiny_bundle: Bundle, tmp_path: Path) -> None:
    video = write_video(tmp_path / "clip.mp4", [picture for picture, _ in tiny.pictures(60)])
    report = profile(tiny_bundle, mode="live", source=str(video), samples=20)
    assert len(report.results) == 1  # what `run` would take
    result = report.results[0]
    assert result.age_from == "due"
    assert result.ages_ms.size == 20
    assert (result.ages_ms >= result.latencies_ms).all()
    assert result.more["fps"] > 0
    assert set(result.stages_ms) == {"capture", "resize", "infer", "decode"}
    assert len(result.frames_ms) == 20


def test_live_needs_frames_with_an_age(tiny_bundle: Bundle, tmp_path: Path) -> None:
    cv2.imwrite(str(tmp_path / "1.png"), tiny.pictures(1)[0][0])
    with pytest.raises(SourceError, match="pictures have no age"):
        profile(tiny_bundle, mode="live", source=str(tmp_path), engine="openvino", precision="float")
    video = write_video(tmp_path / "short.mp4", [picture for picture, _ in tiny.pictures(4)])
    with pytest.raises(EngineError, match=r"short\.mp4 gave no more than 10 frames"):
        profile(tiny_bundle, mode="live", source=str(video), engine="openvino", precision="float")


def test_load_of_a_live_box_is_no_disturbance(tiny_bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    readings = itertools.cycle([Pressure(0, 0, 0, 0)] * 2 + [Pressure(10**9, 4 * 10**8, 8 * 10**8, 0)])
    monkeypatch.setattr("edgeattn.timing.pressure.read", lambda clock: next(readings))
    one = {"engine": "onnxruntime", "precision": "float"}
    live = profile(tiny_bundle, mode="live", samples=3, **one)
    assert live.valid
    assert any("loaded, as it is in use: other programs used 0.80 cores" in note for note in notes(live))
    assert live.to_json()["loaded"]
    single = profile(tiny_bundle, samples=8, **one)
    assert not single.valid
    assert single.loaded == ()


def test_plans() -> None:
    def planned(mode: str, **asked: Any) -> tuple[int | None, float | None]:
        defaults = {"samples": None, "seconds": None, "until": None, "fps": 30.0, "minutes": 30.0, "source": None}
        made = plan(mode, **(defaults | asked))
        return made.samples, made.seconds

    assert planned("single") == (SAMPLES, 15.0)
    assert planned("paced") == planned("live") == (FRAMES, None)
    assert planned("sustained") == (None, 1800.0)
    assert planned("sustained", minutes=2.0) == (None, 120.0)
    assert planned("single", until="p99") == (664, None)
    assert planned("paced", until="p99.9") == (6636, None)
    assert planned("single", until="p99", seconds=9.0) == (664, 9.0)
    assert SAMPLES % BURST == 0
    with pytest.raises(NameNotFoundError, match="Did you mean 'paced'"):
        planned("pased")
    with pytest.raises(NameNotFoundError, match="no percentile is named 'p98'"):
        planned("single", until="p98")
    with pytest.raises(SpecError, match="leave out --samples 10"):
        planned("single", until="p99", samples=10)
    with pytest.raises(SpecError, match="fps"):
        planned("paced", fps=0.0)
