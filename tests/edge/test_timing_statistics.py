from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgeattn.timing.statistics import (
    PERCENTILES,
    SAMPLE_FLOORS,
    bootstrap_ratio,
    change_point,
    intervals,
    jitter,
    missing,
    order_ranks,
    paired_ratio,
    summary,
)


def test_floors_leave_two_samples_above_with_99_percent() -> None:
    for percentile in (90, 95, 99, 99.9):
        p, n = percentile / 100, SAMPLE_FLOORS[percentile]

        def fewer_than_two(n: int, p: float = p) -> float:
            return p**n + n * (1 - p) * p ** (n - 1)

        assert fewer_than_two(n) <= 0.01 < fewer_than_two(n - 1)


@pytest.mark.parametrize(("percentile", "n"), [(50, 64), (90, 64), (90, 704), (95, 130), (99, 662), (99.9, 6636)])
def test_ranks_hold_the_percentile_with_the_confidence(percentile: float, n: int) -> None:
    def chance(k: int) -> float:  # of k samples below the percentile
        p = percentile / 100
        ways = math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1)
        return math.exp(ways + k * math.log(p) + (n - k) * math.log(1 - p))

    low, high = order_ranks(n, percentile) or (0, 0)
    assert 1 <= low < high <= n
    assert 0.95 <= sum(map(chance, range(low, high))) < 0.97
    # no pair as near to each other as that, less one, does
    width = high - low - 1
    assert max(sum(map(chance, range(i, i + width))) for i in range(1, n - width + 1)) < 0.95


def test_too_few_samples_have_no_interval() -> None:
    assert order_ranks(0, 50) is None
    assert order_ranks(20, 99) is None
    assert intervals(range(600))["p99"] is None
    assert intervals([])["p50"] is None
    assert intervals([1.0, 2.0])["p50"] is None


@pytest.mark.parametrize("n", [704, 1500])
def test_intervals_hold_the_true_value_in_95_of_100_runs(n: int) -> None:
    """1,000 simulated runs of a distribution like that of latencies: a floor, a long tail, one run in fifty disturbed."""
    rng = np.random.default_rng(7)

    def draw(count: int) -> np.ndarray:
        return 1.0 + rng.lognormal(-3, 1, count) + 4.0 * (rng.random(count) < 0.02) * rng.random(count)

    population = draw(4_000_000)
    named = (50, 90, 95, 99)
    true = {f"p{each}": np.percentile(population, each) for each in named}
    hits = dict.fromkeys(true, 0)
    for _ in range(1000):
        for key, (low, high) in intervals(draw(n), named).items():  # type: ignore[misc]
            hits[key] += low <= true[key] <= high
    assert all(930 <= count <= 970 for count in hits.values()), hits


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 3000), st.integers(0, 99))
def test_interval_lies_around_the_value_that_numpy_gives(n: int, seed: int) -> None:
    values = np.random.default_rng(seed).lognormal(size=n)
    figures, found = summary(values, PERCENTILES), intervals(values)
    for percentile in PERCENTILES:
        key = f"p{percentile:g}"
        assert figures[key] == (np.percentile(values, percentile) if n >= SAMPLE_FLOORS[percentile] else None)
        if found[key] is not None:
            low, high = found[key]  # type: ignore[misc]
            assert low <= float(figures[key] or 0) <= high
    assert missing(n, 99) == max(0, 662 - n)


def test_jitter_is_the_mean_step() -> None:
    assert jitter([1.0, 2.0, 1.0, 4.0]) == pytest.approx(5 / 3)
    assert jitter([1.0]) is None


def test_paired_ratio_survives_a_machine_that_slows_down() -> None:
    rng = np.random.default_rng(3)
    weather = np.linspace(1, 3, 200)
    slow = 1.05 * weather * rng.lognormal(0, 0.02, 200)
    fast = weather * rng.lognormal(0, 0.02, 200)
    _, low, high = paired_ratio(slow, fast)
    assert low < 1.05 < high
    assert high - low < 0.02
    assert low > 1
    assert paired_ratio([2.0], [1.0]) == (2.0, 0.0, math.inf)


def test_bootstrap_holds_the_true_ratio() -> None:
    rng = np.random.default_rng(4)
    hits = 0
    for _ in range(60):
        found = bootstrap_ratio(1.1 * rng.lognormal(0, 0.3, 300), rng.lognormal(0, 0.3, 300), draws=100)
        assert found.low < found.value < found.high
        hits += found.low <= 1.1 <= found.high
    assert 52 <= hits <= 60


def test_bootstrap_in_blocks_is_wider_where_neighbours_are_alike() -> None:
    rng = np.random.default_rng(5)
    slow_weather = np.repeat(rng.lognormal(0, 0.2, 20), 50)
    alone = bootstrap_ratio(slow_weather, slow_weather[::-1], draws=200)
    blocks = bootstrap_ratio(slow_weather, slow_weather[::-1], block=50, draws=200)
    assert blocks.high - blocks.low > 2 * (alone.high - alone.low)


def test_change_point_is_where_the_level_changes() -> None:
    rng = np.random.default_rng(6)
    steady = 1 + 0.1 * rng.random(60)
    assert change_point(np.concatenate([3 + rng.random(12), steady])) in range(11, 15)
    assert change_point(np.concatenate([np.full(20, 9.0), np.full(20, 4.0), steady])) in range(38, 44)
    assert change_point([1.0] * 50) == 0
    assert change_point([]) == change_point([5.0, 1.0]) == 0
    false_alarms = sum(change_point(rng.random(40)) > 0 for _ in range(200))
    assert false_alarms <= 8
