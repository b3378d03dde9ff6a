from __future__ import annotations

import sys
from importlib.util import find_spec

import numpy as np
import pytest

from edgeattn.errors import ExtraMissingError
from edgeattn.timing.histogram import Histogram
from edgeattn.timing.statistics import PERCENTILES, intervals, summary

pytestmark = pytest.mark.skipif(find_spec("hdrh") is None, reason="needs the extra long")


def test_figures_are_those_of_the_raw_values() -> None:
    values_ns = np.random.default_rng(0).lognormal(14, 0.5, 8000).astype(int)
    histogram = Histogram()
    for value in values_ns:
        histogram.record(int(value))
    assert len(histogram) == 8000
    raw, found = summary(values_ns / 1e6, PERCENTILES), histogram.summary(PERCENTILES)
    assert found["n"] == raw["n"]
    for key in ("p50", "p90", "p95", "p99", "p99.9", "max"):
        assert found[key] == pytest.approx(raw[key], rel=3e-3)
    ends, found_ends = intervals(values_ns / 1e6), histogram.intervals()
    for key, pair in ends.items():
        assert found_ends[key] == pytest.approx(pair, rel=2e-3)


def test_few_and_extreme_values() -> None:
    histogram = Histogram()
    assert histogram.summary() == {"n": 0, "p50": None, "p90": None, "p99": None, "max": None}
    histogram.record(0)
    histogram.record(10**18)  # thirty years
    assert histogram.summary()["p90"] is None
    assert histogram.summary()["max"] == pytest.approx(24 * 3600 * 1000, rel=1e-3)
    assert histogram.intervals()["p99"] is None


def test_without_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "hdrh.histogram", None)
    with pytest.raises(ExtraMissingError, match=r"edgeattn\[long\]"):
        Histogram()
