"""MultiScaleSpatial: the formula by loops, its merged form, and what its map shows."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from mechanisms import (
    Array,
    C,
    check_equals_naive,
    check_export,
    check_shapes_and_gradient,
    convolve,
    planted,
    sigmoid,
    warmed,
)
from torch import nn

from edgeattn.errors import SpecError
from edgeattn.nn.attention import attend
from edgeattn.nn.attention.multiscale import MultiScaleSpatial


def naive(module: nn.Module, x: Array) -> tuple[Array, Array]:
    q = convolve(module.squeeze, x)
    gate = np.vectorize(sigmoid)(sum(convolve(scale, q)[0] for scale in module.scales))
    return x * gate, gate


@pytest.mark.parametrize("size", [(6, 5), (3, 3), (1, 1)])
def test_equals_the_formula(size: tuple[int, int]) -> None:
    check_equals_naive(MultiScaleSpatial(C), naive, size=size)


def test_shapes_and_gradient() -> None:
    check_shapes_and_gradient(MultiScaleSpatial(C))


def test_export_has_one_convolution_for_all_scales(tmp_path: Path) -> None:
    for operators in check_export(MultiScaleSpatial(C), tmp_path):
        assert operators.count("Conv") == 3  # stem, squeeze, scales


@pytest.mark.parametrize("dilations", [(1, 2, 3), (2,), (3, 1, 5)])
@pytest.mark.parametrize("size", [(9, 8), (3, 2), (1, 1)])
def test_deployed_form_is_the_same(dilations: tuple[int, ...], size: tuple[int, int]) -> None:
    module, x = warmed(MultiScaleSpatial(C, dilations=dilations)), torch.randn(2, C, *size)
    for got, wanted in zip(attend(module.deployed(C), x), attend(module, x), strict=True):
        assert torch.allclose(got, wanted, atol=1e-6)


def test_map_sees_along_rows_columns_and_diagonals() -> None:
    module = warmed(MultiScaleSpatial(C))
    _, map_BHW = attend(module, planted(side=16, at=(7, 7)))
    gate = map_BHW[0].detach()
    far = gate[12, 12]  # out of reach of (7, 7) and of the border
    for seen in ((7, 7), (8, 8), (9, 7), (10, 4)):
        assert (gate[seen] - far).abs() > 1e-5
    for unseen in ((8, 9), (5, 8), (10, 5), (11, 7)):  # a knight's move away, or too far
        assert (gate[unseen] - far).abs() < 1e-6


def test_the_gate_starts_open() -> None:
    module = MultiScaleSpatial(C).eval()
    for scale in module.scales:
        nn.init.zeros_(scale.weight)
    assert torch.allclose(module(torch.ones(1, C, 4, 4)), torch.tensor(sigmoid(3)))


@pytest.mark.parametrize("dilations", [(), (0, 1)])
def test_bad_dilations(dilations: tuple[int, ...]) -> None:
    with pytest.raises(SpecError, match="1 at least"):
        MultiScaleSpatial(C, dilations=dilations)
