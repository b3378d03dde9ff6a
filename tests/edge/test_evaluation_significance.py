"""Gates tell when they can, say so when they cannot, and their intervals hold what they promise."""

from __future__ import annotations

import math

import numpy as np
import pytest
from numpy.typing import NDArray

from edgeattn.errors import DataError
from edgeattn.evaluation.significance import (
    fall_gate,
    holm,
    loss_gate,
    median_gate,
    paired_interval,
    proportion_gate,
    student_t,
    tango,
    verdict,
    wilson,
    worst,
    worst_median_gate,
)


def answers(n: int, worse: int, better: int = 0, both_wrong: int = 0) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Float and int8 right or not, with so many pictures that only float, only int8 and neither gets right."""
    before, after = np.ones(n, bool), np.ones(n, bool)
    after[:worse] = False
    before[worse : worse + better] = False
    before[n - both_wrong :] = after[n - both_wrong :] = False
    return before, after


def test_three_outcomes() -> None:
    assert verdict(-0.01, 0.005, 0.01) == "passed"
    assert verdict(0.02, 0.05, 0.01) == "failed"
    assert verdict(0.0, 0.05, 0.01) == "cannot tell"
    assert verdict(-0.01, 0.01, 0.01) == "passed", "the bound itself is allowed"
    assert worst(["passed", "cannot tell", "failed"]) == "failed"
    assert worst(["passed", "cannot tell"]) == "cannot tell"
    assert worst(["passed", "passed"]) == "passed"
    assert worst([]) == "cannot tell"


def test_no_loss_on_many_pictures_passes() -> None:
    gate = loss_gate(*answers(5000, worse=20, better=18, both_wrong=300))
    assert gate.verdict == "passed"
    assert gate.value == pytest.approx(2 / 5000)
    assert gate.low < gate.value < gate.high <= gate.bound
    assert gate.needed_n is None


def test_a_clear_loss_fails_even_on_few_pictures() -> None:
    gate = loss_gate(*answers(100, worse=15))
    assert gate.verdict == "failed"
    assert gate.low > gate.bound


def test_few_pictures_cannot_tell_and_say_how_many_it_takes() -> None:
    gate = loss_gate(*answers(50, worse=0))
    assert gate.verdict == "cannot tell"
    assert gate.needed_n == 268
    assert loss_gate(*answers(267, worse=0)).verdict == "cannot tell"
    assert loss_gate(*answers(268, worse=0)).verdict == "passed"


def test_half_a_point_cannot_be_resolved_by_800_pictures() -> None:
    gate = loss_gate(*answers(800, worse=12, better=10), bound=0.005)
    assert gate.verdict == "cannot tell"
    assert gate.needed_n is not None
    assert gate.needed_n > 5000


def test_needed_n_is_where_the_verdict_falls() -> None:
    gate = loss_gate(*answers(200, worse=1, better=1))
    needed = gate.needed_n
    assert needed
    rate = 1 / 200
    assert verdict(*tango(rate * needed, rate * needed, needed), 0.01) == "passed"
    assert verdict(*tango(rate * (needed - 1), rate * (needed - 1), needed - 1), 0.01) == "cannot tell"


def test_a_loss_at_the_bound_itself_is_never_told() -> None:
    gate = loss_gate(*answers(100, worse=1), bound=0.01)
    assert (gate.verdict, gate.needed_n) == ("cannot tell", None)


def test_gates_refuse_nothing_and_different_pictures() -> None:
    with pytest.raises(DataError, match="same pictures twice"):
        loss_gate(np.ones(3, bool), np.ones(4, bool))
    with pytest.raises(DataError, match="same pictures twice"):
        loss_gate(np.ones(0, bool), np.ones(0, bool))
    with pytest.raises(DataError):
        proportion_gate(0, 0, 0.1)
    with pytest.raises(DataError):
        median_gate(np.empty(0), 1.0)
    with pytest.raises(DataError):
        paired_interval(np.empty(0))


@pytest.mark.parametrize(("worse", "better", "n"), [(9, 2, 32), (1, 1, 44), (12, 2, 50), (3, 0, 30), (0, 5, 200)])
def test_the_score_interval_is_the_likelihoods(worse: int, better: int, n: int) -> None:
    """At each end the score statistic, its nuisance rate found by brute force, is the normal quantile."""
    for end in tango(worse, better, n, 0.95):
        rates = np.linspace(max(0.0, -end), (1 - end) / 2, 400_001)[1:-1]  # of `better`; of `worse`: rate + end
        likelihood = (
            worse * np.log(np.maximum(rates + end, 1e-300))
            + better * np.log(rates)
            + (n - worse - better) * np.log(1 - 2 * rates - end)
        )
        rate = float(rates[likelihood.argmax()])
        statistic = (worse - better - n * end) / math.sqrt(n * (2 * rate + end * (1 - end)))
        assert abs(statistic) == pytest.approx(1.6449, abs=0.01)


def test_without_any_difference_the_upper_end_is_known() -> None:
    z2 = 1.6448536269514722**2
    low, high = tango(0, 0, 300)
    assert high == pytest.approx(z2 / (300 + z2), rel=1e-6)
    assert low == pytest.approx(-high)


def test_swapping_sides_mirrors_the_interval() -> None:
    low, high = tango(7, 2, 150)
    assert tango(2, 7, 150) == pytest.approx((-high, -low), abs=1e-9)


@pytest.mark.parametrize(
    ("worse_rate", "better_rate", "n"),
    [(0.01, 0.0, 300), (0.02, 0.01, 300), (0.03, 0.02, 1000), (0.05, 0.04, 60), (0.012, 0.002, 2000), (0.2, 0.1, 100)],
)
def test_the_ends_hold_as_often_as_they_promise(worse_rate: float, better_rate: float, n: int) -> None:
    rng = np.random.default_rng(0)
    samples = rng.multinomial(n, [worse_rate, better_rate, 1 - worse_rate - better_rate], 4000)
    pairs, counts = np.unique(samples[:, :2], axis=0, return_counts=True)
    ends = np.array([tango(worse, better, n, 0.95) for worse, better in pairs])
    true = worse_rate - better_rate
    below = float(counts[ends[:, 0] <= true].sum() / counts.sum())
    above = float(counts[ends[:, 1] >= true].sum() / counts.sum())
    assert 0.91 <= below <= 0.995
    assert 0.92 <= above <= 0.995


def test_a_gate_rarely_passes_what_loses_more_than_allowed() -> None:
    rng = np.random.default_rng(1)
    passed = 0
    for _ in range(400):
        kinds = rng.choice(3, 1000, p=[0.03, 0.01, 0.96])  # a loss of two points, one allowed
        passed += loss_gate(kinds != 1, kinds != 0, 0.01).verdict == "passed"
    assert passed <= 0.01 * 400


def test_pairing_resolves_what_two_separate_samples_cannot() -> None:
    gate = loss_gate(*answers(2000, worse=4, better=2, both_wrong=400))
    low_a, high_a = wilson(1600, 2000, 0.9)
    assert gate.verdict == "passed"
    assert high_a - low_a > gate.bound


def test_a_share_of_changed_answers() -> None:
    assert proportion_gate(0, 25, 0.1).verdict == "passed"
    assert proportion_gate(0, 24, 0.1).verdict == "cannot tell"
    assert proportion_gate(0, 24, 0.1).needed_n == 25
    assert proportion_gate(20, 50, 0.1).verdict == "failed"


def test_the_gate_on_a_median() -> None:
    rng = np.random.default_rng(2)
    assert median_gate(rng.exponential(0.1, 200), 0.25).verdict == "passed"
    assert median_gate(rng.exponential(1.0, 200), 0.25).verdict == "failed"
    few = median_gate(np.array([0.01, 0.02, 0.03]), 0.25)
    assert (few.verdict, few.low, few.high) == ("cannot tell", -math.inf, math.inf)
    assert few.needed_n is not None
    assert 3 < few.needed_n < 12


def test_the_interval_of_a_median_holds() -> None:
    rng = np.random.default_rng(3)
    gates = [median_gate(rng.exponential(1.0, 40), 1.0) for _ in range(2000)]
    assert np.mean([gate.low <= math.log(2) for gate in gates]) >= 0.94
    assert np.mean([gate.high >= math.log(2) for gate in gates]) >= 0.94


def test_the_worst_of_several_medians_decides() -> None:
    rng = np.random.default_rng(4)
    sound_KN = rng.exponential(0.1, (12, 100))
    place, gate = worst_median_gate(sound_KN, 0.25)
    assert gate.verdict == "passed"
    assert gate.value == np.median(sound_KN, axis=1).max() == np.median(sound_KN[place])
    spoilt_KN = sound_KN.copy()
    spoilt_KN[7] = rng.exponential(1.0, 100)
    assert (worst_median_gate(spoilt_KN, 0.25)[0], worst_median_gate(spoilt_KN, 0.25)[1].verdict) == (7, "failed")
    near_KN = sound_KN.copy()
    near_KN[3] = rng.exponential(0.25 / math.log(2), 100)
    place, gate = worst_median_gate(near_KN, 0.25)
    assert (place, gate.verdict) == (3, "cannot tell")
    with pytest.raises(DataError, match="medians of no samples"):
        worst_median_gate(np.empty((3, 0)), 1.0)


def test_many_medians_at_their_bound_do_not_fail_by_luck() -> None:
    rng = np.random.default_rng(5)
    gates = [worst_median_gate(rng.exponential(1.0, (12, 40)), math.log(2))[1] for _ in range(500)]
    assert np.mean([gate.verdict == "failed" for gate in gates]) <= 0.07
    assert np.mean([gate.verdict == "passed" for gate in gates]) <= 0.01


def test_wilson_of_nothing_and_of_everything() -> None:
    assert wilson(0, 0) == (0.0, 1.0)
    low, high = wilson(10, 10)
    assert (high, low) == (pytest.approx(1.0), pytest.approx(0.722, abs=1e-3))


def test_the_interval_of_paired_differences_by_hand() -> None:
    """Mean 2, standard deviation 1, three values: t = 4.303."""
    mean, half = paired_interval(np.array([1.0, 2.0, 3.0]))
    assert mean == 2.0
    assert half == pytest.approx(4.3027 / math.sqrt(3), rel=1e-4)
    assert paired_interval(np.array([1.0])) == (1.0, math.inf)
    assert paired_interval(np.array([5.0, 5.0])) == (5.0, 0.0)


@pytest.mark.parametrize(("freedom", "expected"), [(1, 12.7062), (2, 4.3027), (4, 2.7764), (9, 2.2622), (30, 2.0423)])
def test_student_t_from_the_tables(freedom: int, expected: float) -> None:
    assert student_t(0.975, freedom) == pytest.approx(expected, abs=1e-4)
    assert student_t(0.5, freedom) == pytest.approx(0, abs=1e-6)


def test_holm_by_hand() -> None:
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.5, 0.9]) == pytest.approx([1.0, 1.0])
    corrected = holm([math.nan, 0.02])
    assert math.isnan(corrected[0])
    assert corrected[1] == 0.02


def drawn(falls: NDArray[np.float64], seed: int = 0) -> NDArray[np.float64]:
    """Mean falls of sets drawn from pictures that fall by so much each."""
    rng = np.random.default_rng(seed)
    return falls[rng.integers(0, len(falls), (1000, len(falls)))].mean(1)


def test_the_fall_of_a_set_s_figure_passes_fails_or_cannot_be_told() -> None:
    noise = np.random.default_rng(1).normal(0, 0.02, 100)
    noise -= noise.mean()
    passed, failed = (fall_gate(fall, drawn(noise + fall), 0.01, 100) for fall in (0.0, 0.02))
    assert (passed.verdict, failed.verdict) == ("passed", "failed")
    assert passed.high == pytest.approx(1.645 * 0.02 / 10, rel=0.2)
    unsure = fall_gate(0.009, drawn(noise + 0.009), 0.01, 100)
    assert unsure.verdict == "cannot tell"
    assert unsure.needed_n is not None
    half = (unsure.high - 0.009) * math.sqrt(100 / unsure.needed_n)
    assert half == pytest.approx(0.001, rel=0.05), "as many pictures as would tell, were they as these"


def test_objects_that_are_all_found_alike_leave_what_so_few_leave() -> None:
    for objects, said in ((100, "cannot tell"), (400, "passed")):
        gate = fall_gate(0.0, np.zeros(1000), 0.01, 50, objects=objects)
        assert gate.verdict == said
        assert gate.high == pytest.approx(tango(0, 0, objects)[1], rel=1e-6)
    assert fall_gate(0.0, np.zeros(1000), 0.01, 1).verdict == "cannot tell", "one picture tells nothing"
    assert fall_gate(0.0, np.zeros(1000), 0.01, 50).verdict == "passed"


@pytest.mark.parametrize("n", [10, 60])
def test_the_ends_of_a_drawn_interval_hold_what_they_promise(n: int) -> None:
    """Skewed falls, as of a detector that rarely misses: each end of 95 % holds in about as many samples."""
    rng, held = np.random.default_rng(2), [0, 0]
    for seed in range(300):
        falls = rng.exponential(0.02, n) * rng.choice([-1, 1, 1], n)
        fall = float(falls.mean())
        gate = fall_gate(fall, drawn(falls, seed), 0.01, n)
        held = [held[0] + (gate.low <= 0.02 / 3), held[1] + (gate.high >= 0.02 / 3)]
    assert all(0.9 <= count / 300 <= 0.99 for count in held), held
