"""Figures of a classifier, by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest

from edgeattn.evaluation import classify

LABELS = ("cat", "dog", "owl")
TRUTH = np.array([0, 0, 0, 1, 1, 2])
ANSWER = np.array([0, 0, 1, 1, 1, 1])


def test_top1() -> None:
    assert classify.top1(TRUTH, ANSWER) == pytest.approx(4 / 6)
    assert math.isnan(classify.top1(TRUTH[:0], ANSWER[:0]))


def test_confusion_has_truth_down_and_answers_across() -> None:
    counts = classify.confusion(TRUTH, ANSWER, 3)
    np.testing.assert_array_equal(counts, [[2, 1, 0], [0, 2, 0], [0, 1, 0]])


def test_none_of_these_gets_its_own_row_and_column_where_it_occurs() -> None:
    counts = classify.confusion(np.array([0, -1, -1, 2]), np.array([-1, -1, 1, 2]), 3)
    np.testing.assert_array_equal(counts, [[0, 0, 0, 1], [0, 0, 0, 0], [0, 0, 1, 0], [0, 1, 0, 1]])
    assert [score.label for score in classify.per_class(counts, LABELS)] == [*LABELS, classify.NONE]
    assert classify.top1(np.array([0, -1]), np.array([0, -1])) == 1.0


def test_scores_per_class() -> None:
    cat, dog, owl = classify.per_class(classify.confusion(TRUTH, ANSWER, 3), LABELS)
    assert (cat.label, cat.n, cat.precision, cat.recall) == ("cat", 3, 1.0, pytest.approx(2 / 3))
    assert cat.f1 == pytest.approx(0.8)
    assert (dog.n, dog.precision, dog.recall) == (2, 0.5, 1.0)
    assert (owl.n, owl.precision, owl.recall, owl.f1) == (1, 0.0, 0.0, 0.0)


def test_confusion_as_text() -> None:
    counts = classify.confusion(TRUTH, ANSWER, 3)
    counts[0, 0] = 12345
    assert classify.confusion_text(counts, LABELS).splitlines() == [
        "       cat  dog  owl",
        "cat  12345    1    0",
        "dog      0    2    0",
        "owl      0    1    0",
    ]


def test_with_many_labels_the_text_names_what_is_confused_most() -> None:
    labels = [f"label {i}" for i in range(40)]
    counts = np.diag(np.full(40, 10))
    assert classify.confusion_text(counts, labels) == "nothing is confused"
    counts[3, 7], counts[20, 1] = 5, 2
    assert classify.confusion_text(counts, labels).splitlines() == [
        "label 3 taken for label 7: 5 of 15",
        "label 20 taken for label 1: 2 of 12",
    ]


def test_macro_counts_every_class_that_occurs_the_same() -> None:
    scores = classify.per_class(classify.confusion(TRUTH, ANSWER, 4), (*LABELS, "yak"))
    macro = classify.macro(scores)
    assert macro.recall == pytest.approx((2 / 3 + 1 + 0) / 3)
    assert macro.precision == pytest.approx((1 + 0.5 + 0) / 3)
    assert math.isnan(classify.macro([]).f1)


def test_all_figures_of_a_classifier() -> None:
    found = classify.figures(np.array([0, 0, 1, 1]), np.array([0, 1, 1, 1]), np.full(4, 0.75), ("a", "b"))
    assert found == {
        "top1": 0.75,
        "precision": pytest.approx((1 + 2 / 3) / 2),
        "recall": 0.75,
        "f1": pytest.approx((2 / 3 + 0.8) / 2),
        "calibration_error": pytest.approx(0.0),
    }
    nothing = np.zeros(0, np.int64)
    assert all(map(math.isnan, classify.figures(nothing, nothing, np.zeros(0), ("a", "b")).values()))


def test_calibration_error_by_hand() -> None:
    """Two bins: 0.6 sure and half right, 1.0 sure and all right."""
    found = classify.calibration(np.array([0.6, 0.6, 1.0, 1.0]), np.array([True, False, True, True]), bins=10)
    assert found.error == pytest.approx((2 * 0.1 + 2 * 0.0) / 4)
    assert (found.confidence, found.accuracy, found.n) == (pytest.approx((0.6, 1.0)), (0.5, 1.0), (2, 2))
    assert math.isnan(classify.calibration(np.zeros(0), np.zeros(0, bool)).error)
