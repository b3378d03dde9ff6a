"""Detection: boxes that a detector's output gives, where they lie in the frame, and what is told and drawn of them."""

from __future__ import annotations

import importlib.util
import json
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from edgeattn.errors import ExtraMissingError, SpecError
from edgeattn.imaging import prepare, seen_box
from edgeattn.maps import overlay
from edgeattn.spec import InputSpec, Rejection, Spec, Thresholds
from edgeattn.tasks import Detections, agreeing, decode, detect, draw, told

LABELS = ("cat", "dog", "cup")
INPUT = InputSpec(64, 64, "nchw_f32", fit="letterbox")
SPEC = Spec("detect", INPUT, LABELS, output="boxes")


def proposed(*rows: tuple[list[float], list[float]]) -> dict[str, NDArray[np.float32]]:
    """The form (1, 4 + K, A) of centre, size and scores."""
    return {"boxes": np.array([[*box, *scores] for box, scores in rows], np.float32).T[None]}


def found(outputs: dict[str, Any], spec: Spec = SPEC, size: tuple[int, int] | None = None) -> Detections:
    answer = decode(outputs, spec, size)
    assert isinstance(answer, Detections)
    return answer


def same(given: NDArray[Any], wanted: NDArray[Any]) -> float:
    return agreeing({"boxes": given}, {"boxes": wanted}, SPEC)


def plain_suppression(boxes: NDArray[Any], scores: NDArray[Any], classes: NDArray[Any], iou: float) -> list[int]:
    """The definition, a pair at a time: the best first, each taken unless one taken before of its class overlaps it too far."""
    taken: list[int] = []
    for i in np.argsort(-scores, kind="stable"):
        overlaps = [detect.overlap(boxes[[i]], boxes[[j]])[0, 0] for j in taken if classes[j] == classes[i]]
        if all(value <= iou for value in overlaps):
            taken.append(int(i))
    return taken


@pytest.mark.parametrize("seed", range(8))
def test_of_each_thing_the_best_box_is_kept(seed: int) -> None:
    rng = np.random.default_rng(seed)
    n, iou = int(rng.integers(1, 120)), float(rng.uniform(0.2, 0.8))
    centres = rng.uniform(-10, 70, (6, 2))[rng.integers(0, 6, n)] + rng.normal(0, 4, (n, 2))
    boxes = np.concatenate([centres, rng.uniform(10, 30, (n, 2))], 1)
    scores = rng.uniform(0, 1, (n, 3))
    columns = np.concatenate([boxes, scores], 1).astype(np.float32)
    spec = Spec("detect", InputSpec(64, 64, "nchw_f32"), LABELS, output="boxes", thresholds=Thresholds(0.5, iou))
    given = found({"boxes": columns.T[None]}, spec, (64, 64))
    columns = columns[columns[:, 4:].max(1) > 0.5]
    corners = np.concatenate([columns[:, :2] - columns[:, 2:4] / 2, columns[:, :2] + columns[:, 2:4] / 2], 1)
    best, classes = columns[:, 4:].max(1), columns[:, 4:].argmax(1)
    wanted = plain_suppression(corners, best, classes, iou)
    clipped = np.clip(corners, 0, 64)
    wanted = [i for i in wanted if (clipped[i, 2:] > clipped[i, :2]).all()]
    np.testing.assert_array_equal(given.indices, classes[wanted])
    np.testing.assert_array_equal(given.scores, best[wanted])
    np.testing.assert_allclose(given.boxes, clipped[wanted], atol=1e-4)


def test_the_classes_do_not_suppress_each_other_at_the_edge_of_the_picture() -> None:
    """A box that begins left of the input would touch another class's, were they kept apart by an offset alone."""
    answer = found(
        proposed(([63, 32, 40, 40], [0.9, 0, 0]), ([-18, 32, 40, 40], [0, 0.8, 0]), ([2, 32, 20, 20], [0, 0.7, 0]))
    )
    assert answer.names == ["cat", "dog", "dog"]


@pytest.mark.parametrize(("height", "width"), [(128, 64), (40, 100), (64, 64), (33, 77), (480, 640)])
def test_boxes_come_back_to_where_they_are_in_the_frame(height: int, width: int) -> None:
    """A bright patch, prepared and found in the input, lies where it was painted."""
    frame = np.zeros((height, width, 3), np.uint8)
    left, top, right, low = width // 4, height // 2, width // 4 + width // 3, height // 2 + height // 4
    frame[top:low, left:right] = 255
    rows, columns = np.nonzero(prepare(frame, INPUT)[0, 0] > 0.5)
    edges = np.array([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1], np.float32)
    told_as = np.array([[[*edges, 0.9, 2]]], np.float32)
    answer = found({"boxes": told_as}, size=(height, width))
    one_pixel = max(height, width) / 64
    np.testing.assert_allclose(answer.boxes[0], [left, top, right, low], atol=1.01 * one_pixel)


