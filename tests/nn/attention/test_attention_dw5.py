"""DepthwiseFive: the formula by loops, its folded form, and what its map shows."""

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
    normed,
    planted,
    warmed,
)
from torch import nn

from edgeattn.nn.attention import attend
from edgeattn.nn.attention.dw5 import DepthwiseFive
from edgeattn.nn.backbone import BRANCH


def naive(module: nn.Module, x: Array) -> tuple[Array, Array]:
    y = x + normed(module.local[1], convolve(module.local[0], x))
    return y, np.mean([abs(channel) for channel in y], axis=0)


@pytest.mark.parametrize("size", [(6, 5), (3, 3), (1, 1)])
def test_equals_the_formula(size: tuple[int, int]) -> None:
    check_equals_naive(DepthwiseFive(C), naive, size=size)


def test_shapes_and_gradient() -> None:
    check_shapes_and_gradient(DepthwiseFive(C))


def test_export_is_one_convolution(tmp_path: Path) -> None:
    for operators in check_export(DepthwiseFive(C), tmp_path):
        assert operators.count("Conv") == 2  # the stem and this
        assert "BatchNormalization" not in operators


@pytest.mark.parametrize("size", [(6, 5), (1, 1)])
def test_deployed_form_is_the_same(size: tuple[int, int]) -> None:
    module, x = warmed(DepthwiseFive(C)), torch.randn(2, C, *size)
    before = module(x)
    for got, wanted in zip(attend(module.deployed(C), x), attend(module, x), strict=True):
        assert torch.allclose(got, wanted, atol=1e-5)
    assert torch.equal(module(x), before)


def test_map_feels_two_places_around_and_no_further() -> None:
    gate = attend(warmed(DepthwiseFive(C)), planted(side=16))[1][0].detach()
    away = gate[5:14, 8:14]
    assert divmod(int(gate.argmax()), 16) == (2, 5)
    assert (gate[4, 7] - gate[8, 10]).abs() > 1e-4
    assert torch.allclose(away, away[0, 0].expand_as(away), atol=1e-6)


def test_branch_starts_at_the_scale_of_the_backbone() -> None:
    assert torch.equal(DepthwiseFive(C).local[1].weight.detach(), torch.full((C,), BRANCH))
