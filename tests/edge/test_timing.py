from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgeattn.timing import SAMPLE_FLOORS, Spans, environment, pressure, processor_key, summary, text, usable_cores
from edgeattn.timing.memory import _as_on_disk, memory
from edgeattn.timing.pressure import Pressure


def ticking(step_ns: int) -> Callable[[], int]:
    """A clock that moves on by `step_ns` whenever it is read."""
    return itertools.count(0, step_ns).__next__


# --- statistics


@settings(max_examples=50, deadline=None)
@given(st.lists(st.floats(0.001, 1e5), min_size=1, max_size=80))
def test_percentiles_equal_numpy(values: list[float]) -> None:
    figures = summary(values)
    assert figures["n"] == len(values)
    assert figures["max"] == max(values)
    assert figures["p50"] == np.percentile(values, 50)
    assert figures["p90"] == (np.percentile(values, 90) if len(values) >= 64 else None)
    assert figures["p99"] is None


@pytest.mark.parametrize(("percentile", "floor"), [(90, 64), (99, 662), (99.9, 6636)])
def test_percentile_needs_its_floor_of_samples(percentile: float, floor: int) -> None:
    values = np.random.default_rng(0).lognormal(size=floor)
    key = f"p{percentile:g}"
    assert SAMPLE_FLOORS[percentile] == floor
    assert summary(values[:-1], (50, percentile))[key] is None
    assert summary(values, (50, percentile))[key] == np.percentile(values, percentile)


def test_summary_of_nothing() -> None:
    assert summary([]) == {"n": 0, "p50": None, "p90": None, "p99": None, "max": None}


def test_text_says_what_is_missing() -> None:
    figures = summary([1.234] * 120)
    assert text(figures, "p50") == "1.23 ms"
    assert text(figures, "p99") == "not enough samples (120 of 662)"
    assert text(summary([], (50, 99.9)), "p99.9") == "not enough samples (0 of 6636)"
    assert text(summary([]), "max") == "not enough samples (0 of 1)"
    assert text(summary([1234.5]), "max") == "1234 ms"


# --- spans


def test_span_measures_with_the_clock() -> None:
    spans = Spans(ticking(3_000_000))
    with spans("resize"):
        pass
    with spans("infer"), spans("layer"):
        pass
    assert spans.stages == ("resize", "layer", "infer")
    assert spans.values_ms("resize").tolist() == [3.0]
    assert spans.latest_ms() == {"resize": 3.0, "layer": 3.0, "infer": 9.0}


def test_span_that_raises_is_not_recorded_and_leaves_no_trace() -> None:
    spans = Spans(ticking(1_000_000))
    with pytest.raises(ZeroDivisionError), spans("infer"):
        _ = 1 / 0
    assert spans.stages == ()
    with spans("infer"):
        pass
    assert spans.values_ms("infer").tolist() == [1.0]


def test_ring_keeps_the_latest_in_order() -> None:
    spans = Spans(capacity=4)
    for ms in range(10):
        spans.record("infer", ms * 1_000_000)
        assert spans.latest_ms()["infer"] == ms
    assert spans.count("infer") == 10
    assert spans.values_ms("infer").tolist() == [6, 7, 8, 9]


def test_a_thread_clock_tells_computing_from_waiting() -> None:
    spans = Spans(ticking(5_000_000), capacity=2, thread_clock=ticking(2_000_000))
    for _ in range(3):
        with spans("infer"):
            pass
    assert spans.values_ms("infer").tolist() == [5.0, 5.0]
    assert spans.thread_ms("infer").tolist() == [2.0, 2.0]
    assert spans.starts_ns("infer").tolist() == [10_000_000, 20_000_000]
    assert Spans().thread_ms("infer").size == Spans().starts_ns("infer").size == 0


def test_a_sleeping_stage_computes_nothing() -> None:
    spans = Spans(thread_clock=time.thread_time_ns)
    with spans("sleep"):
        time.sleep(0.02)
    assert spans.values_ms("sleep")[0] >= 20
    assert spans.thread_ms("sleep")[0] < spans.values_ms("sleep")[0] / 2


def test_values_of_an_unknown_stage_are_empty_and_clear_forgets() -> None:
    spans = Spans()
    spans.record("draw", 5)
    spans.clear()
    assert spans.count("draw") == 0
    assert spans.values_ms("draw").size == 0


