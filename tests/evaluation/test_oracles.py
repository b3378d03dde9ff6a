"""Our small statistics against scipy's, which comes with the training half only."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from edgeattn import maps
from edgeattn.evaluation import significance


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
