"""Measures of attention maps, by hand on planted maps."""

from __future__ import annotations

import math

import numpy as np
import pytest
from numpy.typing import NDArray

from edgeattn.errors import DataError
from edgeattn.evaluation import looking


def one_hot(y: int, x: int, side: int = 4) -> NDArray[np.float64]:
    dot = np.zeros((side, side))
    dot[y, x] = 1.0
    return dot


def test_energy_inside_a_mask() -> None:
    mask = np.zeros((40, 40), bool)
    mask[:, :20] = True
    assert looking.energy_inside(one_hot(1, 0), mask) == 1.0
    assert looking.energy_inside(one_hot(1, 3), mask) == 0.0
    assert looking.energy_inside(np.ones((4, 4)), mask) == pytest.approx(0.5)
    mask[:, :5] = False  # half of the first column of cells
    assert looking.energy_inside(one_hot(1, 0), mask) == pytest.approx(0.5)


def test_pointing_takes_the_greatest_place_and_a_flat_map_points_nowhere() -> None:
    mask = np.zeros((40, 40), bool)
    mask[10:20, 30:] = True
    assert looking.pointing(one_hot(1, 3), mask)
    assert not looking.pointing(one_hot(1, 2), mask)
    assert not looking.pointing(np.ones((4, 4)), np.ones((40, 40), bool))


def test_faint_traces_around_a_mask_are_outside_of_it() -> None:
    mask = np.zeros((40, 40))
    mask[10:20, 30:] = 0.9
    found, traced = (looking.measures(np.ones((4, 4)), where) for where in (mask, np.maximum(mask, 0.02)))
    assert found["energy_inside"] == traced["energy_inside"] == pytest.approx(1 / 16)
    assert looking.measures(one_hot(0, 0), np.maximum(mask, 0.02))["pointing"] == 0.0
    assert traced["kl"] < found["kl"], "a density counts as it is"


def test_kl_by_hand() -> None:
    p, q = np.array([[3.0, 1.0]]), np.array([[1.0, 1.0]])
    expected = 0.75 * np.log(0.75 / 0.5) + 0.25 * np.log(0.25 / 0.5)
    assert looking.kl(q, p) == pytest.approx(expected, abs=1e-5)
    assert looking.kl(p, 9 * p) == pytest.approx(0.0, abs=1e-5)
    assert looking.kl(one_hot(0, 0), one_hot(3, 3)) > 10


def test_cosine_by_hand() -> None:
    assert looking.cosine(np.array([[1.0, 0.0]]), np.array([[1.0, 1.0]])) == pytest.approx(1 / math.sqrt(2))
    assert looking.cosine(one_hot(0, 0), one_hot(3, 3)) == 0.0


def test_nss_counts_standard_deviations() -> None:
    values = np.array([[0.0, 0.0], [0.0, 4.0]])  # mean 1, standard deviation sqrt 3
    fixated = np.array([[False, False], [True, True]])
    assert looking.nss(values, fixated) == pytest.approx((2 - 1) / math.sqrt(3))
    assert looking.nss(np.ones((2, 2)), fixated) == 0.0
    assert math.isnan(looking.nss(values, np.zeros((2, 2), bool)))


def test_auc_is_the_share_of_pairs_in_the_right_order() -> None:
    rng = np.random.default_rng(0)
    values, fixated = rng.integers(0, 5, (6, 7)).astype(float), rng.random((6, 7)) < 0.3
    pairs = [(a > b) + 0.5 * (a == b) for a in values[fixated] for b in values[~fixated]]
    assert looking.auc_judd(values, fixated) == pytest.approx(np.mean(pairs))
    assert looking.auc_judd(np.ones((6, 7)), fixated) == 0.5
    assert math.isnan(looking.auc_judd(values, np.ones((6, 7), bool)))


def test_maps_are_resized_to_the_truth() -> None:
    fixated = np.zeros((75, 100), bool)
    fixated[5, 5] = True
    assert looking.auc_judd(one_hot(0, 0), fixated) > 0.95
    assert looking.auc_judd(one_hot(3, 3), fixated) < 0.6
    with pytest.raises(DataError, match=r"must be \(h, w\)"):
        looking.nss(np.ones((1, 4, 4)), fixated)


def test_the_centre_gaussian_is_centred_and_sums_to_one() -> None:
    centre = looking.centre_gaussian((75, 100))
    assert centre.sum() == pytest.approx(1.0)
    assert np.unravel_index(centre.argmax(), centre.shape) in {(37, 49), (37, 50)}
    np.testing.assert_allclose(centre, centre[::-1, ::-1])


def test_faithfulness_tells_a_true_map_from_its_opposite() -> None:
    """A model that answers by one corner: showing it early is enough, covering it early harms."""
    picture = np.zeros((16, 16, 3), np.uint8)
    picture[:4, :4] = 255

    def probability(shown: NDArray[np.uint8]) -> float:
        return float(shown[:4, :4].mean() / 255)

    true = looking.faithfulness(one_hot(0, 0), picture, probability, steps=16)
    false = looking.faithfulness(1 - one_hot(0, 0), picture, probability, steps=16)
    assert len(true.insertion) == 17
    assert true.insertion[-1] == true.deletion[0] == 1.0
    assert true.insertion_auc > false.insertion_auc + 0.3
    assert true.deletion_auc < false.deletion_auc - 0.3