def test_two_threads_measure_their_own_stages() -> None:
    spans = Spans()

    def measure(stage: str) -> None:
        for _ in range(2000):
            with spans(stage):
                pass

    threads = [threading.Thread(target=measure, args=(stage,)) for stage in ("capture", "infer")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert spans.count("capture") == spans.count("infer") == 2000


# --- environment and pressure


def test_environment_is_plain_json_and_complete() -> None:
    record = environment()
    assert json.loads(json.dumps(record)) == record
    assert record["versions"]["numpy"] == np.__version__
    assert 1 <= record["usable_cores"] <= record["logical_cores"]
    assert record["memory_mb"] > 100
    assert record["cpu"]
    for value in record.values():
        assert value not in ("", None)


def test_environment_tells_unavailable_where_nothing_can_be_read(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(sys.modules["edgeattn.timing.environment"], "_CPUFREQ", tmp_path / "nothing")
    assert environment()["governor"] == "unavailable"


def test_processor_key_is_short_stable_and_fit_for_a_file_name() -> None:
    key = processor_key()
    assert key == processor_key()
    assert len(key) < 64
    assert key.replace("-", "").isalnum()
    assert f"-{usable_cores()}c-" in key


def test_pressure_shares() -> None:
    before = Pressure(at_ns=1_000, waited_ns=500, others_ns=-100, stolen_ns=0)
    after = Pressure(at_ns=2_000, waited_ns=600, others_ns=300, stolen_ns=500)
    assert after.waited_share(before) == pytest.approx(0.1)
    assert after.other_cores(before) == pytest.approx(0.4)
    assert after.stolen_cores(before) == pytest.approx(0.5)
    assert before.waited_share(before) is None


def test_pressure_of_a_kernel_that_does_not_tell(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(pressure, "_PRESSURE", tmp_path / "nothing")
    monkeypatch.setattr(pressure, "_STAT", tmp_path / "nothing")
    before, after = pressure.read(), pressure.read()
    assert after.waited_ns is None
    assert after.waited_share(before) is None
    assert after.other_cores(before) is None
    assert after.stolen_cores(before) is None


def test_own_work_is_not_that_of_others(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    stat = tmp_path / "stat"
    monkeypatch.setattr(pressure, "_STAT", stat)
    monkeypatch.setattr(os, "sysconf", lambda name: 100)
    monkeypatch.setattr(time, "process_time_ns", iter([10**9, 10**9 + 4 * 10**8]).__next__)
    clock = ticking(10**9)
    stat.write_text("cpu 100 20 30 900 5 6 7 8 0 0\n")
    before = pressure.read(clock)
    stat.write_text("cpu 140 25 35 999 9 8 9 38 0 0\n")  # 40 + 5 + 5 + 2 + 2 ticks of 10 ms busy, 30 stolen
    after = pressure.read(clock)
    assert after.other_cores(before) == pytest.approx(0.54 - 0.4)
    assert after.stolen_cores(before) == pytest.approx(0.3)


def test_pressure_counters_grow() -> None:
    before, after = pressure.read(), pressure.read()
    assert after.at_ns > before.at_ns
    if before.waited_ns is not None and after.waited_ns is not None:
        assert after.waited_ns >= before.waited_ns


def test_memory_is_of_this_process() -> None:
    before = memory()
    held = np.ones(20_000_000 // 8)
    after = memory()
    assert held.nbytes / 1e6 <= after["rss_mb"] - before["rss_mb"] + 5  # type: ignore[operator]
    for name, told in after.items():
        assert told == "unavailable" or 5 < float(told) < 100_000, name


def test_memory_that_is_not_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(sys.modules["edgeattn.timing.memory"], "_SELF", tmp_path)
    assert memory()["pss_mb"] == memory()["peak_rss_mb"] == "unavailable"


SMAPS = """\
55d0c0000000-55d0c0002000 r-xp 00001000 fe:01 131 /usr/lib/code.so
Rss:                   8 kB
Anonymous:             0 kB
55d0c0002000-55d0c0003000 r--p 00003000 fe:01 131 /usr/lib/code.so
Anonymous:             4 kB
55d0c0003000-55d0c0004000 rw-p 00004000 fe:01 131 /usr/lib/code.so
Anonymous:             0 kB
7f0000000000-7f0000001000 r--p 00000000 00:00 0 
Anonymous:             0 kB
7f0000001000-7f0000004000 r--s 00000000 fe:01 132 /a model with blanks.bin
Anonymous:             0 kB
"""  # noqa: W291  as the kernel writes it


def test_only_what_is_on_disk_as_it_is_in_memory_is_given_back() -> None:
    """Not what the linker has changed, nor what can be written, nor what no file holds."""
    assert list(_as_on_disk(SMAPS)) == [(0x55D0C0000000, 0x2000), (0x7F0000001000, 0x3000)]


@pytest.mark.skipif(sys.platform != "linux", reason="by Linux's madvise")
def test_a_process_goes_on_with_less_memory_after_it_gave_some_back() -> None:
    code = """
import cv2, numpy, psutil
from edgeattn.timing.memory import give_back
picture = numpy.arange(3 * 96 * 96, dtype=numpy.uint8).reshape(96, 96, 3)
before, held = cv2.imencode(".jpg", picture)[1], psutil.Process().memory_info().rss
give_back()
left = psutil.Process().memory_info().rss
assert (cv2.imencode(".jpg", picture)[1] == before).all()
print(held - left)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert int(done.stdout) > 10_000_000
