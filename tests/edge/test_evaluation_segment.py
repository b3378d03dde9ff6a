from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from edgeattn.errors import DataError
from edgeattn.evaluation import segment
from edgeattn.evaluation.segment import IGNORE, Segmentation, boundary_f1, confusion

LABELS = arrays.arrays(np.uint8, (9, 11), elements=st.integers(0, 2))


def test_overlap_by_hand() -> None:
    truth = np.array([[0, 0, 1, 1], [0, 0, 1, IGNORE]], np.uint8)
    answer = np.array([[0, 1, 1, 1], [0, 0, 0, 0]], np.uint8)
    seen = Segmentation(("a", "b", "never"))
    seen.add(truth, answer)
    np.testing.assert_array_equal(seen.counts, [[3, 1, 0], [1, 2, 0], [0, 0, 0]])
    scores = seen.overlap()
    assert [one.iou for one in scores.classes[:2]] == [3 / 5, 2 / 4]
    assert math.isnan(scores.classes[2].iou)
    assert scores.miou == pytest.approx(0.55)
    assert scores.accuracy == pytest.approx(5 / 7)
    assert [one.n for one in scores.classes] == [4, 3, 0]


def test_nothing_that_counts_is_no_score() -> None:
    seen = Segmentation(("a",))
    assert math.isnan(seen.overlap().miou)
    seen.add(np.full((3, 3), IGNORE, np.uint8), np.zeros((3, 3), np.uint8))
    assert math.isnan(seen.overlap().accuracy)
    assert math.isnan(seen.overlap().boundary_f1)


def test_what_does_not_fit_is_said() -> None:
    zeros = np.zeros((3, 3), np.uint8)
    with pytest.raises(DataError, match="resize the answer"):
        confusion(zeros, np.zeros((3, 4), np.uint8), 2)
    with pytest.raises(DataError, match=r"answer holds labels \[2, 7\], and there are 2 classes"):
        confusion(zeros, np.array([[0, 2, 7], [0, 0, 0], [1, 1, 1]]), 2)
    with pytest.raises(DataError, match=r"truth holds labels \[5\]"):
        confusion(zeros + 5, zeros, 2)


def half(at: int) -> np.ndarray:
    """100 x 100, class 1 from column `at` on."""
    labels = np.zeros((100, 100), np.uint8)
    labels[:, at:] = 1
    return labels


@pytest.mark.parametrize(("shift", "tolerance", "expected"), [(0, 0.0, 1), (1, 0.0, 0), (3, 0.03, 1), (5, 0.03, 0)])
def test_a_shifted_boundary_is_met_within_the_tolerance(shift: int, tolerance: float, expected: float) -> None:
    # The diagonal is 141 pixels: 0.03 of it are 4.2 pixels.
    np.testing.assert_array_equal(boundary_f1(half(50), half(50 + shift), 2, tolerance=tolerance), [expected] * 2)


@settings(deadline=None)
@given(LABELS, LABELS, st.floats(0.01, 0.4))
def test_a_disc_finds_what_distances_find(a: np.ndarray, b: np.ndarray, tolerance: float) -> None:
    by_disc = boundary_f1(a, b, 3, tolerance=tolerance)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(segment, "DISC_PX", 0.0)
        np.testing.assert_array_equal(boundary_f1(a, b, 3, tolerance=tolerance), by_disc)


def test_boundary_by_hand() -> None:
    truth, answer = half(50), half(50)
    answer[:, 80:] = 0  # a second boundary: half of the answer's is right, all of the truth's is found
    np.testing.assert_allclose(boundary_f1(truth, answer, 3), [2 / 3, 2 / 3, np.nan])
    whole = np.zeros((100, 100), np.uint8)
    np.testing.assert_array_equal(boundary_f1(whole, whole, 2), [1, np.nan])
    np.testing.assert_array_equal(boundary_f1(whole, truth, 2), [0, 0])


def test_the_edge_of_what_is_ignored_is_no_boundary() -> None:
    truth, answer = half(50), half(50)
    truth[40:60] = IGNORE
    answer[45:55, 10:40] = 1
    np.testing.assert_array_equal(boundary_f1(truth, answer, 2), [1, 1])


@given(LABELS, LABELS)
def test_boundary_f1_is_a_share_the_same_both_ways_and_grows_with_the_tolerance(a: np.ndarray, b: np.ndarray) -> None:
    near, far = boundary_f1(a, b, 3, tolerance=0.05), boundary_f1(a, b, 3, tolerance=0.2)
    np.testing.assert_allclose(near, boundary_f1(b, a, 3, tolerance=0.05))
    there = ~np.isnan(near)
    assert ((near[there] >= 0) & (near[there] <= far[there]) & (far[there] <= 1)).all()
    same = boundary_f1(a, a, 3)
    assert (same[~np.isnan(same)] == 1).all()


@given(LABELS, LABELS, st.integers(1, 8))
def test_pictures_in_pieces_count_as_one(a: np.ndarray, b: np.ndarray, at: int) -> None:
    pieces = Segmentation("abc")
    pieces.add(a[:at], b[:at])
    pieces.add(a[at:], b[at:])
    np.testing.assert_array_equal(pieces.counts, confusion(a, b, 3))
    assert pieces.overlap().accuracy == pytest.approx(np.mean(a == b))