def test_a_letterbox_shows_the_whole_frame_between_grey_bars() -> None:
    spec = InputSpec(64, 64, fit="letterbox")
    seen = prepare(np.full((50, 100, 3), 7, np.uint8), spec)[0]
    assert (seen[:16] == 114).all()
    assert (seen[16:48] == 7).all()
    assert (seen[48:] == 114).all()
    assert seen_box(50, 100, spec) == (0, -25, 100, 100)
    with pytest.raises(SpecError, match="shown whole"):
        InputSpec(64, 64, fit="letterbox", crop=0.9)


def test_a_map_lies_on_what_a_letterbox_shows() -> None:
    """The map's bright row is that of the frame, not that of the bars."""
    levels = np.zeros((8, 8))
    levels[4] = 1.0
    shown = overlay(np.zeros((80, 160, 3), np.uint8), levels, InputSpec(64, 64, fit="letterbox"), colours="grey")
    assert shown.shape == (80, 160, 3)
    assert (
        abs(int(shown[:, 80, 0].argmax()) - 50) <= 8
    )  # row 4 of 8 covers 80 to 100 of 160, of which 40 lie above the frame


def test_boxes_are_clipped_to_the_frame_and_ordered_by_score() -> None:
    rows = [[10, 10, 20, 20, 0.5, 0], [-9, -9, 90, 90, 0.9, 1], [0, 0, 5, 5, 0.2, 2], [-9, 0, -1, 5, 0.8, 2]]
    answer = found({"boxes": np.array([rows], np.float32)})
    assert answer.names == ["dog", "cat"], "one is below the threshold, one outside of the frame"
    np.testing.assert_array_equal(answer.boxes, [[0, 0, 64, 64], [10, 10, 20, 20]])
    assert (answer.label, answer.rejected) == ("cat, dog", False)


@pytest.mark.parametrize("shape", [(1, 7, 5), (1, 300, 6), (1, 7, 0)])
def test_nothing_is_an_answer_and_no_number_is_no_box(shape: tuple[int, ...]) -> None:
    for value in (0.0, np.nan):
        answer = found({"boxes": np.full(shape, value, np.float32)})
        assert (answer.label, answer.score, answer.rejected, answer.boxes.shape) == ("nothing", 0.0, True, (0, 4))
        assert told(answer) == {"detections": []}
        frame = np.full((20, 30, 3), 9, np.uint8)
        np.testing.assert_array_equal(draw(frame, answer), frame)


@pytest.mark.parametrize(
    ("outputs", "message"),
    [
        ({"others": np.zeros((1, 7, 5))}, "no output 'boxes'"),
        ({"boxes": np.zeros((1, 8, 5))}, "3 labels ask for"),
        ({"boxes": np.array([[[0, 0, 5, 5, 0.9, 3]]])}, "class 3, and there are 3 labels"),
    ],
)
def test_an_output_that_does_not_fit_says_so(outputs: dict[str, Any], message: str) -> None:
    with pytest.raises(SpecError, match=message):
        decode(outputs, SPEC)


def test_a_spec_has_what_its_task_means() -> None:
    assert Spec("detect", INPUT, ("cup",)).labels == ("cup",), "a detector may know one thing"
    with pytest.raises(SpecError, match="rejection has no meaning"):
        Spec("detect", INPUT, LABELS, rejection=Rejection(0.5))
    with pytest.raises(SpecError, match="thresholds has no meaning"):
        Spec("classify", INPUT, LABELS, thresholds=Thresholds())
    with pytest.raises(SpecError, match="confidence"):
        Thresholds(confidence=1.5)
    with pytest.raises(SpecError, match="verify takes classifiers only"):
        SPEC.must_classify("verify")


def test_what_is_told_is_json() -> None:
    answer = found(proposed(([20, 20, 10, 10], [0.1, 0.75, 0])), size=(128, 128))
    assert json.loads(json.dumps(told(answer))) == {
        "detections": [{"label": "dog", "score": 0.75, "box": [30.0, 30.0, 50.0, 50.0]}]
    }


def test_drawing_touches_the_boxes_alone() -> None:
    frame = np.full((480, 640, 3), 128, np.uint8)
    answer = found({"boxes": np.array([[[10, 30, 30, 50, 0.9, 0]]], np.float32)}, size=(480, 640))
    drawn = draw(frame, answer)
    left, top, right, low = answer.boxes[0].round().astype(int)
    rows, columns = np.nonzero((drawn != 128).any(2))
    assert (frame == 128).all(), "the frame itself is left as it was"
    assert top - 40 <= rows.min() < rows.max() <= low + 3
    assert left - 3 <= columns.min() < columns.max() <= max(right + 3, left + 160)
    assert (drawn[top + 5 : low - 5, left + 5 : right - 5] == 128).all(), "what is inside can be seen"


