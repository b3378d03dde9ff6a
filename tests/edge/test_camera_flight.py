"""Two requests in flight: in order, no more than two, and every error in its turn."""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import tiny
from scripted import Live, write_video

from edgeattn.bundle import Bundle
from edgeattn.camera import Pipeline, Video
from edgeattn.camera.flight import InFlight
from edgeattn.engines.fake import FakeEngine
from edgeattn.errors import EngineError


def counter(stop: int) -> Callable[[], int | None]:
    numbers = iter(range(stop))
    return lambda: next(numbers, None)


def test_results_come_in_the_order_of_taking_though_the_first_takes_longer() -> None:
    def slow(number: int) -> int:
        time.sleep(0.01 * (number % 3))
        return number

    assert list(InFlight(counter(20), [slow, slow])) == list(range(20))


def test_two_work_at_a_time_and_nothing_is_taken_ahead_of_a_slow_reader() -> None:
    working, most, taken = itertools.count(), 0, 0
    lock, together = threading.Lock(), threading.Barrier(2)
    take = counter(10)

    def counted() -> int | None:
        nonlocal taken
        taken += 1
        return take()

    def work(number: int) -> int:
        nonlocal most
        together.wait(10)  # comes back only where two are at it
        with lock:
            most = max(most, next(working))
        return number

    flights = InFlight(counted, [work, work])
    for read, _ in enumerate(flights, start=1):
        time.sleep(0.01)
        assert taken <= read + 2
    assert read == 10


def test_what_taking_or_working_raises_comes_in_its_turn() -> None:
    def work(number: int) -> int:
        if number == 3:
            raise EngineError("broken")
        return number

    seen: list[int] = []
    with pytest.raises(EngineError, match="broken"):
        seen.extend(InFlight(counter(10), [work, work]))
    assert seen == [0, 1, 2]

    def take() -> int | None:
        raise OSError("gone")

    with pytest.raises(OSError, match="gone"):
        list(InFlight(take, [work, work]))


def test_leaving_early_leaves_no_thread() -> None:
    flights = InFlight(counter(1000), [lambda n: n, lambda n: n])
    for number in flights:
        if number == 5:
            break
    flights.end(5)
    assert not any(thread.name == "request" for thread in threading.enumerate())


@pytest.mark.parametrize("engine", ["onnxruntime", "openvino"])
def test_a_video_gives_the_same_answers_as_one_at_a_time(tiny_bundle: Bundle, tmp_path: Path, engine: str) -> None:
    video = write_video(tmp_path / "clip.mp4", [picture for picture, _ in tiny.pictures(24, height=96, width=128)])

    def answers(throughput: bool) -> list[tuple[int, str, str, list[float], int]]:
        options = {"engine": engine, "precision": "float", "threads": 1}
        with Pipeline(tiny_bundle, Video(video), smooth=True, maps=True, throughput=throughput, **options) as pipeline:  # type: ignore[arg-type]
            assert pipeline.in_flight == 1 + throughput
            return [
                (
                    result.frame.index, result.prediction.label, result.smoothed.label,
                    result.prediction.probabilities.tolist(), len(result.maps),
                )
                for result in pipeline
            ]  # fmt: skip

    assert answers(True) == answers(False)


def test_a_silent_camera_can_be_left(tiny_bundle: Bundle) -> None:
    """One worker waits for a frame that does not come, the other's result was taken."""
    source = Live([[0.0], [1.0]])
    with Pipeline(tiny_bundle, source, engine="onnxruntime", precision="float", throughput=True) as pipeline:
        results = iter(pipeline)
        assert next(results).frame.index == 0
        pipeline.stop()
        assert next(results, None) is None
        source._wanted[1].set()
    assert not any(thread.name == "request" for thread in threading.enumerate())


def test_leaving_a_video_early_waits_for_the_frame_that_is_being_read(tiny_bundle: Bundle, tmp_path: Path) -> None:
    """A video that is closed while another thread reads it takes the process with it."""
    video = write_video(tmp_path / "clip.mp4", [np.zeros((480, 640, 3), np.uint8)] * 40)
    for frames in range(1, 9):
        with Pipeline(tiny_bundle, Video(video), engine="onnxruntime", precision="float", throughput=True) as pipeline:
            results = iter(pipeline)
            assert [next(results).frame.index for _ in range(frames)] == list(range(frames))
        assert not any(thread.name == "request" for thread in threading.enumerate())


def test_it_is_for_the_cpu_alone(tiny_bundle: Bundle) -> None:
    for options in ({"device": "NPU"}, {"opened_engine": FakeEngine({"logits": np.zeros((1, 3), np.float32)})}):
        with pytest.raises(EngineError, match="leave out --throughput"):
            Pipeline(tiny_bundle, Live([[0.0]]), throughput=True, **options)  # type: ignore[arg-type]


def test_no_model_takes_over_while_two_are_in_flight(tiny_bundle: Bundle, tmp_path: Path) -> None:
    video = write_video(tmp_path / "clip.mp4", [np.zeros((48, 64, 3), np.uint8)] * 3)
    with Pipeline(tiny_bundle, Video(video), engine="onnxruntime", precision="float", throughput=True) as pipeline:
        with pytest.raises(EngineError, match="leave out --throughput"):
            pipeline.swap(pipeline.model)
        assert len(list(pipeline)) == 3
