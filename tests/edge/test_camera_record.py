"""A run's figures, from results whose times are known."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tiny
from scripted import Clock, File

from edgeattn.bundle import Bundle
from edgeattn.camera import Pipeline
from edgeattn.camera.record import Record, sentence
from edgeattn.engines.fake import FakeEngine

BUNDLE = Bundle(Path("nowhere.edgeattn"), tiny.SPEC, ())
ANSWERS = {label: {"logits": 5 * np.eye(3, dtype=np.float32)[[i]]} for i, label in enumerate(tiny.LABELS)}


def record(answers: str, infer_ms: list[float], *, read_ms: float = 4.0, truth: str = "") -> Record:
    """A run over answers and truths given as the labels' first letters (`-`: no label)."""
    named = {label[0]: label for label in tiny.LABELS} | {"-": None}
    clock = Clock()
    engine = FakeEngine([ANSWERS[named[c]] for c in answers], infer_ms, sleep=clock.sleep)
    source = File(len(answers), clock, read_ms, [named[c] for c in truth])
    kept = Record(clock)
    with Pipeline(BUNDLE, source, clock=clock, smooth=True, opened_engine=engine) as pipeline:
        for result in pipeline:
            kept.add(result)
    return kept


def test_warm_up_is_left_out_of_times_but_not_of_frames() -> None:
    report = record("r" * 100, [500.0] * 10 + [6.0] * 90).report()
    assert report["frames"] == 100
    assert report["warmup_frames"] == 10
    assert report["age_ms"] == {"n": 90, "p50": 6.0, "p90": 6.0, "p99": None, "max": 6.0}
    assert report["infer_ms"] == report["age_ms"]
    assert report["overhead_ms_p50"] == 0.0
    assert report["stages_ms"]["capture"]["p50"] == 4.0
    assert report["age_from"] == "received"
    assert (report["dropped"], report["reconnects"]) == (0, 0)


def test_few_frames_keep_most_of_their_times() -> None:
    report = record("rrrr", [9.0, 1.0, 2.0, 3.0]).report()
    assert report["warmup_frames"] == 1
    assert report["age_ms"] == {"n": 3, "p50": 2.0, "p90": None, "p99": None, "max": 3.0}


def test_ages_are_of_what_most_frames_count_from() -> None:
    """An RTSP camera's own time is known after some seconds; two cameras may count from different moments."""
    clock, kept = Clock(), Record()
    engine = FakeEngine(ANSWERS["red"], 6.0, sleep=clock.sleep)
    with Pipeline(BUNDLE, File(1, clock, 4.0, []), clock=clock, opened_engine=engine) as pipeline:
        (result,) = pipeline

    def add(age_ms: float, age_from: str, camera: int = 0) -> None:
        frame = replace(result.frame, age_from=age_from)
        kept.add(replace(result, age_ms=age_ms, camera=camera, frame=frame))

    for _ in range(50):
        add(30.0, "received")
    assert (kept.now()["age_from"], kept.latest(10)["age_ms"]["max"]) == ("received", 30.0)
    for _ in range(60):
        add(80.0, "sender")
    assert kept.latest(60)["age_ms"]["n"] == 60
    add(30.0, "received")  # of one frame it was not known
    report = kept.report()
    assert (report["age_from"], report["age_ms"]["n"], report["age_ms"]["p50"]) == ("sender", 60, 80.0)
    assert report["overhead_ms_p50"] == 74.0
    assert report["infer_ms"]["n"] == 101
    for _ in range(60):
        add(20.0, "received", camera=1)
    assert (kept.latest(60)["age_ms"]["n"], kept.latest(60)["age_ms"]["max"]) == (60, 20.0)
    assert (kept.report()["age_from"], kept.report()["age_ms"]["n"]) == ("mixed", 120)


def test_rates_count_intervals() -> None:
    """Eleven results 10 ms apart are 100 a second: there are ten intervals between them."""
    kept = record("r" * 11, [6.0] * 11)
    assert kept.fps == pytest.approx(100.0)
    assert kept.fps_now == pytest.approx(100.0)
    assert record("r", [6.0]).fps is None


def test_rate_now_is_that_of_the_latest_results() -> None:
    kept = record("r" * 80, [96.0] * 40 + [6.0] * 40)
    assert kept.fps_now == pytest.approx(100.0)
    assert kept.fps == pytest.approx(79 / (39 * 0.1 + 40 * 0.01))


def test_accuracy_is_over_labelled_frames_only() -> None:
    report = record("rrrbrrrr", [1.0] * 8, truth="rr-rrrrr").report()
    assert report["labelled_frames"] == 7
    assert report["accuracy"] == pytest.approx(6 / 7)
    assert report["accuracy_smoothed"] == 1.0
    assert "accuracy 85.7 % (100.0 % smoothed) over 7 labelled frames" in sentence(report)


def test_without_truth_or_frames_there_is_no_accuracy() -> None:
    assert record("rr", [1.0] * 2).report()["accuracy"] is None
    assert record("rr", [1.0] * 2, truth="--").report()["accuracy"] is None
    empty = Record().report()
    assert (empty["frames"], empty["fps"], empty["age_from"], empty["overhead_ms_p50"]) == (0, None, None, None)
    assert empty["age_ms"] == {"n": 0, "p50": None, "p90": None, "p99": None, "max": None}
    assert sentence(empty) == "0 frames"


def test_sentence_says_what_ages_mean_and_where_samples_lack() -> None:
    said = sentence(record("r" * 20, [6.0] * 20).report())
    assert said.startswith("20 frames, 100.0 fps, age p50 6.00 ms, p99 not enough samples (15 of 662) (from when")
    assert said.endswith("excludes camera and network), inference p50 6.00 ms, 0 dropped")
