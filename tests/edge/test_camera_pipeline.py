"""The loop over scripted sources with a clock turned by hand, and over real videos with a real engine."""

from __future__ import annotations

import threading
from pathlib import Path

import numpy as np
import pytest
import tiny
from scripted import Clock, File, Live, write_video

from edgeattn import imaging
from edgeattn.bundle import Bundle
from edgeattn.camera import Pipeline, Video
from edgeattn.engines import open_engine
from edgeattn.engines.fake import FakeEngine
from edgeattn.errors import BundleError, EngineError, SourceError

RED = {"logits": np.array([[4.0, 0.0, 0.0]], np.float32), "map_0": np.ones((1, 4, 4), np.float32)}
BUNDLE = Bundle(Path("nowhere.edgeattn"), tiny.SPEC, ())


def test_ages_of_a_file_are_exact() -> None:
    clock = Clock()
    engine = FakeEngine(RED, [10.0, 25.0, 5.0], spec=tiny.SPEC, sleep=clock.sleep)
    with Pipeline(BUNDLE, File(3, clock, read_ms=2.0), clock=clock, opened_engine=engine) as pipeline:
        results = list(pipeline)
    assert [r.age_ms for r in results] == [10.0, 25.0, 5.0]
    assert [r.infer_ms for r in results] == [10.0, 25.0, 5.0]
    assert [dict(r.stages_ms) for r in results] == [
        {"capture": 2.0, "resize": 0.0, "infer": infer, "decode": 0.0} for infer in (10.0, 25.0, 5.0)
    ]
    assert [r.frame.index for r in results] == [0, 1, 2]
    assert [r.prediction.label for r in results] == ["red"] * 3
    assert [r.dropped for r in results] == [0, 0, 0]
    assert not engine.closed, "an engine that was handed in stays open"


def test_a_live_source_gives_its_latest_frame_and_its_true_age() -> None:
    """While 70 ms are spent on the frame of 0 ms, those of 33 and 66 ms come: the first of them is dropped."""
    clock, source = Clock(), Live([[0], [33, 66], [90, 95, 99], [140]])

    def infer(seconds: float) -> None:
        clock.sleep(seconds)
        source.next_batch()

    engine = FakeEngine(RED, [70.0, 30.0, 45.0, 10.0], sleep=infer)
    with Pipeline(BUNDLE, source, clock=clock, opened_engine=engine) as pipeline:
        results = list(pipeline)
    assert [r.frame.index for r in results] == [0, 2, 5, 6]
    assert [r.age_ms for r in results] == [70.0, 34.0, 46.0, 15.0]
    assert [r.dropped for r in results] == [1, 3, 3, 3], "those that came during the inference are counted too"
    assert source.released.is_set()


def test_maps_are_given_by_block_and_only_when_asked_for() -> None:
    clock = Clock()
    for maps in (True, False):
        with Pipeline(BUNDLE, File(1, clock), clock=clock, maps=maps, opened_engine=FakeEngine(RED)) as pipeline:
            (result,) = pipeline
        assert {block: m.shape for block, m in result.maps.items()} == ({"stages.2.attention": (4, 4)} if maps else {})


def test_smoothing_stands_beside_the_answer_of_the_frame_alone() -> None:
    clock = Clock()
    blue = {"logits": np.array([[0.0, 0.0, 4.0]], np.float32)}
    for smooth, expected in ((True, "red"), (False, "blue")):
        engine = FakeEngine([RED, RED, blue, RED])
        with Pipeline(BUNDLE, File(4, clock), clock=clock, smooth=smooth, opened_engine=engine) as pipeline:
            results = list(pipeline)
        assert [r.prediction.label for r in results] == ["red", "red", "blue", "red"]
        assert [r.smoothed.label for r in results] == ["red", "red", expected, "red"]


def test_an_engine_that_fails_ends_the_loop_and_the_thread() -> None:
    before, source = threading.active_count(), Live([[0], [33]])

    def infer(_seconds: float) -> None:
        source.next_batch()
        raise EngineError("the driver is gone")

    pipeline = Pipeline(BUNDLE, source, opened_engine=FakeEngine(RED, 1.0, sleep=infer))
    with pytest.raises(EngineError, match="driver is gone"), pipeline:
        list(pipeline)
    assert source.released.wait(20)
    assert threading.active_count() == before


