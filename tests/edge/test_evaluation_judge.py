"""What a picture's answer is worth, and what int8 may lose, task by task, on answers made by hand."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import pytest
from numpy.typing import NDArray

from edgeattn.errors import DataError
from edgeattn.evaluation.detect import Finding
from edgeattn.evaluation.judge import judge_of
from edgeattn.spec import InputSpec, Spec
from edgeattn.tasks.detect import Detections
from edgeattn.tasks.segment import Regions

DETECT = judge_of(Spec("detect", InputSpec(32, 32), ("a", "b"), "boxes"))
SEGMENT = judge_of(Spec("segment", InputSpec(8, 8), ("a", "b")))


@dataclass
class There:
    boxes: NDArray[np.float32]
    labels: NDArray[np.int64] = field(default_factory=lambda: np.zeros(2, np.int64))
    crowd: NDArray[np.bool_] = field(default_factory=lambda: np.zeros(2, bool))


TWO = There(np.array([[0, 0, 10, 10], [20, 20, 30, 30]], np.float32))


def found(*rows: tuple[int, float], spec_labels: tuple[str, ...] = ("a", "b")) -> Detections:
    """Boxes of `TWO` by their place (2: elsewhere), with scores."""
    places = np.concatenate([TWO.boxes, [[12, 0, 18, 9]]]).astype(np.float32)
    scores = np.array([score for _, score in rows], np.float32)
    return Detections(places[[i for i, _ in rows]], scores, np.zeros(len(rows), np.int64), spec_labels)


def test_a_detector_s_picture_is_worth_the_f1_of_what_it_tells() -> None:
    told = {
        "all": found((0, 0.9), (1, 0.8)),
        "half": found((0, 0.9)),
        "faint": found((0, 0.9), (1, 0.1)),
        "one wrong": found((0, 0.9), (1, 0.8), (2, 0.7)),
        "twice": found((0, 0.9), (0, 0.8), (1, 0.7)),
    }
    worth = {name: DETECT.worth(DETECT.marks(TWO, answer)) for name, answer in told.items()}
    assert worth == {
        "all": 1.0, "half": pytest.approx(2 / 3), "faint": pytest.approx(2 / 3), "one wrong": 0.8, "twice": 0.8
    }  # fmt: skip
    assert DETECT.told(DETECT.marks(TWO, told["one wrong"])) == "2 of 2 found, 1 wrong"
    assert DETECT.agreement(told["half"], told["faint"]) == 1.0, "boxes that are not told count for the figure alone"
    assert DETECT.agreement(told["half"], told["all"]) == 0.0
    assert DETECT.worth(DETECT.marks(TWO, None)) == 0.0


def test_a_model_that_is_sure_of_the_wrong_box_loses_map_and_the_gate_tells() -> None:
    good = [DETECT.marks(TWO, found((0, 0.9), (1, 0.8)))] * 80
    sly = [DETECT.marks(TWO, found((2, 0.95), (0, 0.9), (1, 0.8)))] * 80
    assert DETECT.loss(good, good, 0.02).verdict == "passed"
    gate = DETECT.loss(good, sly, 0.02)
    assert (gate.verdict, gate.n) == ("failed", 80)
    assert gate.value == pytest.approx(1 / 3, abs=0.01), "precision 2 / 3 at every recall"


def test_a_point_of_nearly_nothing_is_not_given_away() -> None:
    blind = [DETECT.marks(TWO, found((2, 0.9)))] * 300
    lucky = [DETECT.marks(TWO, found((0, 0.9)))] * 2 + blind[2:]
    gate = DETECT.loss(lucky, blind, 0.01)
    assert 0 < gate.value < 0.01
    assert gate.bound == pytest.approx(gate.value / 10)
    assert gate.verdict != "passed", "all that float has is lost"
    assert DETECT.loss(blind, blind, 0.01).verdict == "cannot tell", "float finds nothing that could be lost"


def test_without_a_box_there_is_nothing_to_judge_by() -> None:
    nothing = There(np.zeros((0, 4), np.float32), np.zeros(0, np.int64), np.zeros(0, bool))
    assert DETECT.worth(DETECT.marks(nothing, found())) == 1.0
    with pytest.raises(DataError, match="no boxes on the labelled pictures"):
        DETECT.loss([(nothing, found())], [(nothing, found())], 0.01)


def seen(classes: NDArray[np.uint8]) -> Regions:
    return Regions(classes, np.array([0.5, 0.5]), 0.9, ("a", "b"))


def test_a_segmenter_s_pixels() -> None:
    truth = np.repeat(np.array([[0, 0, 1, 255]], np.uint8), 4, axis=0)
    answer = np.repeat(np.array([[0, 1, 1, 1]], np.uint8), 4, axis=0)
    marks = SEGMENT.marks(truth, seen(answer))
    np.testing.assert_array_equal(marks.counts, [[4, 4], [0, 4]])
    assert SEGMENT.worth(marks) == 0.5
    assert SEGMENT.figures([marks]) == {"miou": 0.5, "pixel_accuracy": pytest.approx(2 / 3), "boundary_f1": 0.0}
    assert SEGMENT.agreement(seen(answer), seen(truth)) == 0.5
    assert SEGMENT.worth(SEGMENT.marks(truth, None)) == 0.0
    beyond = np.where(truth == 1, 255, answer).astype(np.uint8)  # what the net does not see
    np.testing.assert_array_equal(SEGMENT.marks(truth, seen(beyond)).counts, [[4, 4], [0, 0]])


def test_a_segmenter_s_boundaries() -> None:
    truth = np.zeros((100, 100), np.uint8)
    truth[:, 50:] = 1
    answer = truth.copy()
    answer[:, 80:] = 0  # a second boundary: half of the answer's is right, all of the truth's is found
    marks = [SEGMENT.marks(truth, seen(answer)), SEGMENT.marks(truth, seen(truth))]
    assert SEGMENT.figures(marks)["boundary_f1"] == pytest.approx((2 / 3 + 1) / 2)
    assert [one.boundary_f1 for one in SEGMENT.classes(marks)] == [pytest.approx((2 / 3 + 1) / 2)] * 2


def test_the_loss_of_miou_has_an_interval_by_pictures() -> None:
    rng = np.random.default_rng(0)
    truth = (rng.random((60, 16, 16)) < 0.4).astype(np.uint8)
    whole = [np.where(rng.random((16, 16)) < 0.05, 1 - one, one).astype(np.uint8) for one in truth]
    worse = [np.where(rng.random((16, 16)) < 0.004, 1 - one, one).astype(np.uint8) for one in whole]
    float_, int8 = ([SEGMENT.marks(t, seen(a)) for t, a in zip(truth, given, strict=True)] for given in (whole, worse))
    gate = SEGMENT.loss(float_, int8, 0.02)
    assert gate.verdict == "passed"
    assert gate.low < gate.value < gate.high
    assert gate.value == pytest.approx(SEGMENT.figures(float_)["miou"] - SEGMENT.figures(int8)["miou"])
    assert SEGMENT.loss(float_, int8, 0.001).verdict == "failed"


def test_finding_is_what_average_precision_takes() -> None:
    _, one = DETECT.marks(TWO, found((1, 0.8)))
    assert isinstance(one, Finding)
    assert one.scores.tolist() == [pytest.approx(0.8)]
