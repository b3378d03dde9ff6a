"""Our small statistics and metrics against scipy's and scikit-learn's, which come with the training half only."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from edgeattn import maps
from edgeattn.evaluation import segment, significance


def test_rank_correlation() -> None:
    a, b = np.random.default_rng(1).integers(0, 5, (2, 20, 6, 6))
    expected = [stats.spearmanr(x.ravel(), y.ravel()).statistic for x, y in zip(a, b, strict=True)]
    np.testing.assert_allclose(maps.rank_correlation(a, b), expected, atol=1e-12)


def test_divergence() -> None:
    from scipy.spatial import distance

    a, b = np.random.default_rng(2).random((2, 20, 36))
    expected = distance.jensenshannon(a, b, base=2, axis=1) ** 2
    np.testing.assert_allclose(maps.js_divergence(a.reshape(20, 6, 6), b.reshape(20, 6, 6)), expected, atol=1e-12)


@pytest.mark.parametrize("freedom", [1, 2, 3, 4, 7, 30, 999, 5000])
def test_student_t(freedom: int) -> None:
    for probability in (0.5, 0.9, 0.975, 0.9995):
        expected = stats.t.ppf(probability, freedom)
        assert significance.student_t(probability, freedom) == pytest.approx(expected, rel=1e-6, abs=1e-9)


@pytest.mark.parametrize(("count", "n"), [(0, 10), (3, 10), (10, 10), (97, 250)])
def test_wilson(count: int, n: int) -> None:
    for confidence in (0.9, 0.95):
        expected = stats.binomtest(count, n).proportion_ci(confidence, method="wilson")
        assert significance.wilson(count, n, confidence) == pytest.approx((expected.low, expected.high), abs=1e-12)


def test_paired_p() -> None:
    rng = np.random.default_rng(3)
    for n in (2, 5, 8):
        differences = rng.normal(0.3, 1.0, n)
        assert significance.paired_p(differences) == pytest.approx(stats.ttest_1samp(differences, 0).pvalue, rel=1e-6)
    assert np.isnan(significance.paired_p(np.array([0.1])))
    assert significance.paired_p(np.zeros(4)) == 1.0


def test_overlap_of_segmentations() -> None:
    from sklearn.metrics import accuracy_score, confusion_matrix, jaccard_score

    rng = np.random.default_rng(4)
    seen = segment.Segmentation("abcd")
    truths, answers = rng.integers(0, 4, (2, 5, 30, 40)).astype(np.uint8)
    truths[rng.random(truths.shape) < 0.1] = segment.IGNORE
    for truth, answer in zip(truths, answers, strict=True):
        seen.add(truth, answer)
    counted = truths != segment.IGNORE
    truth, answer = truths[counted], answers[counted]
    np.testing.assert_array_equal(seen.counts, confusion_matrix(truth, answer))
    scores = seen.overlap()
    np.testing.assert_allclose([one.iou for one in scores.classes], jaccard_score(truth, answer, average=None))
    assert scores.miou == pytest.approx(jaccard_score(truth, answer, average="macro"))
    assert scores.accuracy == pytest.approx(accuracy_score(truth, answer))


def test_boundary_f1() -> None:
    from scipy.ndimage import gaussian_filter
    from scipy.spatial.distance import cdist

    def boundary(labels: np.ndarray, k: int) -> np.ndarray:
        padded = np.pad(labels, 1, mode="edge")
        neighbours = (padded[:-2, 1:-1], padded[2:, 1:-1], padded[1:-1, :-2], padded[1:-1, 2:])
        return np.argwhere((labels == k) & np.any([one != k for one in neighbours], axis=0))

    rng = np.random.default_rng(6)
    for tolerance in (0.02, 0.06):
        truth, answer = gaussian_filter(rng.random((2, 3, 40, 50)), (0, 0, 4, 4)).argmax(axis=1)
        expected = []
        for k in range(3):
            away = cdist(boundary(truth, k), boundary(answer, k)) <= tolerance * np.hypot(40, 50)
            precision, recall = away.any(axis=0).mean(), away.any(axis=1).mean()
            expected.append(2 * precision * recall / (precision + recall))
        found = segment.boundary_f1(truth, answer, 3, tolerance=tolerance)
        np.testing.assert_allclose(found, expected)
        assert 0 < found.min() <= found.max() < 1
