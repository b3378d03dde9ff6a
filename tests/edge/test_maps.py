"""Attention maps: what normalising keeps, what the comparisons say, and what is drawn where."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from numpy.typing import NDArray

from edgeattn import maps
from edgeattn.errors import DataError
from edgeattn.imaging import crop_box
from edgeattn.spec import InputSpec

RAW = arrays.arrays(np.float32, (2, 3, 4), elements=st.floats(0, 1e6, width=32))


def one_hot(y: int, x: int, side: int = 4) -> NDArray[np.float64]:
    dot = np.zeros((side, side))
    dot[y, x] = 1.0
    return dot


@given(RAW)
def test_normalised_maps_sum_to_one_and_keep_their_proportions(raw: NDArray[np.float32]) -> None:
    normal = maps.normalise(raw)
    np.testing.assert_allclose(normal.sum(axis=(1, 2)), 1.0, rtol=1e-9)
    assert (normal >= 0).all()
    for before, after in zip(raw.astype(np.float64), normal, strict=True):
        if before.any():
            np.testing.assert_allclose(after * before.sum(), before, rtol=1e-6)


def test_an_all_zero_map_is_uniform() -> None:
    np.testing.assert_array_equal(maps.normalise(np.zeros((1, 2, 4))), np.full((1, 2, 4), 1 / 8))


def test_negative_and_non_finite_values_count_as_nothing() -> None:
    raw = np.array([[[-3.0, 1.0], [np.nan, np.inf]]])
    np.testing.assert_array_equal(maps.normalise(raw), [[[0.0, 1.0], [0.0, 0.0]]])
    np.testing.assert_array_equal(maps.normalise(np.full((1, 2, 2), np.nan)), np.full((1, 2, 2), 0.25))


def test_divergence_is_zero_for_equal_and_one_bit_for_apart() -> None:
    p, q = one_hot(0, 0), one_hot(3, 3)
    assert maps.js_divergence(p, p) == 0
    assert maps.js_divergence(p, 7 * p) == 0, "scale does not matter"
    assert maps.js_divergence(p, q) == pytest.approx(1.0)
    np.testing.assert_allclose(maps.js_divergence(np.stack([p, p]), np.stack([p, q])), [0.0, 1.0])


def test_divergence_by_hand() -> None:
    """P = (1, 0), Q = (1/2, 1/2): M = (3/4, 1/4)."""
    expected = (np.log2(4 / 3) + (np.log2(2 / 3) + np.log2(2)) / 2) / 2
    assert maps.js_divergence(np.array([[1.0, 0.0]]), np.array([[1.0, 1.0]])) == pytest.approx(expected)


@given(RAW, RAW)
def test_divergence_is_symmetric_and_bounded(a: NDArray[np.float32], b: NDArray[np.float32]) -> None:
    forth, back = maps.js_divergence(a, b), maps.js_divergence(b, a)
    np.testing.assert_allclose(forth, back, atol=1e-12)
    assert ((forth >= 0) & (forth <= 1 + 1e-9)).all()


def test_gates_near_one_half_hardly_diverge_even_when_unrelated() -> None:
    """Why a bound on the divergence must be relative."""
    rng = np.random.default_rng(0)
    gates = 1 / (1 + np.exp(-rng.normal(0, 0.5, (2, 14, 14))))
    assert maps.js_divergence(gates[0], gates[1]) < 0.03


def test_rank_correlation_by_hand() -> None:
    a = np.array([[1.0, 2.0], [3.0, 4.0]])
    assert maps.rank_correlation(a, a**3) == pytest.approx(1.0)
    assert maps.rank_correlation(a, -a) == pytest.approx(-1.0)
    # Ranks 1 2 3 4 against 1.5 1.5 3 4 (a tie shares its mean rank): 1.125 / sqrt(1.25 * 1.125).
    assert maps.rank_correlation(a, np.array([[1.0, 1.0], [3.0, 9.0]])) == pytest.approx(1.125 / np.sqrt(1.25 * 1.125))


def test_rank_correlation_of_constant_maps() -> None:
    flat, sloped = np.ones((2, 2)), np.arange(4.0).reshape(2, 2)
    assert maps.rank_correlation(flat, 3 * flat) == 1.0
    assert maps.rank_correlation(flat, sloped) == 0.0
    assert maps.rank_correlation(np.stack([flat, sloped]), np.stack([sloped, sloped])).tolist() == pytest.approx([0, 1])


def test_mass_overlap_by_hand() -> None:
    a = np.arange(1.0, 11.0).reshape(2, 5)
    assert maps.mass_overlap(a, a) == 1.0
    assert maps.mass_overlap(a, 7 * a) == 1.0
    assert maps.mass_overlap(a, -a + 11) == pytest.approx((1 + 2) / (9 + 10))
    assert maps.mass_overlap(a, np.ones((2, 5))) == pytest.approx(0.2 * 55 / 19)  # what chance finds
    half = np.where(a == 10, 2.0, np.where(a >= 8, 1.0, 0.0))  # 10 for sure, 8 or 9 by halves
    assert maps.mass_overlap(a, half) == pytest.approx((10 + 8.5) / 19)
    assert maps.mass_overlap(np.stack([a, a]), np.stack([a, a[:, ::-1]])).shape == (2,)


def test_mean_map_weighs_blocks_equally_whatever_their_scale_and_size() -> None:
    mean = maps.mean_map({"a": 1000 * one_hot(0, 0)[None], "b": one_hot(3, 3)})
    np.testing.assert_allclose(mean, (one_hot(0, 0) + one_hot(3, 3)) / 2)
    mixed = maps.mean_map({"small": np.eye(2)[None], "large": np.ones((1, 8, 8))})
    assert mixed.shape == (8, 8)
    assert mixed.sum() == pytest.approx(1.0)
    assert mixed[0, 0] > mixed[0, 7]


def test_mean_map_of_nothing_says_what_to_do() -> None:
    with pytest.raises(DataError, match="maps=True"):
        maps.mean_map({})


@pytest.mark.parametrize("size", [(480, 640), (640, 480), (32, 32), (5, 7), (1, 1)])
def test_overlay_covers_the_crop_and_darkens_the_rest(size: tuple[int, int]) -> None:
    spec = InputSpec(32, 32, crop=0.8)
    picture = np.full((*size, 3), 200, np.uint8)
    shown = maps.overlay(picture, one_hot(0, 0), spec, opacity=1.0)
    assert shown.shape == picture.shape
    assert shown.dtype == np.uint8
    assert (picture == 200).all(), "the frame itself is not drawn on"
    x, y, w, h = crop_box(*size, spec)
    outside = np.ones(size, bool)
    outside[y : y + h, x : x + w] = False
    assert (shown[outside] == round(200 * maps.OUTSIDE)).all()
    if h >= 5:
        hot, cold = shown[y, x].astype(int), shown[y + h - 1, x + w - 1].astype(int)
        assert hot[2] > hot[0], "the greatest value is red"
        assert cold[0] >= cold[2], "the least value is blue"


def test_overlay_lies_where_the_map_says() -> None:
    spec = InputSpec(32, 32)
    shown = maps.overlay(np.zeros((40, 80, 3), np.uint8), one_hot(1, 2), spec, opacity=1.0)
    red = shown[..., 2].astype(int) - shown[..., 0]
    y, x = np.unravel_index(red.argmax(), red.shape)
    assert 10 <= y < 20, "second of four rows of 10 pixels"
    assert 40 <= x < 50, "third of four columns of 10 pixels, in the central 40 of 80"


def test_overlay_opacity_and_flat_maps() -> None:
    spec = InputSpec(32, 32)
    picture = np.random.default_rng(0).integers(0, 256, (32, 32, 3), np.uint8)
    np.testing.assert_array_equal(maps.overlay(picture, one_hot(0, 0), spec, opacity=0.0), picture)
    flat = maps.overlay(picture, np.full((4, 4), 0.5), spec, opacity=1.0)
    assert (flat == flat[0, 0]).all(), "a map without focus shows none"


def test_overlay_refuses_a_batch() -> None:
    with pytest.raises(DataError, match=r"\(h, w\), not \(1, 4, 4\)"):
        maps.overlay(np.zeros((8, 8, 3), np.uint8), np.ones((1, 4, 4)), InputSpec(32, 32))