def test_a_camera_that_goes_away_ends_the_loop_with_its_error() -> None:
    source = Live([[0.0]], SourceError("camera 0 gave no more frames"))
    seen = []
    with Pipeline(BUNDLE, source, opened_engine=FakeEngine(RED)) as pipeline:
        with pytest.raises(SourceError, match="no more frames"):
            seen.extend(pipeline)
        assert source.released.is_set()


def test_leaving_early_closes_source_and_engine(tiny_bundle: Bundle) -> None:
    source = File(5, Clock())
    with Pipeline(tiny_bundle, source, engine="onnxruntime", precision="float") as pipeline:
        for _ in pipeline:
            assert source.is_open
            break
    assert not source.is_open
    with pytest.raises(EngineError, match="closed"):
        pipeline.engine.infer(np.zeros(tiny.SPEC.input.shape, np.uint8))
    with pytest.raises(EngineError, match="not open"):
        list(pipeline)


class Absent(File):
    def __enter__(self) -> Absent:
        raise SourceError("this film does not open")


def test_a_source_that_does_not_open_closes_the_engine(tiny_bundle: Bundle) -> None:
    pipeline = Pipeline(tiny_bundle, Absent(1, Clock()), engine="onnxruntime", precision="float")
    with pytest.raises(SourceError, match="film"), pipeline:
        pass
    with pytest.raises(EngineError, match="closed"):
        pipeline.engine.infer(np.zeros(tiny.SPEC.input.shape, np.uint8))


def test_artefacts_that_are_not_there_are_named(tiny_bundle: Bundle) -> None:
    with (
        pytest.raises(BundleError, match="holds no int8"),
        Pipeline(tiny_bundle, File(1, Clock()), engine="openvino", precision="int8"),
    ):
        pass


def test_the_fastest_artefact_is_chosen_and_said(tiny_bundle: Bundle) -> None:
    with Pipeline(tiny_bundle, File(1, Clock())) as pipeline:
        assert pipeline.engine.name in {"onnxruntime", "openvino"}
        assert pipeline.line.startswith(f"{pipeline.engine.name} float: ")
    with Pipeline(tiny_bundle, File(1, Clock()), engine="openvino", precision="float", threads=1) as pipeline:
        assert pipeline.line == "openvino float (as asked), 1 threads, executes f32"


@pytest.mark.parametrize("engine", ["onnxruntime", "openvino"])
def test_a_real_video_through_a_real_engine(tmp_path: Path, tiny_bundle: Bundle, engine: str) -> None:
    """Every frame, and the same answers as the engine gives for the decoded pictures by hand."""
    drawn = [picture for picture, _ in tiny.pictures(12)]
    video = write_video(tmp_path / "patches.mp4", drawn)
    with Pipeline(tiny_bundle, Video(video), engine=engine, precision="float", maps=True) as pipeline:
        results = list(pipeline)
    assert [r.frame.index for r in results] == list(range(12))
    assert results[-1].dropped == 0
    by_hand = open_engine(tiny_bundle, engine=engine, precision="float", maps=True)
    for result in results:
        outputs = by_hand.infer(imaging.prepare(result.frame.picture, tiny.SPEC.input))
        assert result.prediction.index == int(outputs["logits"].argmax())
        np.testing.assert_array_equal(result.maps["stages.2.attention"], outputs["map_0"][0])
    by_hand.close()


def test_a_replayed_video_drops_what_the_engine_is_too_slow_for(tmp_path: Path) -> None:
    video = write_video(tmp_path / "clip.mp4", [np.full((48, 64, 3), i, np.uint8) for i in range(24)], fps=60)
    engine = FakeEngine(RED, 50.0)
    with Pipeline(BUNDLE, Video(video, realtime=True), opened_engine=engine) as pipeline:
        results = list(pipeline)
    indices = [r.frame.index for r in results]
    assert indices == sorted(set(indices))
    assert indices[-1] == 23, "the last frame stays in the slot"
    assert results[-1].dropped == 24 - len(results) > 0
    assert {r.frame.age_from for r in results} == {"due"}
    assert all(r.age_ms >= r.infer_ms for r in results)