def test_answers_agree_by_partners() -> None:
    one = np.array([[[10, 10, 20, 20, 0.9, 0], [40, 40, 60, 60, 0.8, 1]]], np.float32)
    moved, other = one.copy(), one.copy()
    moved[0, :, :4] += 1
    other[0, 1, 5] = 2
    assert same(moved, one) == 1.0
    assert same(other, one) == 0.0
    assert same(np.concatenate([one, other]), np.concatenate([one, one])) == 0.5
    twice = np.concatenate([one, one], 1)
    assert same(twice, one) == 0.0, "a box has one partner"


def test_supervision_takes_them() -> None:
    answer = found(proposed(([20, 20, 10, 10], [0.1, 0.75, 0])))
    if importlib.util.find_spec("supervision") is None:
        with pytest.raises(ExtraMissingError, match=r"edgeattn\[supervision\]"):
            answer.supervision()
        return
    given = answer.supervision()
    np.testing.assert_array_equal(given.xyxy, answer.boxes)
    assert list(given.data["class_name"]) == ["dog"]


def disc_prototypes(side: int) -> NDArray[np.float32]:
    """(1, 2, side, side): above 0 within a circle in the middle of the input; and below 0 there."""
    places = (np.arange(side) + 0.5) / side - 0.5
    inside = (0.3**2 - places[:, None] ** 2 - places[None] ** 2).astype(np.float32)
    return np.stack([inside, -inside])[None]


MASKED = Spec("detect", INPUT, LABELS, output="boxes", prototypes="prototypes")


@pytest.mark.parametrize("size", [(64, 64), (480, 640), (300, 200)])
def test_masks_lie_where_their_things_are_in_the_frame(size: tuple[int, int]) -> None:
    """A circle in the middle of a letterboxed input is one in the middle of the frame, as far as the box reaches."""
    boxes = proposed(([32, 32, 40, 40], [0.9, 0, 0, 1.0, 0.0]), ([20, 32, 16, 40], [0, 0.8, 0, 0.0, 1.0]))
    answer = found(boxes | {"prototypes": disc_prototypes(32)}, MASKED, size)
    assert answer.masks is not None
    whole = answer.masks.whole()
    assert whole.shape == (2, *size)
    x, y, across, down = seen_box(*size, INPUT)
    rows, columns = np.mgrid[: size[0], : size[1]] + 0.5
    radius = np.hypot((columns - x) / across - 0.5, (rows - y) / down - 0.5)
    for mask, box, inside in zip(whole, answer.boxes, (radius < 0.3, radius > 0.3), strict=True):
        boxed = (columns > box[0]) & (columns < box[2]) & (rows > box[1]) & (rows < box[3])
        wrong = mask != (inside & boxed)
        edge = 64 / 32 / min(across, down)
        assert not wrong[(np.abs(radius - 0.3) > edge) & boxed].any(), "but at the circle's edge"
    rows_told = told(answer)["detections"]
    assert len(rows_told[0]["outlines"]) == 1
    points = np.array(rows_told[0]["outlines"][0])
    assert np.abs(points.mean(0) - [size[1] / 2, size[0] / 2]).max() < 0.05 * max(size)
    middle = np.argwhere(whole[0]).mean(0) + 0.5
    assert np.abs(middle - [y + down / 2, x + across / 2]).max() < 0.1, "no half pixel off"
    json.dumps(rows_told)
    frame = np.full((*size, 3), 128, np.uint8)
    drawn = draw(frame, answer)
    assert (drawn[size[0] // 2, size[1] // 2] != 128).any(), "the mask lies over its thing"


def test_a_detector_of_masks_without_its_prototypes_says_so() -> None:
    with pytest.raises(SpecError, match=r"gives no prototypes 'prototypes' of masks; import it again"):
        found(proposed(([32, 32, 40, 40], [0.9, 0, 0, 1.0, 0.0])), MASKED)


def test_chosen_boxes_keep_their_masks_and_tracks() -> None:
    boxes = proposed(([32, 32, 40, 40], [0.9, 0, 0, 1.0, 0.0]), ([20, 32, 16, 40], [0, 0.8, 0, 0.0, 1.0]))
    answer = found(boxes | {"prototypes": disc_prototypes(16)}, MASKED)
    second = answer.chosen(np.array([False, True]))
    assert second.names == ["dog"]
    assert answer.masks is not None
    assert second.masks is not None
    assert (second.masks.whole()[0] == answer.masks.whole()[1]).all()
